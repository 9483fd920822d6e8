"""``sparse24 validate-gpu``: everything that only a GPU can show, in one report.

Each part runs in a process of its own, so that one that crashes, hangs or leaves the GPU in an error takes
no other with it. Nothing here changes a setting of the device. Without a GPU the parts run in a reduced form
on an emulator of cuSPARSELt, where one is loaded: that tests this command, and validates nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...report import format_table
from .page import page

Progress = Callable[[str], None]


class Part(NamedTuple):
    """One part of the validation."""

    name: str
    what: str
    seconds: int  #: it is stopped after


PARTS = (
    Part("doctor", "versions, driver, devices, and the CPU's self-test", 50),
    Part("kernels", "the CUDA kernels against torch, bit for bit, and few tokens against float64", 50),
    Part("products", "every dtype, layout and epilogue against float64", 75),
    Part("contract", "what the documents of cuSPARSELt leave open", 60),
    Part("layers", "what a call costs its host, ragged tokens, 8-bit storage, tuning, settings of torch", 75),
    Part("execution", "CUDA graphs, threads, streams, torch.compile and torch.export", 80),
    Part("search", "every algorithm compared with the default one, and timed", 60),
    Part("speed", "products against torch's dense and semi-structured ones", 75),
    Part("networks", "BERT-Large and ResNeXt-101, dense and sparse", 75),
)


#: What ``quick`` leaves of each part's seconds: two minutes in all.
QUICK = 0.2


def run(out: Path, names: Sequence[str] = (), progress: Progress = print, *, quick: bool = False) -> int:
    """Run the parts (default: all), write ``out`` after each and a page beside it, and say how they went.

    Args:
        out: the report, JSON; the page has its name and ends in .html.
        quick: fewer shapes, networks and algorithms, in two minutes at most.

    Returns:
        0 where every part passed, else 1.

    Raises:
        ValueError: an unknown part; the known ones are named.
    """
    known = {part.name: part for part in PARTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; the parts are {', '.join(known)}")
    report: dict[str, Any] = {"format": 1, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "parts": {}}
    out.parent.mkdir(parents=True, exist_ok=True)
    for each in [known[name] for name in names] or PARTS:
        part = each
        if quick:
            part = part._replace(seconds=max(int(QUICK * part.seconds), 1))
        progress(f"{part.name}: {part.what} (at most {part.seconds} s)")
        found = report["parts"][part.name] = _run_apart(part, quick)
        report["passed"] = all(each["status"] == "passed" for each in report["parts"].values())
        _write(out, report)
        progress(f"  {found['status']} in {found['seconds']:.0f} s{_summary(found)}")
    progress(f"\n{table(report)}\n{out}\n{out.with_suffix('.html')}")
    return 0 if report["passed"] else 1


def _run_apart(part: Part, quick: bool) -> dict[str, Any]:
    """A part in a process of its own: what it found, or how it ended."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", f"{__package__}.part", part.name, str(answer)]
        command += ["--quick"] if quick else []
        status, log = _finish(command, part.seconds)
        found: dict[str, Any] = {}
        if answer.exists():
            found = json.loads(answer.read_text(encoding="utf-8"))
    if found.get("status", "unfinished") == "unfinished":
        found = {**found, "status": status, "log": log[-4000:]}
    return {**found, "seconds": time.monotonic() - begin}


def _finish(command: Sequence[str], seconds: int) -> tuple[str, str]:
    """How a process ended that gave no answer, and the end of what it printed."""
    try:
        ran = subprocess.run(
            command, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except subprocess.TimeoutExpired as stopped:
        log = stopped.stdout or b""
        text = log.decode(errors="replace") if isinstance(log, bytes) else str(log)
        return f"stopped after {seconds} s", text
    ended = f"killed by signal {-ran.returncode}" if ran.returncode < 0 else f"ended with {ran.returncode}"
    return ended, ran.stdout


def _write(out: Path, report: dict[str, Any]) -> None:
    draft = out.with_name(out.name + ".part")
    draft.write_text(json.dumps(report, indent=1), encoding="utf-8")
    os.replace(draft, out)
    out.with_suffix(".html").write_text(page(report), encoding="utf-8")


def _summary(found: dict[str, Any]) -> str:
    if "checks" in found:
        wrong = [check["name"] for check in found["checks"] if not check["passed"]]
        return f", {len(found['checks'])} checks" + (f", FAILED: {', '.join(wrong[:5])}" if wrong else "")
    lines = str(found.get("log", "")).strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def table(report: dict[str, Any]) -> str:
    """The parts of a report, as text."""
    rows = [("part", "status", "checks", "failed", "seconds")]
    for name, found in report["parts"].items():
        checks = found.get("checks", [])
        failed = sum(not check["passed"] for check in checks)
        rows.append((name, found["status"], str(len(checks)), str(failed), f"{found['seconds']:.0f}"))
    emulated = any(found.get("emulated") for found in report["parts"].values())
    note = "\nON THE EMULATOR: this validates no GPU" if emulated else ""
    return format_table(rows) + note
