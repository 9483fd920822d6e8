"""Results of units: a line of JSON each, appended as they come, so that what was done is never lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...files import FileError

FORMAT = 1
Result = dict[str, Any]


class Results:
    """The file of a study. A line that was cut short by a crash is passed over and written again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, Result] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    result = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(result, dict) or result.get("format") != FORMAT:
                    raise FileError(f"{path}: not results of a study in format {FORMAT}: give another --out")
                self._kept[result["unit"]] = result

    def get(self, unit: str, identity: str) -> Result | None:
        """What a unit gave, if its row has not changed since."""
        kept = self._kept.get(unit)
        return kept if kept is not None and kept["identity"] == identity else None

    def add(self, unit: str, identity: str, result: Result) -> None:
        """Keep a result: on the disk when this returns."""
        whole = {"format": FORMAT, "unit": unit, "identity": identity, **result}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = (
            self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(whole) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._kept[unit] = whole
