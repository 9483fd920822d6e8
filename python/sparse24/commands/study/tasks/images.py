"""Image classification: cross entropy of labels, accuracy on images of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..sources import Sources
from .task import Task, windows

BATCH = 64


class Images(Task):
    """Fashion-MNIST or digits, for a network that takes the stride of its stem.

    Args:
        which: "fashion" or "digits".
    """

    metric = "accuracy, %"

    def __init__(
        self, sources: Sources, quick: bool, make: Callable[[int], nn.Module], which: str = "fashion"
    ) -> None:
        self._images = sources.images(
            "digits" if quick else which, *((320, 200) if quick else (16000, 10000))
        )
        self.data = self._images.name
        self._make = make

    def network(self) -> nn.Module:
        return self._make(2 if self._images.x.shape[-1] > 16 else 1)

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        rows = windows(len(self._images.x), BATCH, draw)
        return F.cross_entropy(model(self._images.x[rows]), self._images.y[rows])

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        guesses = torch.cat([model(x).argmax(1) for x in torch.split(self._images.judged_x, 500)])
        return 100 * float((guesses == self._images.judged_y).float().mean())

    def calibration(self) -> Sequence[Tensor]:
        return torch.split(self._images.x[: 8 * BATCH], BATCH)
