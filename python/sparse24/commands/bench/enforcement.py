"""What keeping weights pruned costs a step of training, and what sparse products in it bring: in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ... import Sparsifier
from ...pruning import recipes
from ...timing import interleaved_medians
from .table import Rows, Setting, Table

GOAL = 1.08
OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD, momentum": lambda p: SGD(p, 1e-3, momentum=0.9),
    "AdamW, fused": lambda p: AdamW(p, 1e-4, fused=True),
    "AdamW, not fused": lambda p: AdamW(p, 1e-4),
}
LAYERS, WIDTH, BATCH = 8, 1024, 256
#: Masks and tokens of a step by sparse products.
PATTERNS, TOKENS = ("2:4", "transposable"), (256, 2048)


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


def products_of(
    pattern: str, tokens: int, dtype: torch.dtype, *, sparse: bool, quick: bool
) -> Callable[[], None]:
    """A masked step with fused AdamW, its products dense or sparse; 16 bits by autocast."""
    torch.manual_seed(0)
    width = 64 if quick else WIDTH
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
    sparsifier = Sparsifier(model, pattern=pattern, select=["*"])
    sparsifier.prune()
    optimizer = AdamW(model.parameters(), 1e-4, fused=True)
    sparsifier.attach(optimizer)
    if sparse:
        recipes.sparse_products(sparsifier, when="always")
    x = torch.randn(tokens // 8 if quick else tokens, width)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = model(x).float().square().mean()
        torch.autograd.backward(loss)
        optimizer.step()

    step()
    return step


def tables(setting: Setting) -> list[Table]:
    """What masks cost, and what sparse products bring."""
    costs = _costs(setting)
    caption = (
        f"A masked training step of {LAYERS} x Linear({WIDTH}), AdamW fused, its products dense and sparse "
        "(`recipes.sparse_products`), in turns. 2:4: forward alone; transposable: the input's gradient, too."
    )
    head = ["mask", "dtype", "tokens", "dense ms", "sparse ms", "times faster"]
    with Rows(setting, "training products", caption, head, [costs]) as rows:
        for pattern in PATTERNS:
            for dtype in (torch.float32, torch.bfloat16):
                for tokens in TOKENS:
                    steps = [
                        products_of(pattern, tokens, dtype, sparse=each, quick=setting.quick)
                        for each in (False, True)
                    ]
                    dense, sparse = interleaved_medians(steps, 4 * setting.seconds, min_rounds=5)
                    name = "bfloat16 autocast" if dtype is torch.bfloat16 else "float32"
                    cells = [f"{dense * 1e3:.1f}", f"{sparse * 1e3:.1f}", f"{dense / sparse:.2f}"]
                    rows.add([pattern, name, str(tokens), *cells])
    return [costs, rows.table()]


def _costs(setting: Setting) -> Table:
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
    return rows.table()
