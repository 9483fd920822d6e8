"""One warning where steps on a CPU are slow for the zeros of second moments, and none elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparse24 import Sparsifier
from sparse24.pruning import slow_roots


def attached(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> list[str]:
    model = nn.Linear(16, 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = make(list(model.parameters()))
        sparsifier = Sparsifier(model, select=["*"])
        sparsifier.attach(optimizer)
        sparsifier.attach(optimizer)
    return [str(warning.message) for warning in caught if warning.filename == __file__]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (torch.optim.AdamW, r"AdamW(..., fused=True) does not have this"),
        (lambda p: torch.optim.Adam(p, foreach=True), r"Adam(..., fused=True) does not have this"),
        (torch.optim.RMSprop, "Adam and AdamW with fused=True do not"),
        (lambda p: torch.optim.AdamW(p, fused=True), ""),
        (torch.optim.SGD, ""),
    ],
)
def test_what_takes_roots_is_told_once(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_roots, "LARGE", 100)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    told = attached(make)
    assert len(told) == (1 if says else 0)
    assert says in "".join(told)


def test_small_networks_and_other_libraries_are_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert attached(torch.optim.AdamW) == []
    monkeypatch.setattr(slow_roots, "LARGE", 100)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert attached(torch.optim.AdamW) == []
