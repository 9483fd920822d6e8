"""No model is left over from one test of ASP to the next."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from sparse24.pruning.asp import ASP


@pytest.fixture(autouse=True)
def _no_model_stays() -> Iterator[None]:
    """Every test starts with no model initialised: those of the last one are gone."""
    gc.collect()
    assert not ASP._sessions
    yield
    ASP._sessions.clear()
