"""The ways in which a row's network comes to be: dense, by the talk's recipe, by others, and in int8."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from ...calibrated import oneshot, permute
from ...pruning import Sparsifier, recipes
from ...quant import convert, prepare_qat, quantize
from .rows import Row
from .tasks import Task
from .training import Watch, autocast, fit

#: Share of a training's steps that quantization-aware training takes, at a tenth of the rate.
_QAT_SHARE = 0.2


class Unit(NamedTuple):
    """What is done at once, and kept when it is done."""

    row: str
    seed: int
    way: str

    @property
    def key(self) -> str:
        """As it is told and kept."""
        return f"{self.row}/{self.seed}/{self.way}"


class Way(NamedTuple):
    """How, and from what."""

    what: str  #: as tables have it
    make: Callable[[Job], nn.Module]
    after: str = ""  #: the way whose network is the start
    keep: bool = False  #: whether other ways begin with its network
    autocast: bool = True  #: judged in the training's dtype


class Job(NamedTuple):
    """A unit in its process."""

    row: Row
    unit: Unit
    task: Task
    folder: Path
    watch: Watch

    def network(self, way: str = "") -> nn.Module:
        """An untrained network, or the one that another way has left."""
        torch.manual_seed(self.unit.seed)
        model = self.task.network()
        if way:
            model.load_state_dict(torch.load(self.path(way), weights_only=True))
        return model.eval()

    def path(self, way: str) -> Path:
        """Where a way leaves its network."""
        return self.folder / "networks" / f"{self.row.key}-{self.unit.seed}-{way}.pt"

    def fit(
        self, model: nn.Module, attach: Callable[[Optimizer], object] | None = None, share: float = 1.0
    ) -> nn.Module:
        """The row's training, or its course in a share of the steps."""
        steps = max(round(self.row.training.steps * share), 2)
        return fit(
            model,
            self.task.loss,
            self.row.training,
            self.unit.seed,
            attach=attach,
            steps=steps,
            watch=self.watch,
        )


def _dense(job: Job) -> nn.Module:
    model = job.network()
    before = job.task.before(model)
    if before is not None:
        steps = max(round(job.row.training.steps * before.share), 2)
        fit(before.model, before.loss, job.row.training, job.unit.seed, steps=steps, watch=job.watch)
    return job.fit(model)


def _again(job: Job) -> nn.Module:
    return job.fit(job.network("dense"))


def _recipe(share: float) -> Callable[[Job], nn.Module]:
    """Prune once by magnitude, repeat the training with the masks fixed."""

    def make(job: Job) -> nn.Module:
        model = job.network("dense")
        sparsifier = Sparsifier(model)
        sparsifier.prune()
        job.fit(model, sparsifier.attach, share)
        sparsifier.verify()
        return model

    return make


def _followed(start: Callable[[nn.Module, int], recipes.DynamicSparsity]) -> Callable[[Job], nn.Module]:
    """One training from scratch under a recipe."""

    def make(job: Job) -> nn.Module:
        model = job.network()
        before = job.task.before(model)
        if before is not None:
            raise ValueError(
                f"{job.row.key} has a phase before: its training from scratch is another question"
            )
        recipe = start(model, job.row.training.steps)
        job.fit(model, recipe.attach)
        recipe.finish()
        return model

    return make


def _magnitude(job: Job) -> nn.Module:
    model = job.network("dense")
    Sparsifier(model).prune()
    return model


def _permuted(job: Job) -> nn.Module:
    model = job.network("dense")
    first = job.task.calibration()[0]
    permute(model, first if isinstance(first, tuple) else (first,))
    Sparsifier(model).prune()
    return model


def _oneshot(job: Job) -> nn.Module:
    model = job.network("dense")
    oneshot(model, job.task.calibration())
    return model


def _int8(job: Job) -> nn.Module:
    model = job.network("sparse")
    quantize(model, job.task.calibration(), "mse", activations="static", when="always")
    return model


def _qat(job: Job) -> nn.Module:
    model = job.network("sparse")
    prepare_qat(model, batches=job.task.calibration()[:1])
    training = job.row.training
    slower = job.row._replace(
        training=type(training)(**{**vars(training), "rate": training.rate / 10, "dtype": "fp32"})
    )
    job._replace(row=slower).fit(model, share=_QAT_SHARE)
    convert(model)
    return model


#: Those of every row; "qat" of the rows that say so.
EVERY = {
    "dense": Way("dense", _dense, keep=True),
    "sparse": Way("2:4, the talk's recipe", _recipe(1.0), "dense", keep=True),
    "int8": Way("2:4 and int8, after training", _int8, "sparse", autocast=False),
    "again": Way("dense, trained as long", _again, "dense"),
    "qat": Way("2:4 and int8, trained for it", _qat, "sparse", autocast=False),
}
#: Those of a few rows: the questions that the talk left open.
OTHERS = {
    "magnitude": Way("pruned, not trained again", _magnitude, "dense"),
    "permuted": Way("channels permuted, pruned, not trained again", _permuted, "dense"),
    "oneshot": Way("one-shot, calibrated without labels", _oneshot, "dense"),
    "shortened": Way("the recipe in a sixth of the steps", _recipe(1 / 6), "dense"),
    "repruned": Way(
        "one training, pruned again twenty times, then frozen",
        _followed(lambda m, n: recipes.repruning(m, every=max(n // 40, 1), begin=n // 4, freeze=3 * n // 4)),
    ),
    "scratch": Way(
        "one training from scratch, SR-STE",
        _followed(lambda m, n: recipes.sr_ste(m, freeze=n, decoupled=False)),
    ),
}
WAYS = {**EVERY, **OTHERS}
#: The rows that OTHERS are run on.
OPEN_QUESTIONS = ("resnet34", "g2p")


def ways_of(row: Row) -> list[str]:
    """In the order in which they run."""
    return [
        *(way for way in EVERY if way != "qat" or row.qat),
        *(OTHERS if row.key in OPEN_QUESTIONS else ()),
    ]


def run(job: Job) -> dict[str, Any]:
    """Do a unit; what it is kept as."""
    way = WAYS[job.unit.way]
    begin = time.perf_counter()
    model = way.make(job).eval()
    trained = time.perf_counter() - begin
    if way.keep:
        path = job.path(job.unit.way)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        torch.save(model.state_dict(), draft)
        draft.replace(path)
    with autocast(job.row.training) if way.autocast else torch.no_grad():
        score = job.task.score(model)
    return {
        "score": score,
        "metric": job.task.metric,
        "higher_is_better": job.task.higher_is_better,
        "data": job.task.data,
        **size_of(job.task.network()),
        "pruned": pruned_share(model) if way.autocast else None,
        "seconds": trained,
    }


def size_of(model: nn.Module) -> dict[str, int]:
    """Parameters; the number of matrices that multiply inputs; the outputs of the widest but the head."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = [p for p in model.parameters() if p.dim() > 1 and id(p) not in embedded]
    heads = {id(p) for name, p in model.named_parameters() if name.startswith("head.")}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": len(weights),
        "width": max(p.shape[0] for p in weights if id(p) not in heads),
    }


def pruned_share(model: nn.Module) -> float:
    """Zeros among the weights that a product reads: parameters of two dims and more, embeddings left out."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = [p.detach() for p in model.parameters() if p.dim() > 1 and id(p) not in embedded]
    return sum(int((w == 0).sum()) for w in weights) / max(sum(w.numel() for w in weights), 1)
