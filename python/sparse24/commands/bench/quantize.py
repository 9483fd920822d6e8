"""int8 after sparsity: what quantization costs in accuracy on small tasks, and whether it is faster.

Each task's network is pruned in one shot (SparseGPT and refit), compressed, and then quantized in every way;
a row is the mean over samples of calibration data, which prune and quantize. The rival is the sparse network
in floating point, on the same items.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ... import to_sparse
from ...calibrated import oneshot
from ...files import FileError
from ...quant import convert, prepare_qat, quantize
from ...timing import interleaved_medians
from . import keeping, tasks
from .table import Interrupted, Setting, Table

SEEDS = (0, 1, 2)
HEAD = [
    "task", "sparse, floating", "way", "int8", "lost", "spread", "int8 layers", "x floating", "seconds",
]  # fmt: skip
#: Options of ``sparse24.quantize``; all layers, so that accuracy is that of int8 throughout.
WAYS: dict[str, dict[str, Any]] = {
    "weights alone": {"activations": None},
    "dynamic": {"activations": "dynamic"},
    "static, max": {"activations": "static"},
    "static, percentile 99.99": {"activations": "static", "method": "percentile"},
    "static, mse": {"activations": "static", "method": "mse"},
    "static, entropy": {"activations": "static", "method": "entropy"},
    "static, mse, smoothed": {"activations": "static", "method": "mse", "smooth": 0.5},
    "faster: dynamic where it is": {"activations": "dynamic", "when": "faster"},
}
AWARE = "static, fine-tuned (quantization-aware)"


class Result(NamedTuple):
    """One sample."""

    floating: float
    score: float
    layers: int
    every: int
    ratio: float  #: time of the sparse floating network over that of the int8 one
    seconds: float


def tables(setting: Setting) -> list[Table]:
    """One row a task and way.

    Raises:
        Interrupted: with the rows so far, which are also kept for ``resume``.
    """
    store = keeping.Rows("quantize", setting)
    end = time.monotonic() + 60 * setting.minutes
    rows, left = [HEAD], []
    try:
        for key, what in tasks.wanted(setting.networks).items():
            try:
                task = tasks.load(key, quick=setting.quick)
            except FileError as error:
                left.append(f"{key}: {error}")
                setting.progress(f"  {left[-1]}")
                continue
            ways = [*WAYS, *([AWARE] if hasattr(task, "fine_tune") else [])]
            made = {way: _results(f"{key} | {way}", task, way, (store, end, left, setting)) for way in ways}
            rows += [
                _row(f"{what}, {task.score_name}", way, results) for way, results in made.items() if results
            ]
    except KeyboardInterrupt:
        raise Interrupted([_table(rows, [*left, "interrupted"])]) from None
    return [_table(rows, left)]


def _table(rows: list[list[str]], left: list[str]) -> Table:
    caption = (
        "int8 after 2:4 (SparseGPT and refit, no training), against the sparse network in float32 on the "
        f"same items: means over {len(SEEDS)} samples of calibration data. Lost: what int8 costs; spread: "
        "the largest less the smallest. x floating: speed of the network on one calibration batch."
    )
    return Table("quantize", caption + (f" Left out: {'; '.join(left)}." if left else ""), rows)


def _results(
    name: str, task: tasks.Task, way: str, where: tuple[keeping.Rows, float, list[str], Setting]
) -> list[Result]:
    store, end, left, setting = where
    results = []
    for seed in SEEDS[:1] if setting.quick else SEEDS:
        key = f"{name} | sample {seed}"
        kept = store.get(key)
        if kept is None and time.monotonic() > end:
            left.append(f"{key}: the time was up")
            continue
        if kept is None:
            kept = store.put(key, list(map(repr, _run(task, seed, way, setting.seconds))))
        floating, score, layers, every, ratio, seconds = map(float, kept)
        results.append(Result(floating, score, int(layers), int(every), ratio, seconds))
        setting.progress(f"  {key} | {floating:.4f} -> {score:.4f} | {ratio:.2f}x")
    return results


def _run(task: tasks.Task, seed: int, way: str, seconds: float) -> Result:
    model = copy.deepcopy(task.dense())
    batches = task.calibration(seed)
    oneshot(model, batches, reconstruct=None)
    if way == AWARE:
        return _aware(task, model, batches, seconds)
    to_sparse(model, when="always")
    floating = task.score(model)
    twin = copy.deepcopy(model)
    begin = time.perf_counter()
    report = quantize(twin, batches, **{"when": "always", **WAYS[way]})
    spent = time.perf_counter() - begin
    layers = [row for row in report if row.kind.startswith("Sparse")]
    done = sum(row.done for row in layers)
    return Result(floating, task.score(twin), done, len(layers), _ratio(model, twin, batches, seconds), spent)


def _aware(task: Any, model: nn.Module, batches: Any, seconds: float) -> Result:
    """Both networks are fine-tuned with the same steps; one of them with int8 in its forward."""
    twin = copy.deepcopy(model)
    report = prepare_qat(twin, batches=batches[:1])
    begin = time.perf_counter()
    task.fine_tune(twin)
    spent = time.perf_counter() - begin
    convert(twin)
    task.fine_tune(model)
    to_sparse(model, when="always")
    return Result(
        task.score(model), task.score(twin), len(report.done), len(report.done),
        _ratio(model, twin, batches, seconds), spent,
    )  # fmt: skip


@torch.no_grad()
def _ratio(one: nn.Module, two: nn.Module, batches: Any, seconds: float) -> float:
    calls: list[Callable[[], object]] = [lambda: one(batches[0]), lambda: two(batches[0])]
    floating, int8 = interleaved_medians(calls, seconds)
    return floating / int8


def _row(what: str, way: str, results: list[Result]) -> list[str]:
    floating, score = (statistics.fmean(getattr(r, name) for r in results) for name in ("floating", "score"))
    lost = [r.floating - r.score for r in results]
    if "nats" in what:
        lost = [-each for each in lost]
    spread = f"{max(lost) - min(lost):.4f}" if len(lost) > 1 else "-"
    layers = f"{results[0].layers} of {results[0].every}"
    ratio = statistics.median(r.ratio for r in results)
    cells = [f"{statistics.fmean(lost):.4f}", spread, layers, f"{ratio:.2f}"]
    return [
        what,
        f"{floating:.4f}",
        way,
        f"{score:.4f}",
        *cells,
        f"{statistics.fmean(r.seconds for r in results):.1f}",
    ]
