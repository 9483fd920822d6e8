"""``tune`` and ``explain`` on a CPU: compressed layers against their dense selves, timed and remembered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..nn.conv3d import SparseConv3d
from ..nn.convert import Verdict, without_activation
from ..nn.convolution import CompressedConvolution, conv_arguments
from ..nn.kinds import ProductLayer
from ..nn.linear import SparseLinear
from ..ops import activate
from ..ops.cuda import route
from ..ops.cuda.cusparselt import Algorithm
from ..ops.registry import cpu_isa
from ..timing import Pair, in_units
from . import kept, rules
from .example import LayerCall
from .measured import Chooser, Timed, described, verdict_of
from .tuning import Tuned, Tuning


def explain(layer: ProductLayer, tokens: int) -> str:
    """How ``layer`` runs ``tokens`` here, and what is known of its dense self."""
    runs = f"sparse: CPU kernels for {cpu_isa()}"
    if layer.is_float8:
        runs = "dense, in float32: there are no CPU kernels for float8"
    name = _name(layer)
    known = dict(_tuned(name, kept.load()))
    near = route.bucket(tokens)
    counts = [count for count in known if count == tokens] or [c for c in known if route.bucket(c) == near]
    if counts:
        dense, sparse = (in_units(seconds) for seconds in (known[counts[0]].dense, known[counts[0]].sparse))
        return f"{runs}; tuned: dense {dense}, sparse {sparse} at {_tokens(counts[0])}"
    rule = rules.verdict(_dense_shape(layer))
    told = "expected to gain by rule" if rule.sparse else rule.remark
    return f"{runs}; {told}; tune measures"


def remembered(module: nn.Module, dtype: torch.dtype | None, known: dict[str, Pair]) -> Verdict | None:
    """What :func:`tune` found for a layer as this one; None: nothing, it has not been asked."""
    kind, shape = described(module)
    name = f"{kind} {shape}; {dtype or next(module.parameters()).dtype}".replace("torch.", "")
    timed = [Timed(_tokens(count), 1, pair) for count, pair in _tuned(name, known)]
    if not timed:
        return None
    verdict = verdict_of(timed)
    return verdict._replace(remark=f"tuned: {verdict.remark}")


def tune(
    layers: Sequence[ProductLayer],
    tokens: Sequence[int],
    budget_seconds: float,
    *,
    again: bool,
    progress: Callable[[str], None],
) -> Tuning:
    """Time every distinct layer at every count, until the budget is spent; figures are kept as they come."""
    end = time.monotonic() + budget_seconds
    chooser = Chooser(sum(2 * layer.values.numel() * layer.values.element_size() for layer in layers))
    distinct = {_name(layer): layer for layer in layers}
    known = kept.load()
    rows: list[Tuned] = []
    for name, layer in distinct.items():
        for count in tokens:
            key = _key(name, count)
            pair, remark = known.get(key), "measured before"
            if pair is None or again:
                if time.monotonic() >= end:
                    remark = "the budget is spent"
                else:
                    pair = chooser.measure(_dense(layer), layer, _call(layer, count))
                    remark = kept.keep({key: pair})
            rows.append(_row(layer, count, pair, remark))
            line = str(Tuning([rows[-1]])).splitlines()[-1]
            progress(f"{len(rows)}/{len(distinct) * len(tokens)} {line}")
    return Tuning(rows)


def _row(layer: ProductLayer, count: int, pair: Pair | None, remark: str) -> Tuned:
    measured = None
    if pair is not None:
        measured = route.Measured(Algorithm(), 1e6 * pair.sparse, 1e6 * pair.dense, 0.0)
        if pair.sparse > pair.dense:
            remark = "; ".join(filter(None, (remark, "dense is faster: to_sparse leaves it dense")))
    m, half_k = layer.values.shape
    return Tuned(layer.values.dtype, m, 2 * half_k, count, measured, 0, 0, remark)


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _dense_shape(layer: ProductLayer) -> nn.Module:
    """The dense layer without its numbers."""
    dtype = layer._dtype()
    if isinstance(layer, CompressedConvolution):
        kind = nn.Conv3d if isinstance(layer, SparseConv3d) else nn.Conv2d
        return kind(**conv_arguments(layer), device="meta", dtype=dtype)
    return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, "meta", dtype)


def _name(layer: ProductLayer) -> str:
    kind, shape = described(_dense_shape(layer))
    activations = "" if getattr(layer, "input_scale", None) is None else " by int8"
    return f"{kind} {shape}; {layer.values.dtype}{activations}".replace("torch.", "")


def _key(name: str, count: int) -> str:
    return f"tuned; {name}; {count} tokens"


def _tuned(name: str, known: dict[str, Pair]) -> Iterator[tuple[int, Pair]]:
    for key, pair in known.items():
        begin, _, end = key.rpartition("; ")
        if begin == f"tuned; {name}" and end.endswith(" tokens") and end.removesuffix(" tokens").isdecimal():
            yield int(end.removesuffix(" tokens")), pair


def _dense(layer: ProductLayer) -> Callable[[Tensor], Tensor]:
    dense = without_activation(layer).to_dense()
    return lambda x: activate(dense(x), layer.activation)


def _call(layer: ProductLayer, count: int) -> LayerCall:
    """A call of ``count`` tokens; of a convolution one image (volume) with about as many pixels of output."""
    if isinstance(layer, SparseLinear):
        shape: tuple[int, ...] = (count, layer.in_features)
    else:
        side = math.ceil(round(count ** (1 / len(layer.kernel_size)), 6))
        spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sizes = [max(side * stride, span) for stride, span in zip(layer.stride, spans, strict=True)]
        shape = (1, layer.in_channels, *sizes)
    return LayerCall((torch.empty(shape, dtype=layer._dtype(), device="meta"),), {})
