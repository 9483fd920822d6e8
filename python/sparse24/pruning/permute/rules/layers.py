"""Layers as ATen has them: convolutions, normalisation, pooling, embeddings, PReLU."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from ..flow import Flow, Operand
from ..views import Group, Value
from .registry import Call, rule, unknown


def _by_channel(flow: Flow, x: Value, parts: Sequence[Value | None], dim: int) -> Value:
    """x with tensors [C] that meet it at its dim ``dim``."""
    names: list[Hashable] = list(range(len(x.shape)))
    named: list[Operand] = [(x, names), *((part, [dim]) for part in parts if part is not None)]
    return flow.join(named, names, x.shape)


# ---- convolutions -----------------------------------------------------------------------------------


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(flow: Flow, call: Call) -> list[Value]:
    """x [N, C, ...] with weight [out, C / groups, ...]; transposed: [C, out / groups, ...]."""
    x, weight, bias, groups = call["input"], call["weight"], call.get("bias"), call["groups"]
    dim = len(x.shape) - len(weight.shape) + 1
    x = flow.alike_outside(x, [dim])
    weight = flow.alike_outside(weight, [0, 1])
    if call.get("transposed"):
        found = _transposed(flow, x, weight, call)
    elif groups == 1:
        found = _whole(flow, x, weight, call, (0, 1))
    else:
        found = _grouped(flow, x, weight, dim, call)
    return [found if bias is None else _by_channel(flow, found, [bias], dim)]


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(flow: Flow, call: Call) -> list[Value]:
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    dim = len(x.shape) - len(weight.shape) + 1
    found = _transposed(flow, flow.alike_outside(x, [dim]), flow.alike_outside(weight, [0, 1]), call)
    return [found if bias is None else _by_channel(flow, found, [bias], dim)]


def _transposed(flow: Flow, x: Value, weight: Value, call: Call) -> Value:
    if call["groups"] == 1:
        return _whole(flow, x, weight, call, (1, 0))
    return unknown(flow, call)[0]


def _whole(flow: Flow, x: Value, weight: Value, call: Call, sides: tuple[int, int]) -> Value:
    """All outputs from all inputs; ``sides``: the weight's dims of outputs and of inputs."""
    dim, shape = len(x.shape) - len(weight.shape) + 1, call.shape
    own: list[Hashable] = [("kernel", i) for i in range(len(weight.shape))]
    own[sides[0]], own[sides[1]] = "out", "in"
    named: list[Operand] = [
        (x, ["in" if d == dim else ("pixel", d) for d in range(len(x.shape))]),
        (weight, own),
    ]
    outs: list[Hashable] = ["out" if d == dim else ("new", d) for d in range(len(shape))]
    return flow.join(named, outs, shape)


def _grouped(flow: Flow, x: Value, weight: Value, dim: int, call: Call) -> Value:
    """Every group of channels has outputs of its own: groups stay, and channels move inside them."""
    groups = call["groups"]
    inputs, outputs = x.shape[dim], call.shape[dim]
    source, target = x.group_at(dim), weight.group_at(0)
    if source is None or target is None:
        flow.fix(x, f"{flow.op} has groups, and takes channels in a fixed order")
        flow.fix(weight, f"{flow.op} has groups, and takes channels in a fixed order")
        return Value(call.shape)
    out = target.elements.reshape(groups, outputs // groups)
    if inputs == groups:  # depthwise: outputs move as their input does
        if outputs == groups:
            flow.channels.unify(source.elements, out.reshape(-1))
        else:
            flow.channels.unify(flow.channels.derive(source.elements, 1, outputs // groups), out)
        return Value(call.shape, (Group((dim,), target.elements),))
    parts = source.elements.reshape(groups, inputs // groups)
    flow.channels.constrain(parts, [0], f"{flow.op} has {groups} groups")
    flow.channels.constrain(out, [0], f"{flow.op} has {groups} groups")
    held = weight.group_at(1)
    if call.blocked is not None:
        flow.channels.unify(parts, call.blocked)
    elif held is not None:
        flow.channels.unify(parts, flow.channels.derive(held.elements, 0, groups))
    else:
        flow.channels.fix(parts, f"{flow.op} meets them in a fixed order")
    return Value(call.shape, (Group((dim,), target.elements),))


# ---- normalisation ----------------------------------------------------------------------------------


@rule(
    "batch_norm",
    "instance_norm",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
    "native_batch_norm",
    "_native_batch_norm_legit_functional",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
)
def by_channel_norm(flow: Flow, call: Call) -> list[Value]:
    """Statistics and scales of every channel [N, C, ...]."""
    x = flow.alike_outside(call["input"], [1])
    parts = [call.get("weight"), call.get("bias"), call.get("running_mean"), call.get("running_var")]
    found = _by_channel(flow, x, parts, 1)
    group = found.group_at(1)
    statistics = [
        Value(shape, (Group((0,), group.elements),) if group is not None and shape == (x.shape[1],) else ())
        for shape in call.shapes[1:]
    ]
    return [found, *statistics]


@rule("group_norm", "native_group_norm")
def group_norm(flow: Flow, call: Call) -> list[Value]:
    """Statistics of C / groups neighbouring channels: they stay in their group."""
    x = flow.alike_outside(call["input"], [1])
    groups, group = call.get("num_groups", "group"), x.group_at(1)
    if group is not None and 1 < groups < x.shape[1]:
        flow.channels.constrain(group.elements.reshape(groups, -1), [0], f"{flow.op} has {groups} groups")
    found = _by_channel(flow, x, [call.get("weight"), call.get("bias")], 1)
    return [found, *(Value(shape) for shape in call.shapes[1:])]


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(flow: Flow, call: Call) -> list[Value]:
    """Statistics over the last dims, whatever their order, and scales."""
    x = call["input"]
    over = [len(x.shape) - 1 - i for i in range(len(call["normalized_shape"]))]
    parts = [part for part in (call.get("weight"), call.get("bias")) if part is not None]
    found = flow.elementwise([flow.within(x, over), *parts], call.shape)
    return [found, *(Value(shape) for shape in call.shapes[1:])]


# ---- pooling, resizing ------------------------------------------------------------------------------


@rule(
    "max_pool1d",
    "avg_pool1d",
    "adaptive_avg_pool1d",
    "adaptive_max_pool1d",
    "upsample_nearest1d",
    "upsample_linear1d",
)
def pooled_1d(flow: Flow, call: Call) -> list[Value]:
    return _pooled(flow, call, 1)


@rule(
    "max_pool2d",
    "max_pool2d_with_indices",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
    "lp_pool2d",
)
def pooled_2d(flow: Flow, call: Call) -> list[Value]:
    return _pooled(flow, call, 2)


@rule(
    "max_pool3d",
    "avg_pool3d",
    "adaptive_avg_pool3d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool3d",
    "upsample_nearest3d",
    "upsample_trilinear3d",
)
def pooled_3d(flow: Flow, call: Call) -> list[Value]:
    return _pooled(flow, call, 3)


def _pooled(flow: Flow, call: Call, dims: int) -> list[Value]:
    """Over the last dims; all before them alike."""
    x = call.tensors[0]
    kept = flow.alike_outside(x, range(len(x.shape) - dims))
    return [Value(shape, kept.groups) for shape in call.shapes]


# ---- others -----------------------------------------------------------------------------------------


@rule("embedding")
def embedding(flow: Flow, call: Call) -> list[Value]:
    """Rows of a table [entries, width] by their number: the entries keep their order."""
    table, indices = call["weight"], call["indices"]
    flow.fix(indices, f"{flow.op} looks up by them")
    kept = flow.alike_outside(table, [1])
    last = len(call.shape) - 1
    return [Value(call.shape, tuple(Group((last,), g.elements) for g in kept.groups))]


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(flow: Flow, call: Call) -> list[Value]:
    """g v / ||v||, with norms over all dims but one."""
    v, g, dim = call["v"], call["g"], call["dim"] % len(call.shape)
    normal = flow.within(v, [d for d in range(len(v.shape)) if d != dim])
    found = flow.elementwise([normal, g], call.shape)
    return [found, *(Value(shape) for shape in call.shapes[1:])]


@rule("prelu", "_prelu_kernel")
def prelu(flow: Flow, call: Call) -> list[Value]:
    """A slope for every channel [N, C, ...], or one for all."""
    x, slope = call["self"], call["weight"]
    if int(np.prod(slope.shape)) == 1:
        return [flow.elementwise([x], call.shape)]
    if len(slope.shape) != 1:
        return [flow.elementwise([x, slope], call.shape)]
    return [_by_channel(flow, x, [slope], 1 if len(x.shape) > 1 else 0)]
