"""The sparse products on a GPU. They take tensors and a stream, and nothing that needs a device.

y [n, m] = activation(scale * (x [n, k] W^T) + bias): the weight is cuSPARSELt's structured operand, x and y
stay row-major as torch has them, nothing is transposed, and nothing is padded but what a size that is not
legal makes necessary (``route.Route.notes``). What cannot run sparse, or would lose, runs dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conv2d import check_conv2d, conv2d_torch, conv_out_size, is_channels_last
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
    vector,
)
from .weights import Canonical, Weight

#: Patches of a convolution are written for as many images at a time as fit this many bytes.
IM2COL_BYTES = 256 << 20
#: Why a layer runs dense from whose weight nothing may be derived.
HELD = (
    "values or indices want gradients, or are held outside of the layer (they, what shares their memory, or "
    "a weak reference, as torch.compile has): it computes from them as they are until they are let go of"
)


def _why_not_tf32(weight: Weight) -> str:
    """Why a float32 weight cannot run on sparse tensor cores, which compute it as TF32 and 1:2."""
    if torch.get_float32_matmul_precision() == "highest":
        return (
            'float32 runs as TF32, which torch.set_float32_matmul_precision("high") has to allow; '
            "float16 and bfloat16 need no leave"
        )
    derived = weight.derived()
    if derived is not None and not derived.is_1_of_2(weight.source):
        return (
            "float32 needs one kept weight of every two (1:2) on sparse tensor cores; use float16 or bfloat16"
        )
    return ""


def why_not_legal(call: route.Call, weight: Weight, on: GPU) -> str:
    """Why the library cannot run a call with this weight at all, whatever it gains; empty: it can."""
    reason = route.why_illegal(call, on)
    return reason or (_why_not_tf32(weight) if call.dtype is torch.float32 else "")


def route_of(call: route.Call, weight: Weight, on: GPU) -> route.Route:
    """The route of a call with this weight: a sparse one only where something may be derived from it."""
    chosen = route.choose(call, on, weight.keeps_dense)
    if not chosen.sparse:
        return chosen
    reason = _why_not_tf32(weight) if call.dtype is torch.float32 else ""
    if not reason and weight.derived() is None:
        reason = HELD
    return chosen._replace(sparse=False, reason=reason) if reason else chosen


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
        y = torch.empty(x.shape[0], chosen.m, dtype=out_dtype, device=input.device)
        multiply(launch, x, y)
    output = y[..., :m].contiguous().view(*input.shape[:-1], m)
    return activate(output, chosen.epilogue)


def linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str, stream: Stream
) -> Tensor:
    """``torch.ops.sparse24.linear`` on ``stream``, sparse where its route says so."""
    return linear_by(input, Canonical(values, indices), bias, activation, stream)


def linear_by(input: Tensor, weight: Weight, bias: Tensor | None, activation: str, stream: Stream) -> Tensor:
    """:func:`linear` of a weight in whatever form it has."""
    check_linear(input, *weight.like, bias, activation)
    n, k, m = input.shape[:-1].numel(), input.shape[-1], weight.like[0].shape[0]
    if n == 0:
        return input.new_empty((*input.shape[:-1], m))
    if why_unavailable(stream.device) or k == 0:
        return linear_torch(input, *weight.read(), bias, activation)
    epilogue = Epilogue(bias, None, activation)
    call = call_of(input, m, n, k, input.dtype, epilogue)
    chosen = route_of(call, weight, ready(stream.device))
    if not chosen.sparse:
        return activate(F.linear(input, weight.dense(stream)[:, :k], bias), activation)
    return linear_sparse(input, weight, epilogue, input.dtype, chosen, call, stream)


def prepare_linear(call: route.Call, weight: Weight, chosen: route.Route, stream: Stream) -> list[Name]:
    """Make what :func:`linear_by` needs along a sparse route; the blobs that it reads.

    Raises:
        Error: a CUDA graph is captured.
    """
    launch = Launch(weight, (0, call.m), Epilogue(), chosen, call, stream)
    plans = [launch.prepare(n, chosen.k, chosen.m)[0] for n in launched_tokens(call.n, chosen.multiple)]
    return [(launch.rows, plan.key) for plan in plans]


# ---- convolution ------------------------------------------------------------------------------------


class Window(NamedTuple):
    """The geometry of a convolution."""

    kernel_size: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @property
    def is_pointwise(self) -> bool:
        """Whether an image's pixels are the rows of the product as they are."""
        return (tuple(self.kernel_size), tuple(self.stride), tuple(self.padding)) == ((1, 1), (1, 1), (0, 0))


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
    return call_of(input, m, tokens, k, out_dtype, epilogue)


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
    y = torch.empty(batch * pixels, window.groups * chosen.m, dtype=out_dtype, device=input.device)
    images = max(IM2COL_BYTES // (pixels * chosen.k * x.element_size()), 1)
    if window.is_pointwise:
        images = batch
    for group in range(window.groups):
        rows = (group * m, m)
        vectors = (None if v is None else v[rows[0] : rows[0] + m] for v in (epilogue.bias, epilogue.scale))
        bias, scale = (vector(v, chosen.m) for v in vectors)
        launch = Launch(weight, rows, Epilogue(bias, scale), chosen, call, stream)
        for first in range(0, batch, images):
            matrix = _rows_of(x[first : first + images], group, window, out_size, chosen.k, stream)
            tokens = slice(first * pixels, first * pixels + matrix.shape[0])
            multiply(launch, matrix, y[tokens, group * chosen.m : (group + 1) * chosen.m])
    wanted = y[:, : window.groups * m].contiguous()
    output = wanted.view(batch, *out_size, window.groups * m).permute(0, 3, 1, 2)
    if not channels_last:
        output = output.contiguous()
    return activate(output, chosen.epilogue)


def _rows_of(
    x: Tensor, group: int, window: Window, out_size: Sequence[int], columns: int, stream: Stream
) -> Tensor:
    """The rows of the product for images [N, H, W, C]."""
    channels = x.shape[3] // window.groups
    first = group * channels
    if window.is_pointwise:
        pixels = x.reshape(-1, x.shape[3])[:, first : first + channels]
        return legal_input(pixels, columns, 16 // x.element_size())
    return device_kernels.im2col(
        x, first, channels, window.kernel_size, window.stride, window.padding, window.dilation, out_size,
        columns, stream.handle,
    )  # fmt: skip


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
    values, indices = weight.like
    check_conv2d(input, values, indices, bias, *window, activation)
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    if input.shape[0] == 0:
        return input.new_empty((0, values.shape[0], *out_size))
    if why_unavailable(stream.device):
        values, indices = weight.read()
        return conv2d_torch(input, values, indices, bias, *window, activation)
    epilogue = Epilogue(bias, None, activation)
    call = conv2d_call(input, values.shape[0], window, out_size, input.dtype, epilogue)
    chosen = conv2d_route(call, weight, window, ready(stream.device))
    if chosen.sparse:
        return conv2d_sparse(input, weight, window, epilogue, input.dtype, chosen, call, stream)
    dense = conv_matrix_to_weight(weight.dense(stream), input.shape[1] // window.groups, window.kernel_size)
    output = F.conv2d(input, dense, bias, window.stride, window.padding, window.dilation, window.groups)
    return activate(output, activation)


def prepare_conv2d(
    call: route.Call, weight: Weight, window: Window, chosen: route.Route, stream: Stream
) -> list[Name]:
    """Make what :func:`conv2d_by` needs along a sparse route, in launches of ``call.n`` pixels; the blobs.

    Raises:
        Error: a CUDA graph is captured.
    """
    names = []
    for group in range(window.groups):
        launch = Launch(weight, (group * call.m, call.m), Epilogue(), chosen, call, stream)
        for n in launched_tokens(call.n, chosen.multiple):
            plan, _ = launch.prepare(n, chosen.k, window.groups * chosen.m)
            names.append((launch.rows, plan.key))
    return names
