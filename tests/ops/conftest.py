"""The count of packed weights."""

from __future__ import annotations

from typing import Any

import pytest

from sparse24 import ops


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every weight packed while the test runs."""
    calls: list[int] = []
    pack = ops.panels._C.pack

    def counted(*args: Any) -> None:
        calls.append(args[3])
        pack(*args)

    monkeypatch.setattr(ops.panels._C, "pack", counted)
    return calls
