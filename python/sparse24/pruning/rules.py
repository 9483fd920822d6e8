"""The rules by which a Sparsifier masks a weight, and what each asks of the weight's shape."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..masks import Pattern, _crowded, magnitude_mask, parse_pattern, transposable_mask
from .layers import not_plain
from .sharding import cut, local

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class MaskRule(Protocol):
    """How to mask a weight whose input channels are ``dim``. Texts are empty when all is well."""

    @property
    def group(self) -> Pattern:
        """At most N of every M neighbours along ``dim`` are kept."""

    def mask(self, scores: Tensor, dim: int) -> Tensor:
        """bool, True = kept, from scores of the shape of the (local) weight."""

    def obstacle(self, weight: Tensor, dim: int) -> str:
        """Why ``weight`` cannot be masked, with the rule and its shape."""

    def remark(self, weight: Tensor, dim: int) -> str:
        """What to know about the mask of a weight that can."""

    def violation(self, mask: Tensor, dim: int) -> str:
        """Where ``mask`` keeps more than the rule allows."""


def rule_of(pattern: str | MaskRule) -> MaskRule:
    """The rule of a pattern: "N:M" or "transposable"; a rule is its own.

    Raises:
        TypeError, ValueError: as :func:`parse_pattern`.
    """
    if pattern == "transposable":
        return Transposable()
    if isinstance(pattern, str) or not hasattr(pattern, "obstacle"):
        return ByMagnitude(parse_pattern(pattern))  # type: ignore[arg-type]
    return pattern


def unfit(weight: Tensor) -> str:
    """Why no rule can mask ``weight``, whatever its shape; empty if some can."""
    if nn.parameter.is_lazy(weight):
        return "not initialized: run a forward pass first"
    if foreign := not_plain(weight):
        return foreign
    if weight.dtype not in _DTYPES:
        return f"dtype {str(weight.dtype).removeprefix('torch.')}: only floating weights of 16 bits or more"
    if weight.device.type == "meta":
        return "on the meta device: it has no values to rank"
    if weight.dim() < 2:
        return f"shape {tuple(weight.shape)}: needs [out, in, ...]"
    return ""


class ByMagnitude:
    """The N largest of every M along the input channels; a last group may be shorter."""

    def __init__(self, group: Pattern) -> None:
        self.group = group

    def __str__(self) -> str:
        return str(self.group)

    def mask(self, scores: Tensor, dim: int) -> Tensor:
        return magnitude_mask(scores, str(self.group), dim)

    def obstacle(self, weight: Tensor, dim: int) -> str:
        if reason := unfit(weight):
            return reason
        size = weight.shape[dim]
        if size < self.group.m:
            return f"{size} input channels (dim {dim}): {self.group} needs {self.group.m} or more"
        return _cut_short(weight, (dim,), self.group.m)

    def remark(self, weight: Tensor, dim: int) -> str:
        tail = weight.shape[dim] % self.group.m
        if not tail:
            return ""
        kept = min(tail, self.group.n)
        return f"{weight.shape[dim]} input channels: the last group has {tail} and keeps {kept}"

    def violation(self, mask: Tensor, dim: int) -> str:
        return _first_crowded(mask, self.group, dim)


class Transposable:
    """2:4 along the input and the output channels: the best of 90 patterns for every 4x4 tile."""

    group = Pattern(2, 4)

    def __str__(self) -> str:
        return "transposable"

    def mask(self, scores: Tensor, dim: int) -> Tensor:
        return transposable_mask(scores)

    def obstacle(self, weight: Tensor, dim: int) -> str:
        if reason := unfit(weight):
            return reason
        if weight.shape[0] % 4 or weight.shape[1] % 4:
            return f"{weight.shape[0]} x {weight.shape[1]}: a transposable mask needs multiples of 4"
        return _cut_short(weight, (0, 1), 4)

    def remark(self, weight: Tensor, dim: int) -> str:
        return ""

    def violation(self, mask: Tensor, dim: int) -> str:
        return _first_crowded(mask, self.group, 0) or _first_crowded(mask, self.group, 1)


def _cut_short(weight: Tensor, dims: tuple[int, ...], multiple: int) -> str:
    for dim in dims:
        if (size := cut(weight, dim, multiple)) is not None:
            return f"sharded along dim {dim} every {size}: groups of {multiple} would span two processes"
    return ""


def _first_crowded(mask: Tensor, group: Pattern, dim: int) -> str:
    crowded = _crowded(local(mask), group, dim).nonzero()
    if not len(crowded):
        return ""
    *place, index = crowded[0].tolist()
    return f"group {index} along dim {dim} at {place} keeps more than {group.n} of {group.m}"
