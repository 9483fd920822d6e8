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
