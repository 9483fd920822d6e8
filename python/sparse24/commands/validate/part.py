"""One part of the validation, in a process of its own: ``python -m`` this module, with NAME OUT [--quick]."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from .. import doctor
from .ground import Ground


def _doctor() -> dict[str, Any]:
    diagnosis = doctor.diagnose()
    checks = [
        {"name": test.name, "passed": test.passed, "error": test.error} for test in diagnosis.self_tests
    ]
    return {
        "status": "passed" if diagnosis.healthy else "failed",
        "checks": checks,
        "diagnosis": dataclasses.asdict(diagnosis),
    }


def _on_ground(name: str, out: Path, quick: bool) -> dict[str, Any]:
    ground = Ground(out, quick)
    found: dict[str, Any] = importlib.import_module(f".{name}", __package__).run(ground) or {}
    return {**ground.answer(), **found}


def main(name: str, out: Path, quick: bool = False) -> int:
    """Write what the part found, or the traceback of what it could not stand."""
    try:
        found = _doctor() if name == "doctor" else _on_ground(name, out, quick)
    except Exception:  # noqa: BLE001  the report is where it goes
        found = {"status": "error", "log": traceback.format_exc()}
    out.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), "--quick" in sys.argv[3:]))
