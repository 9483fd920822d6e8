"""``sparse24.oneshot``: prune a trained network with some unlabelled batches, without training it again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..log import progress as logged
from ..pruning.prunable import layer_at, unwrap
from ..pruning.running import quiet
from ..pruning.selection import Select
from ..pruning.sharding import local, reshard
from ..report import Report
from .blocks import checked_batches, find_blocks
from .journal import Journal, identity
from .methods import METHODS
from .plan import Way, plan_for
from .sensitivity import sensitivity
from .shelf import Several, Shelf
from .together import Together, together_of
from .walk import Progress, Walk
from .whole import outputs_of

Folder = str | os.PathLike[str]


def oneshot(
    model: nn.Module,
    batches: Iterable[Any],
    method: str = "sparsegpt",
    *,
    refit: int = 10,
    reconstruct: str | None = "component",
    steps: int = 400,
    bias: bool = True,
    masks: Mapping[str, Tensor] | None = None,
    select: Select = None,
    skip: Sequence[str] | float = (),
    blocks: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    folder: Folder | None = None,
    offload: Folder | None = None,
    progress: Progress | None = None,
) -> Report:
    """Prune ``model`` to 2:4 in place, calibrated on unlabelled batches: kept weights make up for the others.

    Block by block, each with the inputs that the pruned blocks before it give: masks and weights by
    ``method``, then ``refit`` steps of least squares for every matrix, with a bias that takes up what is
    left of the mean, then the block is trained on the outputs of the dense one. A weight that several layers
    share is pruned once, where it is first used; blocks that share parameters do not train those.

    A model that ``fully_shard`` has cut is pruned in its shards, with ``reconstruct=None``: every process
    calls this with batches of its own, as many as the others, and all end where one with all of them would.

    Args:
        model: any module; it is run in eval mode, and left in the mode that it had.
        batches: at least one: a tensor, a tuple of arguments or a mapping of keyword arguments each, on the
            model's device. Looked through once, and kept.
        method: "sparsegpt", "wanda", "ria", "admm" or "magnitude" (which needs no calibration for its masks).
        refit: steps of conjugate gradients for the kept weights of each matrix; 0: none.
        reconstruct: "component": train each block on the outputs of the dense one; "network": then all
            blocks together on what the dense network gives, with the memory of training it; ``None``:
            neither.
        steps: of Adam for each block, and for the network.
        bias: let the bias of a layer, where it has one, take up the mean of what its outputs lose.
        masks: masks of the caller's own, bool of the weight's shape by parameter name (as
            :attr:`~sparse24.Sparsifier.masks`): the method then changes the kept weights alone.
        select: which layers, as :class:`~sparse24.Sparsifier` takes it.
        skip: names or patterns of layers that stay dense; or a budget from 0 to 1, the share of the time
            saved that may be given up for accuracy: :func:`~sparse24.sensitivity` then says which.
        blocks: names of the blocks; ``None``: found from the module tree.
        autocast: train blocks under autocast to this dtype, as bfloat16 on a GPU.
        folder: where progress is kept, a file a block: the same call, interrupted, goes on after the last
            whole block, to the same result. The folder is left there when all is done.
        offload: a folder where activations and the weights as they were wait, instead of in memory. Nothing
            is left there.
        progress: told of each block, with the time that is left; the logger "sparse24" is by default.

    Returns:
        One row a weight; what was pruned has the error of its outputs, over their size, as the remark.

    Raises:
        TypeError: no module, a batch or a mask of another kind, or a layer was selected that cannot be
            calibrated.
        ValueError: an unknown method, no batches, batches that the model cannot be called with, inputs or
            weights with NaN or Inf, masks that do not fit, a block that does not exist; a model cut by tensor
            parallelism or FSDP1, or by ``fully_shard`` with more than ``reconstruct=None`` can do; a folder
            (``FileError``) that cannot be used or holds another run's progress. The model is as it was then,
            as it is after an interruption.
    """
    _check(model, method, refit, reconstruct, steps)
    kept = checked_batches(batches)
    network = unwrap(model)
    together = together_of(network, "oneshot")
    if together is not None:
        _check_together(together, len(kept), reconstruct, folder, skip)
    if isinstance(skip, float | int):
        skip = sensitivity(network, kept, select=select, progress=progress).skip(skip)
    plan = plan_for(network, select, skip, masks)
    names = find_blocks(network, plan.layers.values()) if blocks is None else list(blocks)
    parts = {name: _block(network, name) for name in names}
    way = Way(method, refit, steps if reconstruct else 0, bias, autocast)
    settings = {"way": way._asdict(), "pruned": sorted(plan.parameters), "blocks": names, "masks": plan.masks}
    run = identity(network, kept, settings) if folder is not None else ""
    journal = Journal(None if folder is None else Path(folder), run)
    with Shelf(None if offload is None else Path(offload)) as shelf:
        before = {name: shelf.keep(local(p.detach()).clone()) for name, p in network.named_parameters()}
        walk = Walk(network, kept, plan, way, shelf=shelf, journal=journal, before=before, together=together)
        try:
            with quiet(network), torch.no_grad():
                is_whole = reconstruct == "network"
                targets = outputs_of(network, kept, shelf) if is_whole else Several()
                rows = walk.run(parts, progress or logged)
                if is_whole:
                    walk.train_together(parts, targets, progress or logged)
        except BaseException:
            reshard(network)
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    local(parameter).copy_(before[name]())
            raise
    order = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    rows = sorted([*rows, *plan.left], key=lambda row: order.get(row.name, len(order)))
    return Report(tuple(rows), "pruned")


def _check(model: nn.Module, method: str, refit: int, reconstruct: str | None, steps: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"oneshot needs a torch.nn.Module, not {type(model).__name__}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if reconstruct not in ("component", "network", None):
        raise ValueError(f"reconstruct must be 'component', 'network' or None, not {reconstruct!r}")
    if refit < 0 or steps < 1:
        raise ValueError(f"refit must be 0 or more and steps 1 or more, not {refit} and {steps}")


def _check_together(
    together: Together,
    batches: int,
    reconstruct: str | None,
    folder: Folder | None,
    skip: Sequence[str] | float,
) -> None:
    if reconstruct is not None:
        raise ValueError(
            f"oneshot of a model in shards trains no blocks: pass reconstruct=None, not {reconstruct!r}, or "
            "do it before fully_shard"
        )
    if folder is not None:
        raise ValueError("oneshot of a model in shards keeps no progress: leave folder= out")
    if not isinstance(skip, Sequence):
        what = f"a budget ({skip}) needs whole weights: skip= takes names for a model in shards"
        raise ValueError(what)  # noqa: TRY004 - a number is fine elsewhere
    together.refuse_difference("number of batches", batches)


def _block(model: nn.Module, name: str) -> nn.Module:
    found = layer_at(model, name)
    if found is None:
        raise ValueError(f"the model has no block called {name!r}")
    return found
