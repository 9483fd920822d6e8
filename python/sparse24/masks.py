"""Which weights to keep: N:M masks by magnitude, the transposable 2:4 mask, and their checks.

A mask is a bool tensor of the weight's shape, True = kept. Groups run along ``dim``; the default,
dim 1, is the input channels of ``Linear`` [out, in] and of a convolution [out, in, *kernel], where
every tap has groups of its own. A last group that is cut short is treated as if padded with zeros.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops

#: Dtypes whose zeros are counted.
_COUNTED = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip


class Pattern(NamedTuple):
    """At most ``n`` of every ``m`` neighbours are kept."""

    n: int
    m: int

    @property
    def is_within_24(self) -> bool:
        """Whether what it keeps is 2:4 as well: "1:2", "1:4" and "2:8" are, "2:6" and "4:8" are not."""
        return (self.n <= 2 and self.m % 4 == 0) or (self.n == 1 and self.m > 1)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def parse_pattern(pattern: str) -> Pattern:
    """``"N:M"`` as a :class:`Pattern`.

    Raises:
        TypeError: ``pattern`` is not a string.
        ValueError: it does not read "N:M" with 1 <= N <= M.
    """
    if not isinstance(pattern, str):
        raise TypeError(f'pattern must be a string like "2:4", not {type(pattern).__name__}')
    match = re.fullmatch(r"([0-9]+):([0-9]+)", pattern, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f'pattern must read "N:M" with 1 <= N <= M, like "2:4", not {pattern!r}')
    return Pattern(int(match[1]), int(match[2]))


def _check_dim(tensor: Tensor, dim: int) -> int:
    """``dim`` counted from 0; a 1-D weight under the default ``dim=1`` is the usual mistake."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"a weight must be a torch.Tensor, not {type(tensor).__name__}")
    if not -tensor.dim() <= dim < tensor.dim():
        nearest = f"; a {tensor.dim()}-D weight can be grouped along dim 0" if tensor.dim() == 1 else ""
        raise ValueError(
            f"groups cannot run along dim {dim} of a weight of shape {tuple(tensor.shape)}{nearest}"
        )
    return dim % tensor.dim()


def magnitude_mask(weight: Tensor, pattern: str = "2:4", dim: int = 1) -> Tensor:
    """The mask that keeps the N largest magnitudes of every M neighbours along ``dim``.

    Equivalent to, for groups that are full: ``weight.abs()`` grouped by M along ``dim``, ``topk(N)``.
    Magnitudes rank by their bits: NaN above Inf above every finite weight, -0.0 equal to 0.0; ties go
    to the lower index.

    Args:
        weight: any shape, strides and real dtype (integers too); not modified.
        pattern: "N:M".
        dim: the dimension along which groups run.

    Returns:
        bool, of the weight's shape and device, contiguous.

    Raises:
        TypeError: not a tensor, or ``pattern`` not a string.
        ValueError: a bad pattern, a ``dim`` that the weight lacks, a complex or bool weight.
    """
    n, m = parse_pattern(pattern)
    return _nm_mask(weight, Pattern(n, m), _check_dim(weight, dim))


def _nm_mask(weight: Tensor, pattern: Pattern, dim: int) -> Tensor:
    mask: Tensor = torch.ops.sparse24.nm_mask(weight.detach(), pattern.n, pattern.m, dim)
    return mask


def prune_(weight: Tensor, pattern: str = "2:4", dim: int = 1) -> Tensor:
    """Write +0.0 over what :func:`magnitude_mask` prunes, in place and in one pass; return the mask.

    Autograd does not record the change, so ``weight`` may be a leaf that requires grad.

    Raises:
        TypeError, ValueError: as :func:`magnitude_mask`; the weight is then unchanged.
    """
    n, m = parse_pattern(pattern)
    dim = _check_dim(weight, dim)
    with torch.no_grad():
        mask: Tensor = torch.ops.sparse24.prune_(weight, n, m, dim)
    if not weight.is_inference():
        # The kernel writes through a pointer; backward passes and caches look at the version.
        torch.autograd.graph.increment_version(weight)
    return mask


@torch.no_grad()
def apply_mask_(tensor: Tensor, mask: Tensor) -> Tensor:
    """Write +0.0 over what ``mask`` prunes (False), in place; return ``tensor``.

    Equivalent to: ``tensor.masked_fill_(~mask, 0)``, but several times as fast on a CPU.

    Args:
        tensor: any floating dtype and strides; a weight or its gradient.
        mask: bool, of the same shape and device.

    Raises:
        ValueError: shapes differ, or ``mask`` is not bool.
    """
    if mask.dtype != torch.bool or mask.shape != tensor.shape:
        raise ValueError(
            f"a mask for {tuple(tensor.shape)} must be bool of that shape, not {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    return ops.apply_mask_bits_(tensor, ops.pack_mask(mask))


def transposable_mask(weight: Tensor) -> Tensor:
    """The best mask that is 2:4 along rows and along columns, so that W and its transpose are sparse.

    Every 4x4 tile takes the one of its 90 patterns (two kept per row and per column) that keeps the
    largest sum of magnitudes; exact, not greedy. The weight must be finite.

    Args:
        weight: [K, C], or a convolution's ``[K, C, *kernel]``, whose K x C matrix is masked at every tap;
            K and C multiples of 4; a floating dtype.

    Returns:
        bool, of the weight's shape and device.

    Raises:
        TypeError: not a tensor.
        ValueError: fewer than two dimensions, K or C not a multiple of 4, not a floating dtype.
    """
    return mask_of_taps(weight, torch.ops.sparse24.transposable_mask)


def mask_of_taps(weight: Tensor, mask_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Mask a weight [K, C, *kernel] by ``mask_of``, which takes 4x4 tiles of a matrix [rows, C].

    The matrix holds the K x C matrices of the taps one under the other: no tile straddles two of them.

    Raises:
        TypeError, ValueError: as :func:`transposable_mask`.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"a weight must be a torch.Tensor, not {type(weight).__name__}")
    shape = tuple(weight.shape)
    if len(shape) < 2 or shape[0] % 4 or shape[1] % 4:
        legal = tuple(ops.round_up(size, 4) for size in shape[:2]) + shape[2:]
        nearest = f"; the nearest legal shape is {legal}" if len(shape) >= 2 else ""
        raise ValueError(
            "a transposable mask needs a weight [K, C] or [K, C, *kernel] with K and C multiples of 4, "
            f"not {shape}{nearest}"
        )
    if len(shape) == 2:
        return mask_of(weight.detach())
    taps = weight.detach().flatten(2).permute(2, 0, 1)
    return mask_of(taps.reshape(-1, shape[1])).view(taps.shape).permute(1, 2, 0).reshape(shape)


def _crowded(tensor: Tensor, pattern: Pattern, dim: int) -> Tensor:
    """True for every group along ``dim`` with more than N non-zeros; [..., groups], ``dim`` last."""
    nonzero = (tensor.detach() != 0).movedim(dim, -1)
    length = ops.round_up(nonzero.shape[-1], pattern.m)
    padded = F.pad(nonzero, (0, length - nonzero.shape[-1]))
    groups = padded.view(*padded.shape[:-1], length // pattern.m, pattern.m)
    return groups.sum(-1) > pattern.n


def is_sparse24(tensor: Tensor, dim: int = 1) -> bool:
    """Whether every four neighbours along ``dim`` hold at most two non-zeros.

    -0.0 counts as zero, NaN as non-zero; a last group cut short is counted as if padded.

    Raises:
        TypeError: not a tensor.
        ValueError: ``tensor`` has no dimension ``dim``.
    """
    return not bool(_crowded(tensor, Pattern(2, 4), _check_dim(tensor, dim)).any())


def kept_share(*tensors: Tensor) -> float:
    """The share of the numbers of dense tensors that are not zero, 0 to 1, or NaN where they cannot be read.

    That is: on the meta device, none at all, of another layout or another library's class, or of a dtype
    that packs numbers or has none that compare.
    """
    total = sum(tensor.numel() for tensor in tensors)
    plain = (Tensor, torch.nn.Parameter)
    if not total or any(
        type(t) not in plain or t.is_meta or t.layout != torch.strided or t.dtype not in _COUNTED
        for t in tensors
    ):
        return float("nan")
    return sum(int(torch.count_nonzero(_comparable(tensor.detach()))) for tensor in tensors) / total


def _comparable(tensor: Tensor) -> Tensor:
    """Floats as integers that are zero where they are: torch counts these three times as fast."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.element_size() == 1:
        tensor = tensor.to(torch.float16)
    return tensor.abs().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A 2:4 weight [..., K] in the canonical layout; with Kp = K rounded up to a multiple of 8:

    ``values`` [..., Kp/2], the weight's dtype: the two kept values of every group, in column order;
    ``indices`` [..., Kp/8], uint8: two bits a kept value, low bits first.

    Equivalent to, for the inverse: ``decompress(values, indices, K)``.

    Raises:
        TypeError: a dtype other than float32, float16, bfloat16, int8, float8.
        ValueError: a scalar, or a group with more than two non-zeros (row and group are named).
    """
    values, indices = torch.ops.sparse24.compress(weight.detach())
    return values, indices


def decompress(values: Tensor, indices: Tensor, in_features: int | None = None) -> Tensor:
    """The dense weight [..., K] of a canonical pair; the inverse of :func:`compress`.

    Args:
        values: [..., Kp/2], indices: [..., Kp/8] uint8.
        in_features: K, to cut the padding off; default: Kp.

    Raises:
        TypeError: a dtype that the layout does not know.
        ValueError: shapes that do not fit each other or ``in_features``; damaged indices.
    """
    weight: Tensor = torch.ops.sparse24.decompress(values.detach(), indices)
    padded = weight.shape[-1]
    if in_features is None or in_features == padded:
        return weight
    if in_features < 0 or ops.round_up(in_features, 8) != padded:
        raise ValueError(
            f"in_features {in_features} does not fit values of shape {tuple(values.shape)}: they hold "
            f"{max(padded - 7, 0)} to {padded} columns"
        )
    return weight[..., :in_features].contiguous()
