"""Layers with known times instead of measured ones, and networks to decide about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference import prune_layers
from sparse24.choose import measured
from sparse24.choose.example import LayerCall
from sparse24.timing import Pair

#: (out features, tokens) to (dense, sparse) in seconds.
Times = Callable[[int, int], tuple[float, float]]


class Clock:
    """Stands in for :meth:`Chooser.measure`; ``asked`` are the layers and calls that were to be timed."""

    def __init__(self, times: Times) -> None:
        self.asked: list[tuple[str, str, tuple[int, ...], bool]] = []
        self._times = times

    def measure(self, chooser: measured.Chooser, dense: Any, sparse: Any, call: LayerCall) -> Pair:
        shape = call.shape
        self.asked.append((type(dense).__name__, type(sparse).__name__, shape, chooser._compiled))
        tokens = int(torch.Size(shape[:-1]).numel())
        outputs = getattr(sparse, "out_features", 0) or getattr(sparse, "out_channels", 0)
        return Pair(*self._times(outputs, tokens))


def _method_of(clock: Clock) -> Callable[..., Pair]:
    def measure(self: measured.Chooser, *given: Any) -> Pair:
        return clock.measure(self, *given)

    return measure


def set_clock(monkeypatch: pytest.MonkeyPatch, times: Times) -> Clock:
    clock = Clock(times)
    monkeypatch.setattr(measured.Chooser, "measure", _method_of(clock))
    return clock


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return prune_layers(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).to(dtype)).eval()


class Noisy(nn.Module):
    """Draws random numbers in training mode, counts in eval mode, and calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)
        self.drop = nn.Dropout(0.5)
        self.layer = nn.Linear(32, 32)
        self.unused = nn.Linear(32, 8)
        self.broken = False
        prune_layers(self)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        torch.rand(3)
        x = self.layer(self.layer(self.drop(self.norm(x)))) * scale
        if self.broken:
            raise ArithmeticError("the model has failed")
        return x
