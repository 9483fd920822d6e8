"""Every recipe on one small task: its accuracy, steps and time beside dense training and the talk's recipe.

A recipe's network is compared with the dense one of the same seed. Training is that of the task: SGD with
momentum, one cycle of learning rates, from the same batches in the same order.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from ... import Sparsifier, is_sparse24
from ...pruning import recipes
from ...timing import in_units
from . import keeping
from .table import Interrupted, Setting, Table
from .tasks import fashion

SEEDS = (0, 1, 2)
HEAD = ["recipe", "steps", "accuracy", "less dense", "spread", "ends in", "ms a step"]
_RATE, _BATCH = 0.1, 64
Loss = Callable[[Tensor, Tensor], Tensor]  # of inputs and outputs


class Task:
    """A training: images, labels, and as many steps as it has."""

    def __init__(self, quick: bool) -> None:
        whole = fashion.Here(quick)
        self.x, self.y = whole._x[:12800], whole._y[:12800]
        self.score = whole.score
        self.steps = 12 if quick else 400

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(self.x), (_BATCH,), generator=generator)
        return self.x[rows], self.y[rows]

    def rates(self, optimizer: Optimizer) -> list[list[float]]:
        """The learning rates of a whole training."""
        return recipes.rates_of(
            optimizer, lambda o: OneCycleLR(o, _RATE, total_steps=self.steps + 1), self.steps
        )


class Run:
    """One network in training."""

    def __init__(self, task: Task, model: nn.Module, steps: int) -> None:
        self.task, self.model, self.steps = task, model, steps
        self.optimizer = SGD(model.parameters(), _RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
        self.schedule = recipes.Replay(self.optimizer, task.rates(self.optimizer), steps)

    def train(self, loss: Loss | None = None) -> nn.Module:
        """All steps; ``loss`` is added to the cross entropy of the labels."""
        self.model.train()
        for step in range(self.steps):
            x, y = self.task.batch(step)
            outputs = self.model(x)
            total = F.cross_entropy(outputs, y)
            if loss is not None:
                total = total + loss(x, outputs)
            self.optimizer.zero_grad()
            torch.autograd.backward(total)
            self.optimizer.step()
            self.schedule.step()
        return self.model.eval()


def fresh(seed: int) -> nn.Module:
    """An untrained network."""
    torch.manual_seed(seed)
    return fashion.network()


def retrained(task: Task, dense: nn.Module, seed: int, steps: int, loss: Loss | None = None) -> nn.Module:
    """Prune once by magnitude, and train again with the masks fixed."""
    model = copy.deepcopy(dense)
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    run = Run(task, model, steps)
    sparsifier.attach(run.optimizer)
    return run.train(loss)


def followed(make: Callable[[nn.Module, int], recipes.DynamicSparsity]) -> Callable[..., nn.Module]:
    """One training from scratch under a recipe."""

    def train(task: Task, dense: nn.Module, seed: int, steps: int) -> nn.Module:
        model = fresh(seed)
        run = Run(task, model, steps)
        recipe = make(model, steps)
        recipe.attach(run.optimizer)
        run.train()
        recipe.finish()
        return model

    return train


def distilled(task: Task, dense: nn.Module, seed: int, steps: int) -> nn.Module:
    def follow(x: Tensor, outputs: Tensor) -> Tensor:
        with torch.no_grad():
            target = dense(x)
        return recipes.distillation(outputs, target)

    return retrained(task, dense, seed, steps, follow)


def two_phases(task: Task, dense: nn.Module, seed: int, steps: int) -> nn.Module:
    """Pruned and trained as one network; then a new head on the carried layers."""
    first = copy.deepcopy(dense)
    sparsifier = Sparsifier(first)
    sparsifier.prune()
    run = Run(task, first, steps // 2)
    sparsifier.attach(run.optimizer)
    run.train()
    model = fresh(seed)
    kept = {name: value for name, value in first.state_dict().items() if not name.startswith("15.")}
    model.load_state_dict(kept, strict=False)
    carried, _ = recipes.carry(sparsifier, model)
    run = Run(task, model, steps - steps // 2)
    carried.attach(run.optimizer)
    return run.train()


class Way(NamedTuple):
    """How a network comes to be, and how many steps it takes, as a share of a training."""

    train: Callable[..., nn.Module]
    share: float = 1.0


def ways() -> dict[str, Way]:
    """The rows: what is trained again begins with the dense network, the others begin anew."""
    return {
        "dense, trained again as long": Way(lambda t, d, s, n: Run(t, copy.deepcopy(d), n).train()),
        "the talk's: prune once, train again": Way(retrained),
        "shortened: a sixth of the steps, all rates": Way(retrained, 1 / 6),
        "distilled from the dense one": Way(distilled),
        "two phases, a new head in the second": Way(two_phases),
        "warm-up: half dense, half sparse": Way(followed(lambda m, n: recipes.warm_up(m, steps=n // 2))),
        "pruned again ten times, then frozen": Way(
            followed(
                lambda m, n: recipes.repruning(m, every=max(n // 20, 1), begin=n // 4, freeze=3 * n // 4)
            )
        ),
        "from scratch, SR-STE": Way(followed(lambda m, n: recipes.sr_ste(m, freeze=n))),
        "transposable, dense finish": Way(
            followed(lambda m, n: recipes.transposable(m, dense_from=5 * n // 6))
        ),
    }


def tables(setting: Setting) -> list[Table]:
    """A row a recipe.

    Raises:
        FileError: the images are not installed.
        Interrupted: with the rows so far, which are also kept for ``resume``.
    """
    task, store = Task(setting.quick), keeping.Rows("recipes", setting)
    seeds = SEEDS[:1] if setting.quick else SEEDS
    found: dict[str, list[list[str]]] = {}
    try:
        for seed in seeds:
            dense = Run(task, fresh(seed), task.steps).train()
            base = task.score(dense)
            found.setdefault("dense, once", []).append([repr(base), "0.0", "dense", "nan", str(task.steps)])
            for name, way in ways().items():
                key = f"{name} | {seed}"
                cells = store.get(key)
                if cells is None:
                    cells = store.put(key, _measured(task, dense, base, seed, way))
                setting.progress(f"  {key} | {float(cells[0]):.4f}")
                found.setdefault(name, []).append(cells)
    except KeyboardInterrupt:
        raise Interrupted([_table(found)]) from None
    return [_table(found)]


def _measured(task: Task, dense: nn.Module, base: float, seed: int, way: Way) -> list[str]:
    steps = max(round(task.steps * way.share), 2)
    begin = time.perf_counter()
    model = way.train(task, dense, seed, steps)
    spent = time.perf_counter() - begin
    weights: list[Any] = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    sparse = sum(is_sparse24(weight) for weight in weights[1:-1]) == len(weights) - 2
    score = task.score(model)
    return [repr(score), repr(base - score), "sparse" if sparse else "dense", repr(spent / steps), str(steps)]


def _table(found: dict[str, list[list[str]]]) -> Table:
    rows = [HEAD]
    for name, results in found.items():
        scores, lost = ([float(cells[i]) for cells in results] for i in (0, 1))
        times = statistics.median(float(cells[3]) for cells in results)
        spread = max(scores) - min(scores)
        rows.append(
            [name, results[0][4], f"{statistics.fmean(scores):.4f}", f"{statistics.fmean(lost):+.4f}",
             f"{spread:.4f}", results[0][2], "-" if math.isnan(times) else in_units(times)]
        )  # fmt: skip
    seeds = max(map(len, found.values()), default=0)
    caption = (
        f"Recipes on Fashion-MNIST, a small CNN on 12,800 images: means over {seeds} seeds. Less dense: the "
        "accuracy of the dense network, trained once, less the row's, paired by seed; spread: over seeds. "
        "What is trained again had the dense training before."
    )
    return Table("recipes", caption, rows)
