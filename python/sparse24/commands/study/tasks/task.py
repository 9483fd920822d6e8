"""What every task of the study has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Phase(NamedTuple):
    """A training before the task's own: a backbone on labels, an encoder on text."""

    model: nn.Module  #: what is trained; it holds modules of the task's network
    loss: Callable[[nn.Module, torch.Generator], Tensor]  #: of one batch, drawn by the generator
    share: float  #: of the task's number of steps


class Task(ABC):
    """Data and a network, trained by :meth:`loss` and judged by :meth:`score`.

    What is judged by is never trained on; calibration takes inputs of the training set.
    """

    #: What is measured, with its unit.
    metric: str
    higher_is_better = True
    #: Rows with the same name are judged by the same data: their spread is pooled.
    data: str

    @abstractmethod
    def network(self) -> nn.Module:
        """An untrained network, drawn by torch's seed."""

    @abstractmethod
    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        """The loss [] of a batch that ``draw`` chooses."""

    @abstractmethod
    def score(self, model: nn.Module) -> float:
        """Of a network in eval mode, in the unit of ``metric``."""

    @abstractmethod
    def calibration(self) -> Sequence[Any]:
        """Unlabelled batches: what the network is called with."""

    def before(self, model: nn.Module) -> Phase | None:
        """The training before, of a network that is dense."""
        return None


def windows(count: int, batch: int, draw: torch.Generator) -> Tensor:
    """[batch] rows of ``count``."""
    return torch.randint(count, (batch,), generator=draw)
