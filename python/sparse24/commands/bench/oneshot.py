"""Pruning without retraining: every method on small tasks, and what its loops cost against plain torch.

Each row is the mean over calibration samples, with their spread; a task's network is the same in all rows.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...calibrated import methods, oneshot, permute
from ...files import FileError
from ...timing import interleaved_medians
from . import keeping, tasks
from .table import Interrupted, Setting, Table

SEEDS = (0, 1, 2)
HEAD = ["task", "dense", "method", "score", "spread", "won back", "seconds"]
#: Options of ``sparse24.oneshot``, and whether channels are permuted first.
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude", "refit": 0, "reconstruct": None, "bias": False},
    "sparsegpt, refit": {"reconstruct": None},
    "defaults (sparsegpt, refit, blocks trained)": {},
    "sparsegpt as published": {"refit": 0, "reconstruct": None, "bias": False},
    "wanda": {"method": "wanda", "refit": 0, "reconstruct": None, "bias": False},
    "wanda, refit": {"method": "wanda", "reconstruct": None},
    "ria, refit": {"method": "ria", "reconstruct": None},
    "magnitude, refit": {"method": "magnitude", "reconstruct": None},
    "admm": {"method": "admm", "refit": 0, "reconstruct": None},
    "admm, refit": {"method": "admm", "reconstruct": None},
    "channels permuted, magnitude": {
        "method": "magnitude", "refit": 0, "reconstruct": None, "bias": False, "permute": True,
    },
    "channels permuted, sparsegpt, refit": {"reconstruct": None, "permute": True},
    "magnitude, refit, blocks trained for 200 steps": {"method": "magnitude", "steps": 200},
    "defaults, blocks trained for 200 steps": {"steps": 200},
    "defaults, then the whole network": {"reconstruct": "network"},
    "defaults, blocks trained for 600 steps": {"steps": 600},
}  # fmt: skip
#: Rows of SparseGPT's loop, refit and ADMM.
SHAPES = ((1024, 1024), (4096, 1024))


class Result(NamedTuple):
    """One calibration sample."""

    score: float
    seconds: float


def tables(setting: Setting) -> list[Table]:
    """The tasks, then the loops.

    Raises:
        Interrupted: with the rows so far, which are also kept for ``resume``.
    """
    samples = _Samples(keeping.Rows("oneshot", setting), time.monotonic() + 60 * setting.minutes, [], setting)
    rows = [HEAD]
    try:
        for key, what in tasks.wanted(setting.networks).items():
            try:
                task = tasks.load(key, quick=setting.quick)
            except FileError as error:
                samples.left.append(f"{key}: {error}")
                setting.progress(f"  {samples.left[-1]}")
                continue
            rows += samples.rows_of(key, what, task)
    except KeyboardInterrupt:
        raise Interrupted([_table(rows, [*samples.left, "interrupted"])]) from None
    return [_table(rows, samples.left), loops(setting)]


class _Samples(NamedTuple):
    """Where results are kept, until when there is time, and what was left out."""

    store: keeping.Rows
    end: float
    left: list[str]
    setting: Setting

    def rows_of(self, key: str, what: str, task: tasks.Task) -> list[list[str]]:
        """The rows of a task."""
        dense = task.dense()
        best = naive = task.score(dense)
        rows: list[list[str]] = []
        for name, way in WAYS.items():
            results = self._results(f"{key} | {name}", dense, task, way)
            if results and name == "magnitude":
                naive = results[0].score
            if results:
                rows.append(_row(f"{what}, {task.score_name}", name, results, (best, naive)))
        return rows

    def _results(self, name: str, dense: nn.Module, task: tasks.Task, way: Mapping[str, Any]) -> list[Result]:
        results, missing = [], 0
        for seed in SEEDS[:1] if self.setting.quick else SEEDS:
            key = f"{name} | sample {seed}"
            kept = self.store.get(key)
            if kept is None and time.monotonic() > self.end:
                missing += 1
                continue
            if kept is None:
                result = _run(dense, task, seed, way)
                kept = self.store.put(key, [repr(result.score), repr(result.seconds)])
            results.append(Result(*map(float, kept)))
            self.setting.progress(f"  {key} | {results[-1].score:.4f} | {results[-1].seconds:.0f} s")
        if missing:
            self.left.append(f"{name} ({missing} of {len(SEEDS)} samples: the time was up)")
        return results


def _table(rows: list[list[str]], left: list[str]) -> Table:
    caption = (
        f"One-shot pruning of all layers that a Sparsifier prunes, without labels: mean over {len(SEEDS)} "
        "samples of calibration data. Spread: their largest less their smallest. Won back: of what "
        "magnitude loses. Seconds: of pruning, this machine. Defaults: of sparse24.oneshot."
    )
    return Table("oneshot", caption + (f" Left out: {'; '.join(left)}." if left else ""), rows)


def _run(dense: nn.Module, task: tasks.Task, seed: int, way: Mapping[str, Any]) -> Result:
    model = copy.deepcopy(dense)
    batches = task.calibration(seed)
    begin = time.perf_counter()
    if way.get("permute"):
        permute(model, batches[0])
    oneshot(model, batches, **{key: value for key, value in way.items() if key != "permute"})
    seconds = time.perf_counter() - begin
    return Result(task.score(model), seconds)


def _row(what: str, name: str, results: list[Result], ends: tuple[float, float]) -> list[str]:
    best, naive = ends
    scores = [result.score for result in results]
    mean = statistics.fmean(scores)
    won = (mean - naive) / (best - naive) if best != naive else 0.0
    spread = f"{max(scores) - min(scores):.4f}" if len(scores) > 1 else "-"
    seconds = statistics.fmean(result.seconds for result in results)
    return [what, f"{best:.4f}", name, f"{mean:.4f}", spread, f"{won:.0%}", f"{seconds:.0f}"]


def loops(setting: Setting) -> Table:
    """Time and output error of methods on one matrix, against the published algorithm in plain torch."""
    head = [
        "what",
        "rows x columns",
        "torch ms",
        "ms",
        "ratio",
        "same mask",
        "output error",
        "of SparseGPT's",
    ]
    rows = [head]
    for shape in SHAPES[:1] if setting.quick else SHAPES:
        rows += _loop_rows(*shape, setting.seconds)
    caption = (
        "SparseGPT (mask every four columns, blocks of 128), refit in 10 steps and ADMM on a random matrix "
        "with correlated inputs. Torch: the published algorithm, column by column; in turns in one process."
    )
    return Table("oneshot-loops", caption, rows)


def _loop_rows(rows: int, columns: int, seconds: float) -> list[list[str]]:
    generator = torch.Generator().manual_seed(24)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4096, columns, generator=generator) @ (torch.eye(columns) + 2 * mixing)
    moments = inputs.t() @ inputs / len(inputs)
    found: dict[str, tuple[Tensor, Tensor]] = {
        "SparseGPT": methods.sparsegpt(weight, moments),
        "published": published(weight, moments),
    }
    mask, updated = found["SparseGPT"]
    found["refit"] = mask, methods.refit(weight, mask, moments, 10, updated)
    found["ADMM"] = methods.admm(weight, moments)
    error = methods.output_error(weight, updated, moments)
    calls: list[Callable[[], object]] = [
        lambda: published(weight, moments),
        lambda: methods.sparsegpt(weight, moments),
    ]
    slow, fast = interleaved_medians(calls, seconds, min_rounds=3)
    refit, admm = interleaved_medians(
        [lambda: methods.refit(weight, mask, moments, 10, updated), lambda: methods.admm(weight, moments)],
        seconds,
        min_rounds=2,
    )
    times = {"SparseGPT": (slow, fast), "refit": (0.0, refit), "ADMM": (0.0, admm)}
    made = []
    for name, (theirs, ours) in times.items():
        own = methods.output_error(weight, found[name][1], moments)
        same = float((found[name][0] == found["published"][0]).float().mean())
        versus = [f"{theirs * 1e3:.0f}", f"{ours * 1e3:.0f}", f"{theirs / ours:.1f}", f"{same:.2%}"]
        cells = versus if theirs else ["-", f"{ours * 1e3:.0f}", "-", "-"]
        made.append([name, f"{rows}x{columns}", *cells, f"{own:.4f}", f"{own / error:.2f}"])
    return made


def published(weight: Tensor, moments: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """SparseGPT as its authors' code runs it (Frantar and Alistarh 2023): mask and kept weights."""
    w = weight.clone()
    h = moments.clone()
    columns = h.shape[0]
    h.diagonal().add_(methods.DAMP * h.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    mask = torch.ones_like(w, dtype=torch.bool)
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        part, factor = w[:, begin:end].clone(), inverse[begin:end, begin:end]
        done, errors = torch.zeros_like(part), torch.zeros_like(part)
        for i in range(end - begin):
            if i % 4 == 0:
                saliency = part[:, i : i + 4].square() / factor.diagonal()[i : i + 4].square()
                lost = saliency.topk(2, dim=1, largest=False).indices
                mask[:, begin + i : begin + i + 4].scatter_(1, lost, False)
            column = part[:, i]
            kept = column * mask[:, begin + i]
            done[:, i] = kept
            error = (column - kept) / factor[i, i]
            part[:, i:] -= error.unsqueeze(1) @ factor[i, i:].unsqueeze(0)
            errors[:, i] = error
        w[:, begin:end] = done
        w[:, end:] -= errors @ inverse[begin:end, end:]
    return mask, w
