"""Operators that move numbers to other places and compute nothing."""

from __future__ import annotations

import numpy as np

from ..flow import Flow, Operand
from ..views import Group, Value
from .registry import Call, rule, unknown


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "view_copy",
    "squeeze_copy",
    "unsqueeze_copy",
    "_reshape_alias",
    "reshape_as",
    "view_as",
    "ravel",
    "atleast_1d",
    "atleast_2d",
)
def reshaped(flow: Flow, call: Call) -> list[Value]:
    value = call.tensors[0]
    if call.get("dtype") is not None:  # view.dtype reads the bytes as other numbers
        return unknown(flow, call)
    return [flow.reshape(value, call.shape)]


@rule(
    "permute",
    "permute_copy",
    "movedim",
    "moveaxis",
    "transpose",
    "transpose_copy",
    "swapaxes",
    "swapdims",
    "t",
    "numpy_T",
    "mT",
    "matrix_H",
    "adjoint",
)
def permuted(flow: Flow, call: Call) -> list[Value]:
    value, kind = call.tensors[0], call.name.removeprefix("aten::")
    order = list(range(len(value.shape)))
    if kind.startswith("permute"):
        order = list(call["dims"])
    elif kind in ("movedim", "moveaxis"):
        order = _moved(order, call["source"], call["destination"])
    elif kind in ("t", "numpy_T"):
        order = order[::-1]
    elif order:
        first, second = call.get("dim0", "axis0"), call.get("dim1", "axis1")
        first, second = (-2, -1) if first is None else (first, second)
        order[first], order[second] = order[second], order[first]
    return [flow.permute(value, order)]


def _moved(order: list[int], source: int | list[int], destination: int | list[int]) -> list[int]:
    rank = len(order)
    sources, places = (
        [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)] for dims in (source, destination)
    )
    rest = iter([d for d in order if d not in sources])
    back = dict(zip(places, sources, strict=True))
    return [back[i] if i in back else next(rest) for i in range(rank)]


@rule("expand", "expand_as", "broadcast_to", "expand_copy")
def expanded(flow: Flow, call: Call) -> list[Value]:
    return [flow.expand(call.tensors[0], call.shape)]


@rule("repeat", "tile")
def repeated(flow: Flow, call: Call) -> list[Value]:
    """Each dim becomes (repeats, dim), merged."""
    value = call.tensors[0]
    times = list(call.get("repeats", "dims"))
    times = [1] * (len(value.shape) - len(times)) + times
    value = flow.reshape(value, (1,) * (len(times) - len(value.shape)) + value.shape)
    apart = tuple(n for size in value.shape for n in (1, size))
    many = tuple(n for pair in zip(times, value.shape, strict=True) for n in pair)
    return [flow.reshape(flow.expand(flow.reshape(value, apart), many), call.shape)]


@rule("repeat_interleave")
def interleaved(flow: Flow, call: Call) -> list[Value]:
    """Each place of one dim becomes (place, repeats), merged."""
    value, times, dim = call.tensors[0], call.get("repeats"), call.get("dim")
    if not isinstance(times, int) or dim is None:
        return unknown(flow, call)
    return [interleave(flow, value, dim, times)]


def interleave(flow: Flow, value: Value, dim: int, times: int) -> Value:
    """Every place of a dim ``times`` times."""
    dim %= len(value.shape)
    before, size, after = value.shape[:dim], value.shape[dim], value.shape[dim + 1 :]
    apart = flow.reshape(value, (*before, size, 1, *after))
    return flow.reshape(flow.expand(apart, (*before, size, times, *after)), (*before, size * times, *after))


@rule("slice", "slice_copy", "narrow")
def sliced(flow: Flow, call: Call) -> list[Value]:
    value, dim = call.tensors[0], call["dim"]
    size = value.shape[dim]
    start, end, step = call.get("start"), call.get("end"), call.get("step")
    if call.get("length") is not None:
        end = start % size + call["length"] if size else 0
    places = np.arange(size)[slice(start, end, step)]
    return [flow.take(value, dim, places)]


@rule("select", "select_copy")
def selected(flow: Flow, call: Call) -> list[Value]:
    value, dim, index = call.tensors[0], call["dim"], call["index"]
    one = flow.take(value, dim, np.array([index % value.shape[dim]]))
    return [flow.reshape(one, call.shape)]


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "unbind",
    "split_copy",
    "unbind_copy",
    "unsafe_split",
    "unsafe_chunk",
    "tensor_split",
    "split_with_sizes_copy",
)
def parted(flow: Flow, call: Call) -> list[Value]:
    """One part after the other, as long as their shapes say."""
    value, dim = call.tensors[0], call["dim"] % len(call.tensors[0].shape)
    gone = call.name.startswith("aten::unbind")
    found, first = [], 0
    for shape in call.shapes:
        size = 1 if gone else shape[dim]
        part = flow.take(value, dim, np.arange(first, first + size))
        found.append(flow.reshape(part, shape))
        first += size
    return found


@rule("cat", "concat", "concatenate")
def concatenated(flow: Flow, call: Call) -> list[Value]:
    parts = [value for value in call.tensors if value.shape != (0,)]
    return [flow.cat(parts, call["dim"], call.shape)]


@rule("stack")
def stacked(flow: Flow, call: Call) -> list[Value]:
    dim = call["dim"] % len(call.shape)
    one = (*call.shape[:dim], 1, *call.shape[dim + 1 :])
    return [flow.cat([flow.reshape(value, one) for value in call.tensors], dim, call.shape)]


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, call: Call) -> list[Value]:
    """[..., C f f, H, W] to [..., C, H f, W f]."""
    value, f = call.tensors[0], call["upscale_factor"]
    *batch, channels, height, width = value.shape
    rank = len(batch)
    apart = flow.reshape(value, (*batch, channels // (f * f), f, f, height, width))
    moved = flow.permute(apart, [*range(rank), *(rank + i for i in (0, 3, 1, 4, 2))])
    return [flow.reshape(moved, call.shape)]


@rule("pixel_unshuffle")
def pixel_unshuffle(flow: Flow, call: Call) -> list[Value]:
    """[..., C, H f, W f] to [..., C f f, H, W]."""
    value, f = call.tensors[0], call["downscale_factor"]
    *batch, channels, height, width = value.shape
    rank = len(batch)
    apart = flow.reshape(value, (*batch, channels, height // f, f, width // f, f))
    moved = flow.permute(apart, [*range(rank), *(rank + i for i in (0, 2, 4, 1, 3))])
    return [flow.reshape(moved, call.shape)]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(flow: Flow, call: Call) -> list[Value]:
    """[N, g k, ...] as [N, g, k, ...], these two swapped."""
    value, groups = call.tensors[0], call["groups"]
    batch, channels, *rest = value.shape
    apart = flow.reshape(value, (batch, groups, channels // groups, *rest))
    moved = flow.permute(apart, [0, 2, 1, *range(3, 3 + len(rest))])
    return [flow.reshape(moved, call.shape)]


@rule(
    "constant_pad_nd",
    "pad",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
)
def padded(flow: Flow, call: Call) -> list[Value]:
    """Numbers before and behind some of the last dims, which keep their order."""
    value, pairs = call.tensors[0], call.get("pad", "padding")
    rank = len(value.shape)
    changed = [rank - 1 - i // 2 for i in range(0, len(pairs), 2) if pairs[i] or pairs[i + 1]]
    kept = flow.alike_outside(value, [d for d in range(rank) if d not in changed]) if changed else value
    return [Value(call.shape, kept.groups, kept.uniform - set(changed))]


@rule("index")
def indexed(flow: Flow, call: Call) -> list[Value]:
    """x[i, :, j]: the indexed dims keep their order, and one place of them is read for all others alike."""
    if call.by_mask:
        return unknown(flow, call)
    value, indices = call.tensors[0], list(call["indices"])
    for index in indices:
        if index is not None:
            flow.fix(index, f"{flow.op} looks up by them")
    rank = len(value.shape)
    dims = [d for d, index in enumerate(indices) if index is not None]
    kept = flow.alike_outside(value, [d for d in range(rank) if d not in dims])
    new = len(call.shape) - (rank - len(dims))
    first = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [d for d in range(rank) if d not in dims]
    place = {d: i if i < first else i + new for i, d in enumerate(rest)}
    groups = tuple(Group(tuple(place[d] for d in g.dims), g.elements) for g in kept.groups)
    return [Value(call.shape, groups)]


@rule("index_select")
def index_selected(flow: Flow, call: Call) -> list[Value]:
    value, index, dim = call["self"], call["index"], call["dim"] % len(call.shape)
    flow.fix(index, f"{flow.op} looks up by them")
    kept = flow.alike_outside(value, [d for d in range(len(value.shape)) if d != dim])
    return [Value(call.shape, kept.groups)]


@rule("select_scatter", "slice_scatter")
def scattered(flow: Flow, call: Call) -> list[Value]:
    """A part of a tensor written over; along that dim nothing changes places."""
    value, part, dim = call["self"], call["src"], call["dim"] % len(call.shape)
    others = [d for d in range(len(call.shape)) if d != dim]
    size = 1 if len(part.shape) < len(call.shape) else part.shape[dim]
    over = flow.reshape(part, (*call.shape[:dim], size, *call.shape[dim + 1 :]))
    operands: list[Operand] = [
        (flow.alike_outside(each, others), [d if d != dim else (name,) for d in range(len(call.shape))])
        for name, each in (("kept", value), ("new", over))
    ]
    flat = flow.join(operands, others, [call.shape[d] for d in others])
    return [
        Value(call.shape, tuple(Group(tuple(others[d] for d in g.dims), g.elements) for g in flat.groups))
    ]
