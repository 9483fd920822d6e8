"""The shrunk demo, for every test of it, and a cache folder of its own: the demo times layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from .small import small

__all__ = ["small"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "cache"))
