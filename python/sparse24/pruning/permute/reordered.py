"""Tensors put into another order in place, and back again bit for bit."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import Tensor

from .channels import Ints
from .walk import Axis


class Reordered:
    """All changes so far, which :meth:`undo` takes back; nothing but their orders is kept."""

    def __init__(self) -> None:
        self._done: list[tuple[Axis, Ints]] = []
        #: A part that is being written, its numbers before, and how many changes came before it.
        self._begun: tuple[Tensor, Tensor, int] | None = None

    def reorder(self, axis: Axis, order: Ints) -> None:
        """Bring to each place of an axis what is at ``order`` of it."""
        if (order == np.arange(len(order))).all():
            return
        with _writing(axis.tensor):
            part = axis.tensor.detach()[axis.rows]
            before = part.clone()
            self._begun = (part, before, len(self._done))
            part.copy_(before.index_select(axis.dim, torch.from_numpy(order).to(part.device)))
            self._done.append((axis, order))
            self._begun = None

    def undo(self) -> None:
        """All tensors as they were."""
        if self._begun is not None:
            part, before, count = self._begun
            with _writing(part):
                part.copy_(before)
            del self._done[count:]
            self._begun = None
        while self._done:
            axis, order = self._done[-1]
            with _writing(axis.tensor):
                part = axis.tensor.detach()[axis.rows]
                back = torch.from_numpy(np.argsort(order)).to(part.device)
                part.copy_(part.index_select(axis.dim, back))
            self._done.pop()


def _writing(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where a tensor may be written, be it made in inference mode or not."""
    return torch.inference_mode() if tensor.is_inference() else torch.no_grad()
