"""A small CNN on Fashion-MNIST, 131 thousand weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....files import FileError
from ...demo import recipe
from .trained import trained

_BATCH = 64


def network() -> nn.Module:
    """Three stages of a 3x3 convolution and pooling, and two linear layers."""
    stages: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
        stages += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10))


class Here:
    """Accuracy on the 10,000 test images; calibrated on images of the training set, without labels."""

    score_name = "accuracy"
    higher_is_better = True

    def __init__(self, quick: bool) -> None:
        files = [recipe.FASHION / f"{name}.gz" for name in recipe._FASHION_FILES]
        if not all(path.exists() for path in files):
            raise FileError(
                f"{recipe.FASHION}: No such file or directory: apt-get install dataset-fashion-mnist"
            )
        images, labels, tests, answers = (recipe.read_idx(path) for path in files)
        some = 640 if quick else len(images)
        self._x, self._y = images[:some, None].float() / 255, labels[:some].long()
        self._tests, self._answers = tests[:some, None].float() / 255, answers[:some].long()
        self._epochs = 1 if quick else 4

    def dense(self) -> nn.Module:
        torch.manual_seed(24)
        return trained(f"tasks/fashion-{len(self._x)}-{self._epochs}", network(), self._fit)

    def calibration(self, seed: int) -> Sequence[Any]:
        order = torch.randperm(len(self._x), generator=torch.Generator().manual_seed(seed))
        return list(self._x[order[: 16 * _BATCH]].split(_BATCH))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        parts: Sequence[Tensor] = self._tests.split(500)  # type: ignore[no-untyped-call]
        guesses = torch.cat([model(part).argmax(1) for part in parts])
        return float((guesses == self._answers).float().mean())

    def fine_tune(self, model: nn.Module) -> None:
        """One epoch more with labels, from a small learning rate; pruned weights stay zero."""
        masks = [(p, p.detach() != 0) for p in model.parameters() if p.dim() > 1]
        self._fit(model, epochs=1, rate=0.01, masks=masks)

    def _fit(
        self,
        model: nn.Module,
        epochs: int = 0,
        rate: float = 0.1,
        masks: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        epochs = epochs or self._epochs
        steps = epochs * -(-len(self._x) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for epoch in range(epochs):
            order = torch.randperm(len(self._x), generator=torch.Generator().manual_seed(epoch))
            for batch in torch.split(order, _BATCH):
                loss = F.cross_entropy(model(self._x[batch]), self._y[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    for parameter, mask in masks:
                        parameter.mul_(mask)
        model.eval()
