"""What a network of the zoo is, and the table that all of them enter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Builder = Callable[[], nn.Module]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network, how inputs for it are made, and what a permutation has to do."""

    name: str
    build: Builder
    inputs: Callable[[int], Any]  #: of a batch size
    stays: str = ""  #: part of the reason why nothing is permuted; empty: something is
    tolerance: float = 1e-9  #: of outputs in float64, over their size; more where a network casts to float32
    moved: tuple[str, ...] = ()  #: weights whose input channels have to be permuted, among others
    kept: tuple[tuple[str, str], ...] = ()  #: weights that have to stay, with a part of the reason
    select: Any = None
    dtype: torch.dtype = torch.float64  #: in which outputs are compared
    batches: bool = True  #: other batch sizes than that of the example work, too


ZOO: list[Entry] = []


def enter(inputs: Callable[[int], Any], **known: Any) -> Callable[[Builder], Builder]:
    """Enter a network under the name of the function or class that builds it."""

    def add(build: Builder) -> Builder:
        ZOO.append(Entry(build.__name__, build, inputs, **known))
        return build

    return add


def images(channels: int = 3, side: int = 8) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, channels, side, side)


def rows(width: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, width)


def tokens(width: int, length: int = 6) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, length, width)


def words(vocabulary: int = 32, length: int = 6) -> Callable[[int], Tensor]:
    return lambda batch: torch.randint(vocabulary, (batch, length))


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """Every number its own: slopes, scales and statistics too, so that a channel at a wrong place shows."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if (
            isinstance(module, nn.modules.batchnorm._BatchNorm | nn.InstanceNorm2d)
            and module.track_running_stats
        ):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return model
