"""Operators that choose which weights are kept, and prune the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .. import _C
from .registry import DTYPES, TAGS, library, round_up

MASK_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

library.define("nm_mask(Tensor weight, int n, int m, int dim) -> Tensor", tags=TAGS)
library.define("prune_(Tensor(a!) weight, int n, int m, int dim) -> Tensor", tags=TAGS)
library.define("transposable_mask(Tensor weight) -> Tensor", tags=TAGS)


def _check_pattern(weight: Tensor, n: int, m: int, dim: int) -> int:
    torch._check_value(
        1 <= n <= m, lambda: f"an N:M pattern needs 1 <= N <= M, not {n}:{m}; 2:4 is the hardware's"
    )
    torch._check_value(
        weight.dim() > 0 and -weight.dim() <= dim < weight.dim(),
        lambda: f"dim {dim} is out of range for a weight of shape {tuple(weight.shape)}",
    )
    torch._check_value(
        not weight.is_complex() and weight.dtype != torch.bool,
        lambda: f"magnitudes of dtype {weight.dtype} cannot be ranked; give a real dtype",
    )
    return dim % weight.dim()


def _magnitude_bits(weight: Tensor) -> Tensor:
    """Integers that order as magnitudes do: NaN above Inf, -0 equal to +0."""
    if not weight.is_floating_point():
        return weight.to(torch.int64).abs()
    if weight.element_size() == 1:  # fp8 has no integer order of its own on every format
        weight = weight.float()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return weight.contiguous().view(bits) & torch.iinfo(bits).max


def nm_mask_torch(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """``nm_mask`` in plain torch, for every device and dtype."""
    dim = _check_pattern(weight, n, m, dim)
    bits = _magnitude_bits(weight).movedim(dim, -1)
    length = bits.shape[-1]
    # Positions beyond the end rank below every weight, zero included.
    groups = F.pad(bits, (0, round_up(length, m) - length), value=-1).unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.flatten(-2)[..., :length].movedim(-1, dim).contiguous()


def _split_at(weight: Tensor, dim: int) -> tuple[int, int, int]:
    """Sizes (before, of, after) dimension ``dim`` of a contiguous weight."""
    shape = weight.shape
    return shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel()


def _nm_mask_cpu(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    if weight.dtype not in MASK_DTYPES:
        return nm_mask_torch(weight, n, m, dim)
    dim = _check_pattern(weight, n, m, dim)
    weight = weight.contiguous()
    mask = torch.empty(weight.shape, dtype=torch.bool)
    _C.nm_mask(
        weight.data_ptr(), DTYPES[weight.dtype], *_split_at(weight, dim), n, m, mask.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return mask


def prune_torch_(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """``prune_`` in plain torch, for every device and dtype."""
    mask = nm_mask_torch(weight, n, m, dim)
    weight.masked_fill_(~mask, 0)
    return mask


def _prune_cpu_(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    if weight.dtype not in MASK_DTYPES or not weight.is_contiguous():
        return prune_torch_(weight, n, m, dim)
    dim = _check_pattern(weight, n, m, dim)
    mask = torch.empty(weight.shape, dtype=torch.bool)
    if not weight.is_inference():
        torch.autograd.graph.increment_version(weight)
    _C.nm_prune(
        weight.data_ptr(), DTYPES[weight.dtype], *_split_at(weight, dim), n, m, mask.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return mask


def check_transposable(weight: Tensor) -> None:
    torch._check_value(
        weight.dim() == 2 and weight.shape[0] % 4 == 0 and weight.shape[1] % 4 == 0,
        lambda: (
            "a transposable mask needs a weight [rows, cols] with both multiples of 4, not "
            f"{tuple(weight.shape)}; the nearest legal shape is "
            f"{tuple(round_up(size, 4) for size in weight.shape)}"
        ),
    )
    torch._check_value(
        weight.is_floating_point(), lambda: f"a transposable mask needs a floating dtype, not {weight.dtype}"
    )


def _transposable_patterns(device: torch.device) -> Tensor:
    """The 90 boolean 4x4 patterns with two kept per row and column, [90, 16], in ascending order."""
    rows = [p for p in range(16) if bin(p).count("1") == 2]
    columns = torch.tensor([[(p >> c) & 1 for c in range(4)] for p in rows])
    grid = torch.cartesian_prod(*[torch.arange(6)] * 4)
    patterns = columns[grid]  # [1296, 4, 4]
    return patterns[(patterns.sum(1) == 2).all(-1)].flatten(1).bool().to(device)


def transposable_mask_torch(weight: Tensor) -> Tensor:
    """``transposable_mask`` in plain torch: brute force over the 90 patterns."""
    check_transposable(weight)
    rows, cols = weight.shape
    magnitude = weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))
    tiles = magnitude.reshape(rows // 4, 4, cols // 4, 4).transpose(1, 2).reshape(-1, 16)
    patterns = _transposable_patterns(weight.device)
    best = (tiles @ patterns.to(tiles.dtype).t()).argmax(-1)
    mask = patterns[best].reshape(rows // 4, cols // 4, 4, 4).transpose(1, 2)
    return mask.reshape(rows, cols)


def _transposable_mask_cpu(weight: Tensor) -> Tensor:
    if weight.dtype not in MASK_DTYPES:
        return transposable_mask_torch(weight)
    check_transposable(weight)
    weight = weight.contiguous()
    rows, cols = weight.shape
    mask = torch.empty(weight.shape, dtype=torch.bool)
    _C.transposable_mask(
        weight.data_ptr(), DTYPES[weight.dtype], rows, cols, mask.data_ptr(), torch.get_num_threads()
    )
    return mask


library.impl("nm_mask", nm_mask_torch, "CompositeExplicitAutograd")
library.impl("nm_mask", _nm_mask_cpu, "CPU")
library.impl("prune_", prune_torch_, "CompositeExplicitAutograd")
library.impl("prune_", _prune_cpu_, "CPU")
library.impl("transposable_mask", transposable_mask_torch, "CompositeExplicitAutograd")
library.impl("transposable_mask", _transposable_mask_cpu, "CPU")


@register_fake("sparse24::nm_mask", lib=library)
def _(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    _check_pattern(weight, n, m, dim)
    return torch.empty(weight.shape, dtype=torch.bool, device=weight.device)


@register_fake("sparse24::prune_", lib=library)
def _(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    _check_pattern(weight, n, m, dim)
    return torch.empty(weight.shape, dtype=torch.bool, device=weight.device)


@register_fake("sparse24::transposable_mask", lib=library)
def _(weight: Tensor) -> Tensor:
    check_transposable(weight)
    return torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
