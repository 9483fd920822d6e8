"""Part b: a network that is there, pruned without labels or training, in this machine's best dtype."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ... import Sparsifier, oneshot, to_sparse
from ...choose.example import Arguments
from ...timing import Pair, interleaved_medians
from ..bench.networks import memory_of
from .outcome import Outcome, Progress, in_words, save_both, size_row, speed_row
from .subjects import Score, Subject, subject

TITLE = "b. no training"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: The batch that dtypes are compared at, and memory is measured with.
BATCH = 32


class Forms(NamedTuple):
    """A network in one dtype."""

    dense: nn.Module
    fast: nn.Module  #: those layers compressed that are faster so here
    slower: list[str]  #: what stays dense in ``fast`` for speed


def run(quick: bool, out: Path, progress: Progress) -> Outcome:
    """Prune, choose a dtype, compress, and compare quality, speed and memory; the two files go to ``out``."""
    batches = (1, BATCH) if quick else (1, 8, BATCH, 128)
    seconds = 0.7 if quick else 2.5
    progress.start(TITLE, 8 + len(DTYPES) + len(batches))
    progress.now("load")
    case = subject(quick, progress)
    naive, pruned = copy.deepcopy(case.dense), copy.deepcopy(case.dense)
    progress.now("prune by magnitude, for comparison")
    Sparsifier(naive).prune()
    progress.now("prune by SparseGPT, refit what is kept")
    begin = time.perf_counter()
    oneshot(pruned, case.calibration, reconstruct=None)
    spent = time.perf_counter() - begin
    forms = {}
    for name, dtype in DTYPES.items():
        progress.now(f"convert to {name}")
        forms[name] = _form(case, pruned, dtype, batches)
    progress.now("compare dtypes")
    in_dtypes = _in_dtypes(case, forms, seconds)
    best = min(in_dtypes, key=lambda name: in_dtypes[name].sparse)
    form = forms[best]
    compressed = copy.deepcopy(pruned).to(DTYPES[best])
    report = to_sparse(compressed, when="always")
    progress.now("judge")
    judged = {"dense": case.judge(case.dense), "magnitude": case.judge(naive), "2:4": case.judge(compressed)}
    with torch.inference_mode():
        progress.now("layers alone")
        pairs = _layer_speeds(case, form.dense, compressed, seconds)
        for batch in batches:
            progress.now(f"batch {batch}")
            x = case.inputs(batch)
            calls = functools.partial(form.dense, x), functools.partial(form.fast, x)
            pairs[f"whole network, batch {batch}"] = Pair.measure(*calls, seconds)
        progress.now("memory")
        arguments: Arguments = ((case.inputs(BATCH),), {})
        held = memory_of(form.dense, arguments), memory_of(compressed, arguments)
    sizes = {
        "file": save_both(form.dense, compressed, out, "oneshot"),
        "its pruned layers": (
            sum(row.bytes_before for row in report.done),
            sum(row.bytes_after for row in report.done),
        ),
        f"memory: weights, and a pass of batch {BATCH}": held,
    }
    pairs |= {f"whole network, batch {BATCH}, {name}": in_dtypes[name] for name in forms if name != best}
    table: list[tuple[str, ...]] = [("what", f"dense, {best}", f"2:4, {best}", "ratio")]
    table += _quality(case.scores, judged)
    table += [speed_row(name, pair) for name, pair in pairs.items()]
    table += [size_row(name, both) for name, both in sizes.items()]
    data = {
        "network": case.name,
        "dtype": best,
        "seconds": {name: {"dense": pair.dense, "sparse": pair.sparse} for name, pair in pairs.items()},
        "bytes": sizes,
        "scores": [dataclasses.asdict(score) for score in case.scores],
        "quality": judged,
        "pruning_seconds": spent,
        "tokens": list(case.inputs(BATCH).shape),
    }
    notes = [
        f"{case.note[0].upper()}{case.note[1:]}.",
        f"{len(report.done)} of {len(report)} layers are 2:4, by SparseGPT and a refit of what is kept, in "
        f"{spent:.0f} s, without labels or training; inputs are {case.inputs(1).shape[1]} tokens long.",
        f"{best} is where the sparse network is fastest here, of {', '.join(DTYPES)}. Quality is of dense "
        f"in fp32, and of compressed in {best}.",
        case.more,
    ]
    if form.slower:
        stay = f"{len(form.slower)} of them stay dense where speed counts"
        notes.append(f"{stay}; the first: {form.slower[0]}.")
    first, (before, after) = case.scores[0], sizes["its pruned layers"]
    score = {name: first.text.format(values[0]) for name, values in judged.items()}
    one, many = (in_words(pairs[f"whole network, batch {batch}"]) for batch in (1, BATCH))
    short = (
        f"Without training, {case.name}: {first.name}: {score['dense']} dense, {score['2:4']} as 2:4 by "
        f"SparseGPT and a refit, {score['magnitude']} by magnitude. In {best}: {one} at batch 1, {many} at "
        f"{BATCH}, pruned layers {before / after:.2f}x smaller."
    )
    return Outcome(f"{TITLE}: {case.name}", short, table, notes, data)


def _form(case: Subject, pruned: nn.Module, dtype: torch.dtype, batches: Sequence[int]) -> Forms:
    fast = copy.deepcopy(pruned).to(dtype)
    chosen = to_sparse(fast, example_inputs=[case.inputs(batch) for batch in (1, max(batches))])
    slower = [f"{row.name} ({row.reason})" for row in chosen.left if row.reason.endswith("stays dense")]
    return Forms(copy.deepcopy(case.dense).to(dtype), fast, slower)


@torch.inference_mode()
def _in_dtypes(case: Subject, forms: dict[str, Forms], seconds: float) -> dict[str, Pair]:
    """Seconds of each network in each dtype, all in turns."""
    x = case.inputs(BATCH)
    models = [model for form in forms.values() for model in (form.dense, form.fast)]
    times = iter(interleaved_medians([functools.partial(model, x) for model in models], 2 * seconds))
    return {name: Pair(next(times), next(times)) for name in forms}


def _layer_speeds(case: Subject, dense: nn.Module, sparse: nn.Module, seconds: float) -> dict[str, Pair]:
    """Layers of the usual shapes, each at the tokens of one input and of a batch."""
    pairs = {}
    for name in case.layers:
        both = dense.get_submodule(name), sparse.get_submodule(name)
        outputs, inputs = both[0].weight.shape  # type: ignore[misc]
        for batch in (1, BATCH):
            tokens = case.inputs(batch).numel()
            x = torch.randn(tokens, int(inputs)).to(both[0].weight.dtype)  # type: ignore[arg-type]
            calls = [functools.partial(layer, x) for layer in both]
            label = f"{name.rpartition('.')[2]} {inputs}->{outputs}, {tokens} tokens"
            pairs[label] = Pair.measure(calls[0], calls[1], seconds / 4)
    return pairs


def _quality(scores: Sequence[Score], judged: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """A row a score; the ratio's place says what magnitude alone gives."""
    return [
        (
            score.name,
            score.text.format(judged["dense"][index]),
            score.text.format(judged["2:4"][index]),
            f"by magnitude alone: {score.text.format(judged['magnitude'][index])}",
        )
        for index, score in enumerate(scores)
    ]
