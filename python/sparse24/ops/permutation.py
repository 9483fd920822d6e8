"""An order of a score's columns in which 2:4 keeps more of it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C

#: The search ends when eight steps in a row gained less than this share of what is kept.
TOLERANCE = 4e-4
#: At most so many steps.
STEPS = 400


def search_columns(
    score: Tensor,
    *,
    block: int | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
) -> Tensor:
    """The column that comes to each place: ``score[:, search_columns(score)]`` keeps more, two of every four.

    Iterated linear assignment: a column is taken out of every group of four, and all of them are put where
    together they keep most (an assignment problem), until that gains no more. No step loses. The same seed
    gives the same order on one instruction set, whatever the threads.

    Args:
        score: float32 [rows, K], finite and not negative, K a multiple of four; scores that share an order
            stand below each other.
        block: columns stay in their block of so many neighbours (an attention's head, a convolution's
            group); ``None``: they go anywhere.
        seed: of the choice of columns.
        tolerance: ends when eight steps gained less than this share of what is kept.
        steps: at most, for each block.

    Returns:
        int64 [K], on the CPU: a permutation.

    Raises:
        TypeError: another dtype.
        ValueError: no matrix; K is no multiple of four; a block that is none, or does not divide K; scores
            that are negative, NaN or Inf.
    """
    if score.dtype != torch.float32:
        raise TypeError(f"search_columns needs float32 scores, not {score.dtype}: call .float() on them")
    if score.dim() != 2 or score.shape[1] % 4:
        nearest = f"; pad it with zeros to {-(-score.shape[1] // 4) * 4} columns" if score.dim() == 2 else ""
        raise ValueError(
            f"search_columns needs scores [rows, K] with K a multiple of 4, not {tuple(score.shape)}{nearest}"
        )
    rows, cols = score.shape
    block = cols if block is None else block
    if cols and (block < 4 or block % 4 or cols % block):
        raise ValueError(f"block must be a multiple of 4 that divides the {cols} columns, not {block}")
    score = score.detach().cpu().contiguous()
    if score.numel() and not (bool(score.isfinite().all()) and float(score.min()) >= 0):
        raise ValueError("search_columns needs scores that are finite and not negative: take their magnitude")
    order = torch.arange(cols)
    if cols:
        _C.search_columns(
            score.data_ptr(), rows, cols, cols, block, seed % (1 << 64), tolerance, steps,
            order.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    return order


def kept_sum(score: Tensor, order: Tensor | None = None) -> float:
    """What 2:4 keeps of a score with its columns in an order: the two largest of every four, summed.

    Args:
        score: float32 [rows, K], not negative; a last group of columns may be shorter than four.
        order: int64 [K]: the column that comes to each place; ``None``: as they lie.

    Raises:
        TypeError: another dtype. ValueError: no matrix, or an order that is no permutation of its columns.
    """
    if score.dtype != torch.float32 or (order is not None and order.dtype != torch.int64):
        given = f"{score.dtype}" if order is None else f"{score.dtype} and {order.dtype}"
        raise TypeError(f"kept_sum needs float32 scores and an int64 order, not {given}")
    if score.dim() != 2:
        raise ValueError(f"kept_sum needs scores [rows, K], not {tuple(score.shape)}")
    rows, cols = score.shape
    if order is not None:
        order = order.cpu().contiguous()
        if order.shape != (cols,) or not torch.equal(order.sort().values, torch.arange(cols)):
            raise ValueError(f"order must be a permutation of the {cols} columns, not {tuple(order.shape)}")
    score = score.detach().cpu().contiguous()
    address = 0 if order is None else order.data_ptr()
    return _C.kept_sum(score.data_ptr(), rows, cols, cols, address, torch.get_num_threads())
