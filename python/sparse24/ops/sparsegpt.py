"""SparseGPT's column loop: a weight pruned to 2:4 from left to right, its errors passed on."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C

#: Columns whose errors are gathered before the ones behind them are updated, by one matrix product.
BLOCK = 128


def sparsegpt_(weight: Tensor, factor: Tensor, mask: Tensor | None = None) -> Tensor:
    """Prune ``weight`` in place; return the mask, bool, True = kept.

    Groups of four run along the columns; a last one that is cut short keeps two. In each the two smallest
    w^2 / u_jj^2 are pruned (ties: the higher index), by Frantar and Alistarh, 2023, algorithm 1.

    Args:
        weight: float32 [rows, K].
        factor: float32 [K, K], upper triangular: its transpose times itself is the inverse of the Hessian.
        mask: bool [rows, K]: keep these; ``None``: choose.

    Raises:
        TypeError: another dtype. ValueError: shapes that do not fit.
    """
    if weight.dtype != torch.float32 or factor.dtype != torch.float32:
        raise TypeError(f"weight and factor must be float32, not {weight.dtype} and {factor.dtype}")
    if weight.dim() != 2 or factor.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"weight [rows, K] needs a factor [K, K], not {tuple(weight.shape)} and {tuple(factor.shape)}"
        )
    if mask is not None and (mask.shape != weight.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool {tuple(weight.shape)}, not {mask.dtype} {tuple(mask.shape)}")
    on_cpu = weight.device.type == "cpu" and weight.stride(1) == 1
    block = _block_cpu if on_cpu else _block_torch
    kept = torch.empty_like(weight, dtype=torch.bool) if mask is None else mask.clone()
    factor = factor.contiguous()
    for begin in range(0, weight.shape[1], BLOCK):
        end = min(begin + BLOCK, weight.shape[1])
        error = block(
            weight[:, begin:end], factor[begin:end, begin:end], kept[:, begin:end], choose=mask is None
        )
        weight[:, end:].addmm_(error, factor[begin:end, end:], alpha=-1)
    return kept


def _block_cpu(weight: Tensor, factor: Tensor, mask: Tensor, *, choose: bool) -> Tensor:
    rows, cols = weight.shape
    error = weight.new_empty(rows, cols)
    _C.sparsegpt_block(
        weight.data_ptr(), rows, cols, weight.stride(0), factor.data_ptr(), factor.stride(0),
        error.data_ptr(), mask.data_ptr(), mask.stride(0), choose, torch.get_num_threads(),
    )  # fmt: skip
    return error


def _block_torch(weight: Tensor, factor: Tensor, mask: Tensor, *, choose: bool) -> Tensor:
    """The same in torch, for any device: the reference of the algorithm."""
    error = torch.zeros_like(weight)
    inverse = 1 / factor.diagonal()
    for begin in range(0, weight.shape[1], 4):
        end = min(begin + 4, weight.shape[1])
        if choose:
            score = (weight[:, begin:end] * inverse[begin:end]).square()
            order = score.sort(dim=1, descending=True, stable=True).indices
            mask[:, begin:end] = False
            mask[:, begin:end].scatter_(1, order[:, :2], value=True)
        for column in range(begin, end):
            pruned = ~mask[:, column]
            error[:, column] = torch.where(pruned, weight[:, column] * inverse[column], 0.0)
            weight[:, column].masked_fill_(pruned, 0)
            later = factor[column, column + 1 :]
            weight[:, column + 1 :].addr_(error[:, column], later, alpha=-1)
    return error
