"""``sparse24.quantize``: int8 for the layers of a 2:4 network, calibrated, after training or without it."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..calibrated.blocks import checked_batches, run_first
from ..choose.measured import Chooser
from ..log import progress as logged
from ..nn import convert
from ..nn.int8 import ACTIVATIONS, quantize_rows
from ..nn.kinds import ProductLayer
from ..nn.swap import set_fused_paths
from ..pruning.prunable import unwrap
from ..pruning.running import quiet
from ..pruning.sharding import refuse_sharded
from ..report import Report, Row
from ..timing import Pair
from .chain import chain
from .folding import Undo, fold_batch_norms, migrate_outliers
from .observers import LEVELS, METHODS, threshold
from .outcome import Way, report_of, row_chained, row_of, store
from .watching import Noise, Seen, compare, observe

Progress = Callable[[str], None]
#: Batches that int8 is compared on.
_COMPARED = 2


def quantize(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    method: str = "max",
    *,
    activations: str | None = "dynamic",
    percentile: float = 99.99,
    skip: Sequence[str] = (),
    min_sqnr: float = -math.inf,
    budget: float = 0.0,
    smooth: float | None = None,
    fold: bool = True,
    when: Literal["faster", "always"] = "faster",
    symmetric: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Make the compressed layers of ``model`` int8, in place: first sparse, then quantized.

    Weights are symmetric, rounded to nearest, with a scale for each output channel, so zeros stay exact and
    2:4 stays 2:4. Dense 2:4 layers are compressed first. Outputs keep the network's dtype, but between two
    static layers of which one directly follows the other (:func:`~sparse24.quant.chain`). The same state_dict
    loads on a CPU and on a GPU.

    Args:
        model: converted by :func:`sparse24.to_sparse`, or pruned to 2:4 and dense. It is for inference then.
        batches: unlabelled, as :func:`sparse24.oneshot` takes them. Needed for "static", ``smooth``; without
            them nothing is compared or timed either, and batch norms are not folded.
        method: how "static" chooses a threshold from all inputs of a layer: "max", "percentile", "mse" (least
            squared error) or "entropy" (least divergence, as in TensorRT).
        activations: "dynamic": inputs become int8 by a scale of each token (each image of a convolution).
            "static": by one scale a layer, which ``batches`` tell. ``None``: the weight alone is int8.
        percentile: of magnitudes, for that method, above 50 up to 100.
        skip: names or patterns of layers that stay floating.
        min_sqnr: dB of signal to quantization noise in a layer's outputs, below which it stays floating.
        budget: share, from 0 to 1, of the weights that may stay floating: those of the noisiest layers.
        smooth: SmoothQuant's migration strength, 0 to 1 (0.5 is usual): outliers of channels move from the
            output of a norm into the weights of the linear layers that read it.
        fold: fold batch norms into the convolution before them, where outputs stay the same.
        when: "faster": a layer that int8 makes slower on this CPU, on the calls of the first batch, stays
            floating (ties within 3 % become int8); "always": it does not.
        symmetric: only true: an asymmetric zero point would make pruned weights others than zero.
        progress: told of each batch and layer; the logger "sparse24" is by default.

    Returns:
        One row a layer: its scale, its SQNR, its times, or why it stays floating.

    Raises:
        TypeError: no module, or batches of another kind.
        ValueError: an unknown word, batches that are missing, a network without 2:4 layers, one that is int8
            already, inputs or weights with NaN or Inf, ``symmetric=False``. The model is as it was then, as
            it is after an interruption.
    """
    way = Way(method, activations, percentile, min_sqnr, budget, when)
    _check(model, way, symmetric, smooth, batches is None)
    kept = None if batches is None else checked_batches(batches)
    refuse_sharded(model, "quantize")
    network, said = unwrap(model), progress or logged
    undo: list[Undo] = []
    try:
        undo.append(_compress(network))
        layers, left = _layers(network, skip)
        with quiet(network), torch.no_grad():
            folded: list[Row] = []
            seen: dict[str, Seen] = {}
            noises: dict[str, Noise] = {}
            times: dict[str, Pair] = {}
            if kept is not None:
                run_first(network, kept[0])
                if fold:
                    folded, back = fold_batch_norms(network, kept[0])
                    undo += back
                seen = observe(
                    network, layers, kept, lambda n: said(f"quantize: batch {n + 1} of {len(kept)}")
                )
                if smooth is not None:
                    channels = {n: s.channels for n, s in seen.items() if s.channels is not None}
                    moved, back = migrate_outliers(network, kept[0], layers, channels, smooth)
                    undo += back
                    if moved:
                        seen = observe(network, layers, kept, lambda _: None)
            twins = {name: _twin(name, layer, seen.get(name), way) for name, layer in layers.items()}
            spared: set[str] = set()
            if kept is not None:
                reached = {name: twin for name, twin in twins.items() if twin is not None and name in seen}
                noises = compare(network, layers, reached, kept[:_COMPARED])
                spared = _noisiest(layers, noises, budget)
                times = _times(layers, reached, seen, said) if when == "faster" else {}
    except BaseException:
        for each in reversed(undo):
            each()
        raise
    rows = [
        store(name, layer, twins[name], way, (noises.get(name), times.get(name)), is_spared=name in spared)
        for name, layer in layers.items()
    ]
    if activations == "static" and kept is not None:
        chained = dict(chain(network, kept[0]))
        rows = [row_chained(row, chained) for row in rows]
    return report_of(network, [*rows, *left, *folded])


def _check(model: nn.Module, way: Way, symmetric: bool, smooth: float | None, without: bool) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize needs a torch.nn.Module, not {type(model).__name__}")
    if way.method not in METHODS:
        raise ValueError(f"method {way.method!r} is not one of {', '.join(METHODS)}")
    if way.activations not in ACTIVATIONS:
        raise ValueError(f"activations must be 'dynamic', 'static' or None, not {way.activations!r}")
    if not symmetric:
        raise ValueError(
            "symmetric=False: with a zero point a pruned weight would be stored as another number than zero, "
            "and 2:4 would be lost; scales are symmetric"
        )
    if way.when not in ("faster", "always"):
        raise ValueError(f"when must be 'faster' or 'always', not {way.when!r}")
    if not 50 < way.percentile <= 100:
        raise ValueError(f"percentile must be above 50, up to 100, not {way.percentile}")
    if not 0 <= way.budget <= 1:
        raise ValueError(f"budget is a share of weights, from 0 to 1, not {way.budget}")
    if smooth is not None and not 0 <= smooth <= 1:
        raise ValueError(f"smooth is a strength from 0 to 1, not {smooth}")
    needing = {
        "activations='static'": way.activations == "static",
        "smooth": smooth is not None,
        "budget": way.budget > 0,
    }
    if without and any(needing.values()):
        raise ValueError(f"{next(k for k, asked in needing.items() if asked)} needs batches to calibrate on")


def _compress(model: nn.Module) -> Undo:
    """Compress the dense layers that are 2:4; how to take it back, the modules themselves included."""
    held = [(module, dict(module._modules), dict(module._parameters)) for module in model.modules()]
    if not isinstance(model, ProductLayer):
        convert.to_sparse(model)

    def back() -> None:
        for module, children, parameters in held:
            module._modules.update(children)
            module._parameters.update(parameters)
        set_fused_paths(model)

    return back


def _layers(model: nn.Module, skip: Sequence[str]) -> tuple[dict[str, ProductLayer], list[Row]]:
    """The layers to become int8, each once, and rows of those that do not."""
    every = {n: m for n, m in model.named_modules() if isinstance(m, ProductLayer)}
    if not every:
        raise ValueError(
            "the model has no 2:4 layer: prune it first (Sparsifier, oneshot), then quantize; zeros that are "
            "pruned afterwards would not be the ones that int8 was fitted to"
        )
    for pattern in skip:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in every):
            raise ValueError(f"skip {pattern!r} matches no compressed layer; there are: {', '.join(every)}")
    chosen, left = {}, []
    for name, layer in every.items():
        if layer.is_int8:
            left.append(row_of(name, layer, done=False, reason="int8 already"))
        elif layer.is_float8:
            left.append(row_of(name, layer, done=False, reason="float8 already"))
        elif any(fnmatch.fnmatchcase(name, pattern) for pattern in skip):
            left.append(row_of(name, layer, done=False, reason="kept floating by skip"))
        else:
            try:
                quantize_rows(layer.values)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            chosen[name] = layer
    kinds = {"int8" if layer.is_int8 else "float8" if layer.is_float8 else "" for layer in every.values()}
    if not chosen and "" not in kinds:
        raise ValueError(f"every 2:4 layer of the model is {' or '.join(sorted(kinds))} already")
    return chosen, left


def _twin(name: str, layer: ProductLayer, seen: Seen | None, way: Way) -> ProductLayer | None:
    """An int8 copy; ``None``: no batch reached a layer whose scale batches tell."""
    twin = copy.deepcopy(layer)
    for hooks in (twin._forward_hooks, twin._forward_pre_hooks):
        hooks.clear()
    if way.activations != "static":
        return twin.to_int8(way.activations)
    if seen is None or seen.observer.count == 0:
        return None
    limit = threshold(seen.observer, way.method, way.percentile)
    scale = max(limit / LEVELS, torch.finfo(torch.float32).tiny) if limit > 0 else 1.0
    return twin.to_int8("static", scale)


def _noisiest(layers: dict[str, ProductLayer], noises: dict[str, Noise], budget: float) -> set[str]:
    """The layers that stay floating for accuracy: of the least SQNR, up to a share of all weights."""
    left = budget * sum(layer.values.numel() for layer in layers.values())
    spared = set()
    for name in sorted(noises, key=lambda each: noises[each].sqnr):
        if layers[name].values.numel() > left:
            break
        left -= layers[name].values.numel()
        spared.add(name)
    return spared


def _times(
    layers: dict[str, ProductLayer], twins: dict[str, ProductLayer], seen: dict[str, Seen], said: Progress
) -> dict[str, Pair]:
    """Seconds of the first batch's calls, floating and int8, in turns; CPU only. Equal layers once."""
    if any(layer.values.device.type != "cpu" for layer in layers.values()):
        return {}
    chooser = Chooser(sum(layer.values.nbytes + layer.indices.nbytes for layer in layers.values()))
    known: dict[tuple[Any, ...], Pair] = {}
    found = {}
    for name, twin in twins.items():
        pairs = []
        for call, times in seen[name].calls.items():
            key = (repr(layers[name]), layers[name].values.shape, layers[name].values.dtype, call)
            if key not in known:
                said(f"quantize: times of {name}")
                known[key] = chooser.measure(layers[name], twin, call)
            pairs.append((known[key], times))
        found[name] = Pair(sum(p.dense * n for p, n in pairs), sum(p.sparse * n for p, n in pairs))
    return found
