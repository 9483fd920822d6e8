"""After its blocks: the kept weights of a whole network trained together on the outputs of the dense one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from ..log import progress as logged
from .blocks import Call
from .plan import Way
from .reconstruct import reconstruct
from .rows import Outcome
from .shelf import Several, Shelf

#: Smaller than those of blocks: every weight moves at once.
RATES = (3e-5, 1e-4, 3e-4)


def first_tensor(output: Any) -> Tensor | None:
    """The first floating tensor of what a network gives: of a tuple, a mapping, or a model output."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, tuple | list):
        parts = output
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def call_of(batch: Any) -> Call:
    """A batch as arguments."""
    if isinstance(batch, Mapping):
        return Call((), dict(batch))
    return Call(tuple(batch) if isinstance(batch, tuple | list) else (batch,), {})


@torch.no_grad()
def outputs_of(model: nn.Module, batches: Sequence[Any], shelf: Shelf) -> Several:
    """What the network gives now, for every batch.

    Raises:
        ValueError: it gives no floating tensor.
    """

    def output(batch: Any) -> Tensor:
        call = call_of(batch)
        found = first_tensor(model(*call.args, **call.kwargs))
        if found is None:
            raise ValueError(
                "reconstruct='network' compares outputs, and the model gives no floating tensor, nor a tuple "
                "or mapping with one: use 'component'"
            )
        return found.detach()

    return shelf.keep_all(output(batch) for batch in batches)


def train_whole(
    model: nn.Module,
    batches: Sequence[Any],
    targets: Several,
    way: Way,
    *,
    masks: Mapping[int, Tensor],
    fixed: Set[int],
    said: Any = logged,
) -> Outcome | None:
    """Train ``model`` in place, as :func:`reconstruct` does a block; what it brought is told ``said``."""
    calls = [call_of(batch) for batch in batches]
    found = reconstruct(
        model, calls, targets, way, masks=masks, fixed=fixed, rates=RATES, output=first_tensor
    )
    if found is not None:
        said(f"the whole network: output error {found.before:.2g}, trained {found.after:.2g}")
    return found
