"""The sparse products on a GPU. They take tensors and a stream, and nothing that needs a device.

y [n, m] = activation(scale * (x [n, k] W^T) + bias): the weight is cuSPARSELt's structured operand, x and y
stay row-major as torch has them, nothing is transposed, and nothing is padded but what a size that is not
legal makes necessary (``route.Route.notes``). What cannot run sparse, or would lose, runs dense.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _C
from ..conv2d import check_conv2d, conv2d_torch, conv_out_size, is_channels_last
from ..linear import check_linear, linear_torch
from ..product import activate
from ..registry import round_up
from ..scaled import (
    check_scaled_conv2d,
    check_scaled_linear,
    finish,
    scaled_conv2d_torch,
    scaled_linear_torch,
)
from . import blobs, cusparselt, device_kernels, route, tuned
from .cusparselt import GPU, Algorithm, Stream, why_unavailable

#: Patches of a convolution are written for as many images at a time as fit this many bytes.
IM2COL_BYTES = 256 << 20


class Epilogue(NamedTuple):
    """What follows the product."""

    bias: Tensor | None = None  #: [m]: out's dtype, float32 for int8 inputs
    scale: Tensor | None = None  #: float32 [m]
    activation: str = "none"
    relu_bounds: tuple[float, float] = route.NO_BOUNDS


def _call(x: Tensor, m: int, n: int, k: int, out_dtype: torch.dtype, epilogue: Epilogue) -> route.Call:
    return route.Call(
        x.dtype, out_dtype, m, n, k, epilogue.activation, epilogue.bias is not None,
        epilogue.scale is not None, epilogue.relu_bounds,
    )  # fmt: skip


def _is_16_byte(tensor: Tensor) -> bool:
    return tensor.data_ptr() % 16 == 0


def _why_not_tf32(values: Tensor, indices: Tensor) -> str:
    """Why a float32 weight cannot run on sparse tensor cores, which compute it as TF32 and 1:2."""
    if torch.get_float32_matmul_precision() == "highest":
        return (
            'float32 runs as TF32, which torch.set_float32_matmul_precision("high") has to allow; '
            "float16 and bfloat16 need no leave"
        )
    if not blobs.prepared(values, indices).is_1_of_2(values, indices):
        return (
            "float32 needs one kept weight of every two (1:2) on sparse tensor cores; use float16 or bfloat16"
        )
    return ""


def why_not_legal(call: route.Call, values: Tensor, indices: Tensor, on: GPU) -> str:
    """Why the library cannot run a call with this weight at all, whatever it gains; empty: it can."""
    reason = route.why_illegal(call, on)
    return reason or (_why_not_tf32(values, indices) if call.dtype is torch.float32 else "")


def route_of(call: route.Call, values: Tensor, indices: Tensor, on: GPU) -> route.Route:
    """The route of a call with this weight."""
    chosen = route.choose(call, on, blobs.dense_kept(values))
    if chosen.sparse and call.dtype is torch.float32:
        reason = _why_not_tf32(values, indices)
        if reason:
            return chosen._replace(sparse=False, reason=reason)
    return chosen


class _Launch(NamedTuple):
    """The parts of one product that do not change from launch to launch."""

    values: Tensor
    indices: Tensor
    rows: tuple[int, int]  # first, count: the part of the weight that belongs to one group
    epilogue: Epilogue
    route: route.Route
    call: route.Call
    stream: Stream

    def run(self, x: Tensor, y: Tensor, batches: tuple[int, int, int] = (1, 0, 0)) -> None:
        """Queue y = x W^T. x [..., n, k] and y [..., n, m]: strides legal, n a legal multiple."""
        stream = self.stream
        fused = "none" if self.route.epilogue != "none" else self.call.activation
        call = self.call._replace(m=self.route.m, n=x.shape[-2], k=self.route.k)
        plan = _plan_of(call, fused, self.route.algorithm, x.stride(-2), y.stride(-2), batches, stream)
        blob = blobs.blob_of(self.values, self.indices, self.rows, plan, stream)
        scratch = blobs.workspace(plan.workspace_bytes, x.device, stream)
        bias, scale = self.epilogue.bias, self.epilogue.scale
        _C.cusparselt_matmul(
            stream.device, plan.product, blob.key, blob.data.data_ptr(), x.data_ptr(), y.data_ptr(),
            0 if bias is None else bias.data_ptr(), 0 if scale is None else scale.data_ptr(), 1.0,
            scratch.data_ptr(), scratch.numel(), stream.handle,
        )  # fmt: skip


_plans: dict[tuple[object, ...], blobs.Plan] = {}
_MOST_PLANS = 4096


def _plan_of(
    call: route.Call, activation: str, algorithm: Algorithm, x_stride: int, y_stride: int,
    batches: tuple[int, int, int], stream: Stream,
) -> blobs.Plan:  # fmt: skip
    """The product in its C++ form, what its blob is called, and the bytes it needs: asked for once."""
    name = (stream.device, call, activation, algorithm, x_stride, y_stride, batches)
    found = _plans.get(name)
    if found is None:
        form = route.product(
            call, activation, algorithm, x_stride=x_stride, y_stride=y_stride, batches=batches
        )
        bytes = _C.cusparselt_sizes(stream.device, form, stream.handle)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        found = _plans[name] = blobs.Plan(form, _C.cusparselt_blob_key(stream.device, form), *bytes)
    return found


def forget_plans() -> None:
    """Choose again, with the figures as they are now."""
    _plans.clear()
    route.forget()


def forget() -> None:
    """Ask again what was asked once: the library or the device has changed."""
    forget_plans()
    cusparselt.forget()
    _ready.cache_clear()


@functools.cache
def _ready(device: int) -> GPU:
    """The GPU of a device that can use cuSPARSELt, with the figures that were measured on it before."""
    found = cusparselt.gpu(device)
    tuned.load(device, found)
    return found


def _legal_input(x: Tensor, columns: int, multiple: int) -> Tensor:
    """``x`` [n, k] as the library can read it: [n, columns], aligned, a legal stride; copied if need be."""
    if x.shape[1] != columns:
        wide = x.new_zeros(x.shape[0], columns)
        wide[:, : x.shape[1]] = x
        return wide
    if x.stride(1) == 1 and x.stride(0) % multiple == 0 and x.stride(0) >= columns and _is_16_byte(x):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _multiply(launch: _Launch, x: Tensor, y: Tensor) -> None:
    """y [n, m] = x [n, k] W^T for any n: the last legal multiple of tokens overlaps what came before."""
    multiple, n = launch.route.multiple, x.shape[0]
    whole = n // multiple * multiple
    if whole:
        launch.run(x[:whole], y[:whole])
    if whole == n:
        return
    if whole:
        launch.run(x[n - multiple :], y[n - multiple :])
        return
    few = x.new_zeros(multiple, x.shape[1])
    few[:n] = x
    wide = y.new_empty(multiple, y.shape[1])
    launch.run(few, wide)
    y.copy_(wide[:n])


def _vector(vector: Tensor | None, size: int) -> Tensor | None:
    """A bias or scale of legal length and alignment: zeros beyond its own."""
    if vector is None:
        return None
    if vector.shape[0] != size:
        return F.pad(vector, (0, size - vector.shape[0]))
    vector = vector.contiguous()
    return vector if _is_16_byte(vector) else vector.clone()


def _as_batches(input: Tensor, launch: _Launch, stride_multiple: int) -> Tensor | None:
    """y of a 3-D input that is no matrix in memory (a slice of tokens, say), without copying it: or None."""
    if input.dim() != 3 or input.stride(2) != 1 or input.shape[2] != launch.route.k or input.shape[0] < 2:
        return None
    batch, n, _ = input.shape
    between, stride = input.stride(0), input.stride(1)
    legal = (
        n and n % launch.route.multiple == 0 and stride % stride_multiple == 0 and stride >= input.shape[2]
    )
    if not legal or between < n * stride or between % stride_multiple or not _is_16_byte(input):
        return None
    y = torch.empty(batch, n, launch.route.m, dtype=launch.call.out_dtype, device=input.device)
    launch.run(input, y, (batch, between, n * launch.route.m))
    return y


def linear_sparse(
    input: Tensor, values: Tensor, indices: Tensor, epilogue: Epilogue, out_dtype: torch.dtype,
    chosen: route.Route, call: route.Call, stream: Stream,
) -> Tensor:  # fmt: skip
    """A linear product along a sparse route: input [..., k], output [..., m] in ``out_dtype``."""
    m = values.shape[0]
    bias, scale = _vector(epilogue.bias, chosen.m), _vector(epilogue.scale, chosen.m)
    launch = _Launch(values, indices, (0, m), Epilogue(bias, scale), chosen, call, stream)
    stride_multiple = 16 // input.element_size()
    y = None if input.is_contiguous() else _as_batches(input, launch, stride_multiple)
    if y is None:
        x = _legal_input(input.reshape(-1, input.shape[-1]), chosen.k, stride_multiple)
        y = torch.empty(x.shape[0], chosen.m, dtype=out_dtype, device=input.device)
        _multiply(launch, x, y)
    output = y[..., :m].contiguous().view(*input.shape[:-1], m)
    return activate(output, chosen.epilogue)


def linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str, stream: Stream
) -> Tensor:
    """``torch.ops.sparse24.linear`` on ``stream``, sparse where its route says so."""
    check_linear(input, values, indices, bias, activation)
    if why_unavailable(stream.device) or input.numel() == 0:
        return linear_torch(input, values, indices, bias, activation)
    epilogue = Epilogue(bias, None, activation)
    n, k = input.shape[:-1].numel(), input.shape[-1]
    call = _call(input, values.shape[0], n, k, values.dtype, epilogue)
    chosen = route_of(call, values, indices, _ready(stream.device))
    if not chosen.sparse:
        weight = blobs.dense_weight(values, indices, stream)[:, : input.shape[-1]]
        return activate(F.linear(input, weight, bias), activation)
    return linear_sparse(input, values, indices, epilogue, values.dtype, chosen, call, stream)


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
    input: Tensor, values: Tensor, window: Window, out_size: Sequence[int], out_dtype: torch.dtype,
    epilogue: Epilogue,
) -> route.Call:  # fmt: skip
    """The product behind a convolution, of one group."""
    m, k = conv2d_sizes(input.shape[1], values.shape[0], window)
    tokens = input.shape[0] * out_size[0] * out_size[1]
    return _call(input, m, tokens, k, out_dtype, epilogue)


def conv2d_route(call: route.Call, values: Tensor, indices: Tensor, window: Window, on: GPU) -> route.Route:
    """The route of a convolution: the product's, but that groups must not overlap in the output."""
    chosen = route_of(call, values, indices, on)
    if chosen.sparse and window.groups > 1 and chosen.m != call.m:
        return chosen._replace(
            sparse=False,
            reason=f"{call.m} output channels in each of {window.groups} groups are no legal size; "
            f"nearest: {chosen.m}",
        )
    return chosen


def conv2d_sparse(
    input: Tensor, values: Tensor, indices: Tensor, window: Window, epilogue: Epilogue,
    out_dtype: torch.dtype, chosen: route.Route, call: route.Call, stream: Stream,
) -> Tensor:  # fmt: skip
    """A convolution along a sparse route: as 1x1 on the pixels themselves, else on patches.

    The output is channels_last if the input is, else contiguous: then both are copied.
    """
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    channels_last = is_channels_last(input)
    x = input.permute(0, 2, 3, 1).contiguous()  # a view of a channels_last input
    batch, m = x.shape[0], values.shape[0] // window.groups
    pixels = out_size[0] * out_size[1]
    y = torch.empty(batch * pixels, window.groups * chosen.m, dtype=out_dtype, device=input.device)
    images = max(IM2COL_BYTES // (pixels * chosen.k * x.element_size()), 1)
    if window.is_pointwise:
        images = batch
    for group in range(window.groups):
        rows = (group * m, m)
        vectors = (None if v is None else v[rows[0] : rows[0] + m] for v in (epilogue.bias, epilogue.scale))
        bias, scale = (_vector(v, chosen.m) for v in vectors)
        launch = _Launch(values, indices, rows, Epilogue(bias, scale), chosen, call, stream)
        for first in range(0, batch, images):
            matrix = _rows_of(x[first : first + images], group, window, out_size, chosen.k, stream)
            tokens = slice(first * pixels, first * pixels + matrix.shape[0])
            _multiply(launch, matrix, y[tokens, group * chosen.m : (group + 1) * chosen.m])
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
        return _legal_input(pixels, columns, 16 // x.element_size())
    return device_kernels.im2col(
        x, first, channels, window.kernel_size, window.stride, window.padding, window.dilation, out_size,
        columns, stream.handle,
    )  # fmt: skip


def conv2d(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, window: Window, activation: str,
    stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.conv2d`` on ``stream``, sparse where its route says so."""
    check_conv2d(input, values, indices, bias, *window, activation)
    if why_unavailable(stream.device) or input.numel() == 0:
        return conv2d_torch(input, values, indices, bias, *window, activation)
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    epilogue = Epilogue(bias, None, activation)
    call = conv2d_call(input, values, window, out_size, values.dtype, epilogue)
    chosen = conv2d_route(call, values, indices, window, _ready(stream.device))
    if not chosen.sparse:
        return conv2d_torch(input, values, indices, bias, *window, activation)
    return conv2d_sparse(input, values, indices, window, epilogue, values.dtype, chosen, call, stream)


# ---- 8-bit operands ---------------------------------------------------------------------------------


class _Split(NamedTuple):
    """An epilogue, divided into what the product does and what torch does after it."""

    fused: Epilogue
    product_dtype: torch.dtype
    scale: Tensor | None
    bias: Tensor | None
    activation: str


def _split(call: route.Call, scale: Tensor | None, bias: Tensor | None, on: GPU) -> _Split:
    """int8 products scale each row and add a float32 bias themselves; of fp8 only a bias is sure.

    An fp8 product with a scale gives float32, and torch does the rest. So it is with the int32 sums of an
    int8 product whose activation is not fused, lest it be applied to numbers that are rounded already.
    """
    activation, out_dtype = call.activation, call.out_dtype
    if call.dtype is torch.int8:
        if out_dtype.is_floating_point or route.fused_activation(call, on) == activation:
            return _Split(Epilogue(bias, scale, activation), out_dtype, None, None, "none")
        return _Split(Epilogue(), torch.int32, scale, bias, activation)
    if scale is None:
        bias = None if bias is None else bias.to(out_dtype)
        return _Split(Epilogue(bias, None, activation), out_dtype, None, None, "none")
    return _Split(Epilogue(), torch.float32, scale, bias, activation)


def scaled_linear(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.scaled_linear`` on ``stream``, sparse wherever it is legal."""
    check_scaled_linear(input, values, indices, scale, bias, out_dtype, activation)
    if why_unavailable(stream.device) or input.numel() == 0:
        return scaled_linear_torch(input, values, indices, scale, bias, out_dtype, activation)
    on, sizes = _ready(stream.device), (values.shape[0], input.shape[:-1].numel(), input.shape[-1])
    parts = _split(_call(input, *sizes, out_dtype, Epilogue(bias, scale, activation)), scale, bias, on)
    call = _call(input, *sizes, parts.product_dtype, parts.fused)
    chosen = route_of(call, values, indices, on)
    if not chosen.sparse:
        return scaled_linear_torch(input, values, indices, scale, bias, out_dtype, activation)
    product = linear_sparse(input, values, indices, parts.fused, parts.product_dtype, chosen, call, stream)
    return finish(product, parts.scale, parts.bias, parts.activation, out_dtype)


def scaled_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
    out_dtype: torch.dtype, window: Window, activation: str, stream: Stream,
) -> Tensor:  # fmt: skip
    """``torch.ops.sparse24.scaled_conv2d`` on ``stream``, sparse wherever it is legal."""
    arguments = (input, values, indices, scale, bias, out_dtype, *window, activation)
    check_scaled_conv2d(*arguments)
    if why_unavailable(stream.device) or input.numel() == 0:
        return scaled_conv2d_torch(*arguments)
    out_size = conv_out_size(input, window.kernel_size, window.stride, window.padding, window.dilation)
    on, epilogue = _ready(stream.device), Epilogue(bias, scale, activation)
    whole = conv2d_call(input, values, window, out_size, out_dtype, epilogue)
    parts = _split(whole, scale, bias, on)
    call = conv2d_call(input, values, window, out_size, parts.product_dtype, parts.fused)
    chosen = conv2d_route(call, values, indices, window, on)
    if not chosen.sparse:
        return scaled_conv2d_torch(*arguments)
    product = conv2d_sparse(
        input, values, indices, window, parts.fused, parts.product_dtype, chosen, call, stream
    )
    rest = finish(product.permute(0, 2, 3, 1), parts.scale, parts.bias, parts.activation, out_dtype)
    return rest.permute(0, 3, 1, 2)
