"""The talk's comparison: one transformer, pruned in several ways from one dense start, and half as wide.

The network is a byte-level language model. All but the half-wide one begin with the same dense weights, are
pruned once by magnitude, and train on with the masks fixed, by the schedule of the dense training. The narrow
one is trained from nothing, the dense training's steps and then as many again: it has had as much.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...masks import magnitude_mask
from ...pruning import Sparsifier
from ..bench.tasks.bytes import Gpt
from .rows import Training
from .sources import Sources
from .tasks.language import Bytes
from .training import Watch, fit
from .ways import Unit

KEY = "comparison"
#: The ways, and what tables call them; "start" is the dense training that the others go on from.
WAYS = {
    "start": "dense, before",
    "dense": "dense",
    "half": "half as wide, dense",
    "blocks": "blocks of 32 x 32, half of them",
    "2:4": "2:4",
    "half-zeros": "unstructured, 50 %",
    "three-quarters": "unstructured, 75 %",
}
TRAINING = Training("adamw", 2e-3, 500, decay=0.1)
_WIDTH, _DEPTH, _HEADS, _CONTEXT, _POINTS = 128, 4, 4, 128, 12


def block_mask(weight: Tensor, size: int = 32) -> Tensor:
    """Half of the blocks [size, size] of a weight [out, in], those of the largest sums of magnitudes."""
    out, inputs = weight.shape
    if out % size or inputs % size:
        raise ValueError(f"a weight of whole blocks of {size} x {size} is needed, not {out} x {inputs}")
    sums = weight.abs().view(out // size, size, inputs // size, size).sum((1, 3))
    kept = torch.zeros(sums.numel(), dtype=torch.bool)
    kept[sums.flatten().topk(sums.numel() // 2).indices] = True
    return kept.view_as(sums).repeat_interleave(size, 0).repeat_interleave(size, 1)


def share_mask(weight: Tensor, kept: float) -> Tensor:
    """The largest magnitudes of a matrix, a share of them."""
    count = round(weight.numel() * kept)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.abs().flatten().topk(count).indices] = True
    return mask.view_as(weight)


def masks_of(model: nn.Module, way: str) -> dict[str, Tensor]:
    """A mask for every weight that a Sparsifier prunes, by its name; none for a way that is dense."""
    maskers: dict[str, Callable[[Tensor], Tensor]] = {
        "blocks": block_mask,
        "2:4": magnitude_mask,
        "half-zeros": functools.partial(share_mask, kept=0.5),
        "three-quarters": functools.partial(share_mask, kept=0.25),
    }
    if way not in maskers:
        return {}
    sparsifier = Sparsifier(copy.deepcopy(model))
    sparsifier.prune()
    weights = dict(model.named_parameters())
    return {name: maskers[way](weights[name].detach()) for name in sparsifier.masks}


def run(unit: Unit, sources: Sources, folder: Path, quick: bool, watch: Watch) -> dict[str, Any]:
    """A way with a seed: its loss at every point of the training."""
    task = Bytes(sources, quick, lambda: Gpt(_WIDTH, _DEPTH, _HEADS), _CONTEXT, 24)
    width = _WIDTH // 2 if unit.way == "half" else _WIDTH
    torch.manual_seed(unit.seed)
    model: nn.Module = Gpt(width, _DEPTH, _HEADS)
    start = folder / "networks" / f"{KEY}-{unit.seed}-start.pt"
    training = TRAINING if not quick else Training("adamw", 2e-3, 6, decay=0.1)
    if unit.way not in ("start", "half"):
        model.load_state_dict(torch.load(start, weights_only=True))
    masks = masks_of(model, unit.way)
    curve: list[tuple[int, float]] = []
    every = max(training.steps // _POINTS, 1)

    def look(done: int, step: int) -> None:
        watch(step)
        if step % every == 0 or step == training.steps:
            model.eval()
            curve.append((done + step, task.score(model) * math.log(2)))
            model.train()

    named = dict(model.named_parameters())

    def enforce() -> None:
        with torch.no_grad():
            for name, mask in masks.items():
                named[name].mul_(mask)

    def attach(optimizer: Optimizer) -> None:
        optimizer.register_step_post_hook(lambda *_: enforce())

    enforce()
    curve.append((0, task.score(model.eval()) * math.log(2)))
    if unit.way == "half":
        fit(model, task.loss, training, unit.seed, watch=functools.partial(look, -training.steps))
    fit(model, task.loss, training, unit.seed, attach=attach, watch=functools.partial(look, 0))
    if unit.way == "start":
        start.parent.mkdir(parents=True, exist_ok=True)
        draft = start.with_suffix(".draft")
        torch.save(model.state_dict(), draft)
        draft.replace(start)
    kept = sum(int(mask.sum()) for mask in masks.values()) / max(sum(m.numel() for m in masks.values()), 1)
    return {
        "score": curve[-1][1], "metric": "validation loss, nats a byte", "higher_is_better": False,
        "data": task.data, "curve": curve, "kept": kept if masks else 1.0,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
