"""``prepare``: the forms that given token counts run on, made before they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..nn.convolution import CompressedConvolution
from ..nn.device_forms import Bytes
from ..nn.kinds import ProductLayer
from ..nn.on_device import Glance, LayerWeight, weight_of
from ..ops.cuda import cusparselt, route, ways
from ..ops.cuda import products as cuda
from ..ops.cuda.blobs import Name
from ..ops.cuda.launch import ready
from ..ops.cuda.operators import current_stream
from ..ops.cuda.weights import Canonical, Weight, as_input
from ..report import format_table
from . import narrow
from .gpu import _layers, _product_sizes, _window_of


class Prepared(NamedTuple):
    """What :func:`prepare` did with one layer."""

    name: str
    sparse: tuple[int, ...]  #: token counts that run on the blob
    dense: tuple[int, ...]  #: token counts that run dense
    bytes: Bytes | None  #: on the device, by form; None: not on a GPU
    dense_bytes: int  #: of the weight as a dense matrix
    remark: str  #: why something is not as it was asked for


class Preparation(tuple[Prepared, ...]):
    """Rows of :func:`prepare` in model order; ``print`` shows them as a table."""

    def __str__(self) -> str:
        rows = [("layer", "sparse", "dense", "canonical", "blobs", "copy", "of dense", "remark")]
        for row in self:
            sparse, dense = (" ".join(map(str, part)) for part in (row.sparse, row.dense))
            canonical = blobs = copy = share = ""
            if row.bytes is not None:
                canonical, blobs, copy = (f"{part:,}" for part in row.bytes)
                share = f"{sum(row.bytes) / row.dense_bytes:.2f}"
            rows.append((row.name or "(root)", sparse, dense, canonical, blobs, copy, share, row.remark))
        return format_table(rows)


def prepare(model: nn.Module, tokens: int | Sequence[int]) -> Preparation:
    """Make now what the compressed layers of ``model`` will run on, and free what they will not.

    On a GPU a weight has one form for each way of running: cuSPARSELt's blob for many tokens, the canonical
    form for few (or a dense copy, where ``keep_dense`` asked for one). A layer makes a form when a call first
    wants it; before a CUDA graph is captured, or where memory counts, say here which. With one form a
    16-bit weight takes about 0.57 of its dense size. On a CPU, whose kernels read the canonical form, there
    is nothing to do, and the rows say so. What a captured graph reads is never freed.

    Args:
        tokens: the count, or counts, that the layers will be called with: batch times sequence; of a
            convolution batch times pixels of the output.

    Returns:
        A row a layer: what runs sparse and dense, the memory by form, and remarks. A layer whose tensors
        something else holds (an optimizer, a ``state_dict``) computes from them, and has a remark.

    Raises:
        ValueError: no compressed layers, no counts, or a count that is not positive.
        Error: a form cannot be made: the stream captures a CUDA graph, or the device has failed.
    """
    counts = (tokens,) if isinstance(tokens, int) else tuple(tokens)
    if not counts or any(count < 1 for count in counts):
        raise ValueError(f"tokens must be positive counts, not {tokens!r}")
    layers = list(_layers(model))
    if not layers:
        raise ValueError("the model has no compressed layer: convert it with to_sparse first")
    return Preparation(_prepare_where_it_is(name, layer, counts) for name, layer in layers)


def _prepare_where_it_is(name: str, layer: ProductLayer, counts: tuple[int, ...]) -> Prepared:
    device = Glance(layer).device
    if device.type == "cuda":
        with torch.cuda.device(device):
            return prepare_layer(name, layer, counts, current_stream(torch.empty(0, device=device)))
    has_kernels = device.type == "cpu" and not layer.is_float8
    what = "its kernels read the canonical form" if has_kernels else "it has no sparse kernels"
    return Prepared(name, (), (), None, _dense_bytes(layer), f"on {device.type}: {what}, nothing to prepare")


def _dense_bytes(layer: ProductLayer) -> int:
    values = Glance(layer).like[0]
    return 2 * values.numel() * values.element_size()


@torch.no_grad()
def prepare_layer(
    name: str, layer: ProductLayer, counts: tuple[int, ...], stream: cusparselt.Stream
) -> Prepared:
    """:func:`prepare` of one layer for a GPU's stream, which must be the current one."""
    if narrow.is_bare(layer):
        return _prepare_narrow(name, layer, counts, stream)
    own = weight_of(layer, Glance(layer).device, stream)
    if own is None:
        return Prepared(name, (), (), None, _dense_bytes(layer), "no plain values and indices on one device")
    forms, weight = own.forms, as_input(own, _dtype_of_inputs(own))
    runs: dict[int, str] = {}  # by count, why it runs dense
    blobs: list[Name] = []
    remark = cusparselt.why_unavailable(stream.device)
    for count in counts:
        reason = remark
        if not remark:
            made, reason = _make(layer, weight, count, stream)
            blobs += made
        runs[count] = reason
    dense = [count for count, reason in runs.items() if reason]
    held = ways.HELD in runs.values()
    copied = bool(dense) and not remark and weight.keeps_dense and weight.derived() is not None
    if copied:
        weight.dense(stream)
    # What runs dense only while others hold the weight will not want the canonical form.
    canonical = any(reason and reason != ways.HELD for reason in runs.values()) and not copied
    cast = None if weight is own else weight.like[0].dtype
    forms.keep_only(blobs, copied, canonical, stream, cast)
    remark = remark or (ways.HELD if held else "")
    sparse = tuple(count for count, reason in runs.items() if not reason)
    return Prepared(name, sparse, tuple(dense), forms.bytes(layer), _dense_bytes(layer), remark)


def _prepare_narrow(
    name: str, layer: ProductLayer, counts: tuple[int, ...], stream: cusparselt.Stream
) -> Prepared:
    """Of a layer in 8 bits, whose operators derive a blob from its tensors, which stay."""
    weight = Canonical(layer.values, layer.indices)
    remark = cusparselt.why_unavailable(stream.device) or narrow.why_no_product(layer)
    runs = dict.fromkeys(counts, remark)
    if not remark:
        runs = {count: _make(layer, weight, count, stream)[1] for count in counts}
    derived = weight.derived() if not remark else None
    blobs = 0 if derived is None else derived.bytes()
    held = Bytes(layer.values.nbytes + layer.indices.nbytes, blobs, 0)
    sparse = tuple(count for count, reason in runs.items() if not reason)
    dense = tuple(count for count, reason in runs.items() if reason)
    return Prepared(name, sparse, dense, held, _dense_bytes(layer), remark)


def _dtype_of_inputs(weight: LayerWeight) -> torch.dtype:
    """Of the product: autocast's for a float32 weight, where this is called under it."""
    kind, dtype = weight.device.type, weight.like[0].dtype
    cast = dtype is torch.float32 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if cast else dtype


def _make(
    layer: ProductLayer, weight: Weight, count: int, stream: cusparselt.Stream
) -> tuple[list[Name], str]:
    """The blobs of a call of ``count`` tokens, or why it runs dense."""
    m, k = _product_sizes(layer)
    dtype, window = weight.like[0].dtype, _window_of(layer)
    bias = None if layer.bias is None or narrow.is_bare(layer) else layer.bias.to(dtype)
    if narrow.is_bare(layer):
        call = route.Call(*narrow.product_dtypes(layer), m, count, k, window=window)
    else:
        call = route.Call(dtype, dtype, m, count, k, layer.activation, bias is not None, window=window)
    on = ready(stream.device)
    if isinstance(layer, CompressedConvolution):
        chosen = cuda.conv2d_route(call, weight, layer._geometry(), on)
        if chosen.sparse:
            return cuda.prepare_conv2d(call, weight, bias, layer._geometry(), chosen, stream), ""
    else:
        chosen = ways.route_of(call, weight, on)
        if chosen.sparse:
            return cuda.prepare_linear(call, weight, bias, chosen, stream), ""
    return [], chosen.reason
