"""The sparse products on a GPU. They take tensors and a stream, and nothing that needs a device.

y [n, m] = activation(scale * (x [n, k] W^T) + bias): the weight is cuSPARSELt's structured operand, x and y
stay row-major as torch has them, nothing is transposed, and nothing is padded but what a size that is not
legal makes necessary (``route.Route.notes``). What cannot run sparse, or would lose, runs dense.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conv2d import check_conv2d, conv2d_dense, conv2d_torch, conv_out_size, is_channels_last
from ..layout import conv_matrix_to_weight
from ..linear import check_linear, linear_torch
from ..product import activate
from ..registry import round_up
from . import device_kernels, route
from .blobs import Name
from .cusparselt import GPU, Stream, why_unavailable
from .launch import (
    Epilogue,
    Launch,
    call_of,
    is_16_byte,
    launched_tokens,
    legal_input,
    multiply,
    ready,
    room_for,
    vector,
)
from .patches import Window, parts_of, rows_of
from .repeats import Done, epoch
from .ways import route_of
from .weights import Canonical, Weight, as_input


def _as_batches(input: Tensor, launch: Launch, stride_multiple: int) -> Tensor | None:
    """y of a 3-D input that is no matrix in memory (a slice of tokens, say), without copying it: or None."""
    if input.dim() != 3 or input.stride(2) != 1 or input.shape[2] != launch.route.k or input.shape[0] < 2:
        return None
    batch, n, _ = input.shape
    between, stride = input.stride(0), input.stride(1)
    legal = (
        n and n % launch.route.multiple == 0 and stride % stride_multiple == 0 and stride >= input.shape[2]
    )
    if not legal or between < n * stride or between % stride_multiple or not is_16_byte(input):
        return None
    y = torch.empty(batch, n, launch.route.m, dtype=launch.call.out_dtype, device=input.device)
    launch.run(input, y, (batch, between, n * launch.route.m))
    return y


def linear_sparse(
    input: Tensor, weight: Weight, epilogue: Epilogue, out_dtype: torch.dtype, chosen: route.Route,
    call: route.Call, stream: Stream,
) -> Tensor:  # fmt: skip
    """A linear product along a sparse route: input [..., k], output [..., m] in ``out_dtype``."""
    m = call.m
    bias, scale = vector(epilogue.bias, chosen.m), vector(epilogue.scale, chosen.m)
    launch = Launch(weight, (0, m), Epilogue(bias, scale), chosen, call, stream)
    stride_multiple = 16 // input.element_size()
    y = None if input.is_contiguous() else _as_batches(input, launch, stride_multiple)
    if y is None:
        x = legal_input(input.reshape(-1, input.shape[-1]), chosen.k, stride_multiple)
        y = torch.empty(room_for(call, chosen), chosen.m, dtype=out_dtype, device=input.device)
        multiply(launch, x, y)
        y = y[: call.n]
        if input.is_contiguous() and x.data_ptr() == input.data_ptr():
            has_bias = epilogue.bias is not None
            weight.note(Done(input, stream, m, call.activation, has_bias, chosen.epoch, launch))
    output = y[..., :m].contiguous().view(*input.shape[:-1], m)
    return activate(output, chosen.epilogue)


def linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str, stream: Stream
) -> Tensor:
    """``torch.ops.sparse24.linear`` on ``stream``, sparse where its route says so."""
    return linear_by(input, Canonical(values, indices), bias, activation, stream)


def linear_by(input: Tensor, weight: Weight, bias: Tensor | None, activation: str, stream: Stream) -> Tensor:
    """:func:`linear` of a weight in whatever form it has."""
    weight = as_input(weight, input.dtype)
    check_linear(input, *weight.like, bias, activation)
    n, k, m = input.shape[:-1].numel(), input.shape[-1], weight.like[0].shape[0]
    if n == 0:
        return input.new_empty((*input.shape[:-1], m))
    if why_unavailable(stream.device) or k == 0:
        takes = k > 0 and device_kernels.takes_few(n, input.dtype, weight.like[0].dtype)
        if takes and device_kernels.usable(input):
            return _linear_few(input, weight, bias, activation, stream, epoch())
        return linear_torch(input, *weight.read(stream), bias, activation)
    epilogue = Epilogue(bias, None, activation)
    call = call_of(input, m, n, k, input.dtype, epilogue)
    chosen = route_of(call, weight, ready(stream.device))
    if chosen.few:
        return _linear_few(input, weight, bias, activation, stream, chosen.epoch)
    if not chosen.sparse:
        return activate(F.linear(input, weight.dense(stream)[:, :k], bias), activation)
    return linear_sparse(input, weight, epilogue, input.dtype, chosen, call, stream)


def _linear_few(
    input: Tensor, weight: Weight, bias: Tensor | None, activation: str, stream: Stream, epoch: int
) -> Tensor:
    values, indices = weight.read(stream)
    x = input.reshape(-1, input.shape[-1])
    y = device_kernels.few_tokens(x, values.detach(), indices, None, bias, activation, stream.handle)
    if input.is_contiguous():
        weight.note(Done(input, stream, y.shape[1], activation, bias is not None, epoch, None))
    return y.view(*input.shape[:-1], y.shape[1])


def prepare_linear(
    call: route.Call, weight: Weight, bias: Tensor | None, chosen: route.Route, stream: Stream
) -> list[Name]:
    """Make what :func:`linear_by` needs along a sparse route; the blobs that it reads.

    Raises:
        Error: a CUDA graph is captured.
    """
    launch = Launch(weight, (0, call.m), Epilogue(vector(bias, chosen.m)), chosen, call, stream)
    plans = [launch.prepare(n, chosen.k, chosen.m)[0] for n in launched_tokens(call, chosen)]
    return [(launch.rows, plan.key) for plan in plans]


# ---- convolution ------------------------------------------------------------------------------------


def conv2d_sizes(in_channels: int, out_channels: int, window: Window) -> tuple[int, int]:
    """m and k of the product behind a convolution, of one group."""
    channels = in_channels // window.groups
    r, s = window.kernel_size
    k = channels if window.is_pointwise else r * s * round_up(channels, 4)
    return out_channels // window.groups, k


def conv2d_call(
    input: Tensor, out_channels: int, window: Window, out_size: Sequence[int], out_dtype: torch.dtype,
    epilogue: Epilogue,
) -> route.Call:  # fmt: skip
    """The product behind a convolution, of one group."""
    m, k = conv2d_sizes(input.shape[1], out_channels, window)
    tokens = input.shape[0] * out_size[0] * out_size[1]
    return call_of(input, m, tokens, k, out_dtype, epilogue)._replace(window=window.copies)


def conv2d_route(call: route.Call, weight: Weight, window: Window, on: GPU) -> route.Route:
    """The route of a convolution: the product's, but that groups must not overlap in the output."""
    chosen = route_of(call, weight, on)
    if chosen.sparse and window.groups > 1 and chosen.m != call.m:
        return chosen._replace(
            sparse=False,
            reason=f"{call.m} output channels in each of {window.groups} groups are no legal size; "
            f"nearest: {chosen.m}",
        )
    return chosen


def conv2d_sparse(
    input: Tensor, weight: Weight, window: Window, epilogue: Epilogue, out_dtype: torch.dtype,
    chosen: route.Route, call: route.Call, stream: Stream,
) -> Tensor:  # fmt: skip
    """A convolution along a sparse route: as 1x1 on the pixels themselves, else on patches.

    The output is channels_last if the input is, else contiguous: then both are copied.
    """
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    channels_last = is_channels_last(input)
    x = input.permute(0, 2, 3, 1).contiguous()  # a view of a channels_last input
    batch, m = x.shape[0], call.m
    pixels = out_size[0] * out_size[1]
    tokens = batch * pixels
    room = tokens + chosen.multiple  # of the last launch
    y = torch.empty(room, window.groups * chosen.m, dtype=out_dtype, device=input.device)
    for group in range(window.groups):
        rows = (group * m, m)
        vectors = (None if v is None else v[rows[0] : rows[0] + m] for v in (epilogue.bias, epilogue.scale))
        bias, scale = (vector(v, chosen.m) for v in vectors)
        launch = Launch(weight, rows, Epilogue(bias, scale), chosen, call, stream)
        for first, part, lines in parts_of(x, window, out_size, chosen.k):
            matrix = rows_of(part, group, window, (lines, out_size), chosen.k, stream)
            multiply(launch, matrix, y[first:, group * chosen.m : (group + 1) * chosen.m])
    if window.is_pointwise and window.groups == 1 and channels_last:
        has_bias = epilogue.bias is not None
        weight.note(Done(input, stream, m, call.activation, has_bias, chosen.epoch, launch))
    wanted = y[:tokens, : window.groups * m].contiguous()
    output = wanted.view(batch, *out_size, window.groups * m).permute(0, 3, 1, 2)
    if not channels_last:
        output = output.contiguous()
    return activate(output, chosen.epilogue)


def conv2d(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, window: Window, activation: str,
    stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.conv2d`` on ``stream``, sparse where its route says so."""
    return conv2d_by(input, Canonical(values, indices), bias, window, activation, stream)


def conv2d_by(
    input: Tensor, weight: Weight, bias: Tensor | None, window: Window, activation: str, stream: Stream
) -> Tensor:
    """:func:`conv2d` of a weight in whatever form it has."""
    weight = as_input(weight, input.dtype)
    values, indices = weight.like
    check_conv2d(input, values, indices, bias, *window, activation)
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    if input.shape[0] == 0:
        return input.new_empty((0, values.shape[0], *out_size))
    if why_unavailable(stream.device):
        values, indices = weight.read(stream)
        return conv2d_torch(input, values, indices, bias, *window, activation)
    epilogue = Epilogue(bias, None, activation)
    call = conv2d_call(input, values.shape[0], window, out_size, input.dtype, epilogue)
    chosen = conv2d_route(call, weight, window, ready(stream.device))
    if chosen.sparse:
        return conv2d_sparse(input, weight, window, epilogue, input.dtype, chosen, call, stream)
    dense = conv_matrix_to_weight(weight.dense(stream), input.shape[1] // window.groups, window.kernel_size)
    output = conv2d_dense(input, dense, bias, window.stride, window.padding, window.dilation, window.groups)
    return activate(output, activation)


def prepare_conv2d(
    call: route.Call, weight: Weight, bias: Tensor | None, window: Window, chosen: route.Route, stream: Stream
) -> list[Name]:
    """Make what :func:`conv2d_by` needs along a sparse route, in launches of ``call.n`` pixels; the blobs.

    Raises:
        Error: a CUDA graph is captured.
    """
    names = []
    for group in range(window.groups):
        part = None if bias is None else vector(bias[group * call.m : (group + 1) * call.m], chosen.m)
        launch = Launch(weight, (group * call.m, call.m), Epilogue(part), chosen, call, stream)
        for n in launched_tokens(call, chosen):
            plan, _ = launch.prepare(n, chosen.k, window.groups * chosen.m)
            names.append((launch.rows, plan.key))
    return names
