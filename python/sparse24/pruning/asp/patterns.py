"""apex's mask patterns by name, and the sizes that ASP asks of a weight besides."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ...masks import Pattern, mask_of_taps, parse_pattern
from ..rules import ByMagnitude, MaskRule, Transposable

MaskFunction = Callable[[Tensor], Tensor]


def greedy_transposable_mask(weight: Tensor) -> Tensor:
    """apex's ``m4n2_2d_greedy``: at most two kept per row and per column of every 4x4 tile.

    The 16 entries of a tile are visited from the largest magnitude to the smallest (ties: the lower
    index first), and kept while their row and their column hold fewer than two. Some rows end with
    fewer: on Gaussian weights .693 of sum |w| is kept, ``transposable_mask`` keeps .702.

    Args:
        weight: [K, C] or [K, C, *kernel], K and C multiples of 4.

    Returns:
        bool, of the weight's shape and device.

    Raises:
        TypeError, ValueError: as ``transposable_mask``.
    """
    return mask_of_taps(weight, _greedy)


def _greedy(matrix: Tensor) -> Tensor:
    rows, cols = matrix.shape
    tiles = matrix.abs().reshape(rows // 4, 4, cols // 4, 4).transpose(1, 2).reshape(-1, 16)
    kept = torch.zeros_like(tiles, dtype=torch.bool)
    in_row, in_col = (torch.zeros(len(tiles), 4, dtype=torch.int8, device=matrix.device) for _ in range(2))
    for place in torch.split(tiles.argsort(dim=-1, descending=True, stable=True), 1, dim=1):
        row, col = place // 4, place % 4
        free = (in_row.gather(1, row) < 2) & (in_col.gather(1, col) < 2)
        kept.scatter_(1, place, free)
        in_row.scatter_add_(1, row, free.to(torch.int8))
        in_col.scatter_add_(1, col, free.to(torch.int8))
    return kept.reshape(rows // 4, cols // 4, 4, 4).transpose(1, 2).reshape(rows, cols)


class _Greedy(Transposable):
    def mask(self, scores: Tensor, dim: int) -> Tensor:
        return greedy_transposable_mask(scores)


class _UserFunction(Transposable):
    """The masks of a function of the caller's; whatever it keeps is allowed."""

    def __init__(self, function: MaskFunction) -> None:
        self._function = function

    def mask(self, scores: Tensor, dim: int) -> Tensor:
        mask = self._function(scores)
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask_calculator returned {type(mask).__name__}, not a tensor")
        if mask.shape != scores.shape:
            raise ValueError(
                f"mask_calculator returned a mask of shape {tuple(mask.shape)} for a weight of shape "
                f"{tuple(scores.shape)}"
            )
        return mask.to(device=scores.device, dtype=torch.bool)

    def violation(self, mask: Tensor, dim: int) -> str:
        return ""


class ApexRule:
    """A rule, and what ASP asks besides: sizes that tensor cores like, and a weight that is trained."""

    def __init__(self, name: str, inner: MaskRule) -> None:
        self._name = name
        self.inner = inner
        self.group: Pattern = inner.group
        self.mask = inner.mask
        self.remark = inner.remark
        self.violation = inner.violation

    def __str__(self) -> str:
        return self._name

    def obstacle(self, weight: Tensor, dim: int) -> str:
        if reason := self.inner.obstacle(weight, dim):
            return reason
        if not weight.requires_grad:
            return "requires_grad is False: ASP prunes what is trained"
        outs, ins = weight.shape[1 - dim], weight.shape[dim]
        if outs % 8 or ins % 16:
            return f"{outs} x {ins} (out x in): ASP needs multiples of 8 x 16"
        return ""


def apex_rule(mask_calculator: str | MaskFunction) -> ApexRule:
    if callable(mask_calculator):
        return ApexRule(getattr(mask_calculator, "__name__", "user function"), _UserFunction(mask_calculator))
    if not isinstance(mask_calculator, str):
        raise TypeError(f"mask_calculator must be a name or a function, not {type(mask_calculator).__name__}")
    if mask_calculator == "m4n2_2d_best":
        return ApexRule(mask_calculator, Transposable())
    if mask_calculator == "m4n2_2d_greedy":
        return ApexRule(mask_calculator, _Greedy())
    match = re.fullmatch(r"m(\d+)n(\d+)_1d", mask_calculator, re.ASCII)
    if match is None:
        raise ValueError(
            f"unknown mask_calculator {mask_calculator!r}: m4n2_1d (any m<M>n<N>_1d), m4n2_2d_best, "
            "m4n2_2d_greedy, or a function"
        )
    return ApexRule(mask_calculator, ByMagnitude(parse_pattern(f"{match[2]}:{match[1]}")))
