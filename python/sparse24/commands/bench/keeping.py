"""Rows of long benchmarks, kept in the user's cache folder as they come: a run can be gone on with."""

from __future__ import annotations

from ...choose import kept
from ...ops import figures
from .table import Setting

_FILE, _FORMAT = "bench.json", 1
_REMEDY = "delete it; it is written again"


class Rows:
    """The rows of one benchmark for this machine, threads and build; a run without ``resume`` begins anew."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._where = f"{name}; {kept.identity()}; {'quick' if setting.quick else 'whole'}"
        self._rows: dict[str, list[str]] = self._read().get(self._where, {}) if setting.resume else {}

    def get(self, key: str) -> list[str] | None:
        """The cells that were kept under ``key``."""
        cells = self._rows.get(key)
        return list(map(str, cells)) if isinstance(cells, list) else None

    def put(self, key: str, cells: list[str]) -> list[str]:
        """Keep cells, and return them. A folder that cannot be written to costs the resumption only."""
        self._rows[key] = cells
        try:
            figures.write(_FILE, _FORMAT, "runs", {**self._read(), self._where: self._rows})
        except (OSError, RuntimeError):
            return cells
        return cells

    def all(self) -> dict[str, list[str]]:
        """Every row that was kept."""
        return {key: cells for key in self._rows if (cells := self.get(key)) is not None}

    @staticmethod
    def _read() -> dict[str, dict[str, list[str]]]:
        try:
            return figures.read(_FILE, _FORMAT, "runs", _REMEDY)
        except (OSError, RuntimeError):
            return {}
