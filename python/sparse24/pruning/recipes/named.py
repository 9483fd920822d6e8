"""Published recipes as settings of :class:`DynamicSparsity`. Each makes its own Sparsifier."""

from __future__ import annotations

from torch import nn

from ..selection import Select
from ..sparsifier import Sparsifier
from .dynamic import DynamicSparsity


def sr_ste(
    model: nn.Module,
    *,
    freeze: int | None = None,
    decay: float = 2e-4,
    decoupled: bool = False,
    begin: int = 0,
    fixed_moments: bool = False,
    select: Select = None,
) -> DynamicSparsity:
    """From scratch to a sparse network: masks anew at every step, pruned weights decay (Zhou et al. 2021).

    With SGD as it is; with Adam ``decoupled=True``, or ``begin=`` and ``fixed_moments=True`` (STEP, Lu et al.
    2023). ``freeze`` is usually the number of all steps; :meth:`DynamicSparsity.finish` freezes at any time.
    """
    return DynamicSparsity(
        Sparsifier(model, select=select),
        begin=begin,
        freeze=freeze,
        decay=decay,
        decoupled=decoupled,
        fixed_moments=fixed_moments,
    )


def transposable(
    model: nn.Module,
    *,
    dense_from: int | None = None,
    refresh: int = 40,
    decay: float = 2e-4,
    mvue: bool = True,
    select: Select = None,
) -> DynamicSparsity:
    """A dense network by sparse products, forward and backward (Hu et al. 2024).

    Masks are 2:4 along rows and columns, anew every 40 steps; masked weights decay in the gradient; output
    gradients are made 2:4 for the weights' gradients; the last steps (``dense_from``, five sixths of all) are
    dense. The authors prune the feed-forward layers alone: say so by ``select``. The gain in speed is that of
    :func:`sparse_products`, where a step is faster by them.
    """
    return DynamicSparsity(
        Sparsifier(model, pattern="transposable", select=select),
        refresh=refresh,
        dense_from=dense_from,
        decay=decay,
        mvue=mvue,
    )


def repruning(
    model: nn.Module, *, every: int, freeze: int, begin: int = 0, select: Select = None
) -> DynamicSparsity:
    """Prune again every so many steps, pruned weights learning on, until the masks are frozen."""
    return DynamicSparsity(Sparsifier(model, select=select), begin=begin, refresh=every, freeze=freeze)


def warm_up(model: nn.Module, *, steps: int, select: Select = None) -> DynamicSparsity:
    """So many dense steps, then the masks of that moment, fixed: pruning in the middle of one training."""
    return DynamicSparsity(Sparsifier(model, select=select), begin=steps, freeze=steps)
