"""What keeping weights pruned costs a step of training: with and without a Sparsifier, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ... import Sparsifier
from ...timing import interleaved_medians
from .table import Rows, Setting, Table

GOAL = 1.08
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD, momentum": lambda p: SGD(p, 1e-3, momentum=0.9),
    "AdamW, fused": lambda p: AdamW(p, 1e-4, fused=True),
    "AdamW, not fused": lambda p: AdamW(p, 1e-4),
}
LAYERS, WIDTH, BATCH = 8, 1024, 256


def step_of(
    make: Callable[[Iterable[Tensor]], Optimizer], *, enforced: bool, quick: bool
) -> Callable[[], None]:
    """Forward, backward and step of 8 x Linear(1024) at batch 256; its weights are 2:4 in any case.

    Without enforcement they fill up, which costs nothing: dense products take the same time.
    """
    torch.manual_seed(0)
    width = 64 if quick else WIDTH
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
    sparsifier = Sparsifier(model, select=["*"])
    sparsifier.prune()
    optimizer: Any = make(list(model.parameters()))
    if enforced:
        sparsifier.attach(optimizer)
    x = torch.randn(BATCH, width)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()

    step()
    return step


def tables(setting: Setting) -> list[Table]:
    """A row an optimizer."""
    caption = (
        f"A training step of {LAYERS} x Linear({WIDTH}) at batch {BATCH}, with masks enforced and without, "
        f"in turns. Asked: {GOAL:.2f}. AdamW that is not fused takes MKL's square roots of zeros: slow ones."
    )
    head = ["optimizer", "plain ms", "enforced ms", "ratio", "asked"]
    with Rows(setting, "enforcement", caption, head) as rows:
        for name, make in OPTIMIZERS.items():
            steps = [step_of(make, enforced=each, quick=setting.quick) for each in (False, True)]
            plain, enforced = interleaved_medians(steps, 4 * setting.seconds, min_rounds=5)
            ratio = f"{enforced / plain:.3f}"
            rows.add([name, f"{plain * 1e3:.1f}", f"{enforced * 1e3:.1f}", ratio, f"{GOAL:.2f}"])
    return [rows.table()]
