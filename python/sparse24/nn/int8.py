"""8-bit storage of a compressed layer: ``values`` int8, ``weight_scale`` [out], maybe ``input_scale`` [].

Weights are symmetric and rounded to nearest, a scale for every output channel: value * weight_scale. Without
an ``input_scale`` only the weight is int8. With one, the input becomes int8 too: by that scale, or where it
is 0 by a scale of every token's own (of every image's, in a convolution).

``values`` may be float8_e4m3fn instead: then the input is float8 too, by a scale of every token's (image's).
A little over 300 lines: what storage is, its products, and files of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.cuda import device_kernels

if TYPE_CHECKING:
    from .compressed import CompressedModule
    from .convolution import CompressedConvolution
    from .linear import SparseLinear

#: What ``activations`` of :meth:`~.compressed.CompressedModule.to_int8` may be.
ACTIVATIONS = (None, "dynamic", "static")

#: Buffers that stay float32. ``output_scale`` is in no state_dict: chains are made anew (``quant.chain``).
_SCALES = ("weight_scale", "input_scale", "output_scale")

#: Values that are widened when they are loaded, but by a layer that has such storage.
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def quantize_rows(values: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """8-bit values and float32 scales [rows], the largest magnitude over 127, of kept weights [rows, K/2].

    ``dtype`` may be float8_e4m3fn: then it is over 448.

    A row of zeros, or of what is too small to divide by, gets the scale 1; zeros stay exact.

    Raises:
        ValueError: a value is not finite; the row is named.
    """
    wide = values.detach().float()
    absmax = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(len(wide))
    if not wide.is_meta:
        wrong = (~absmax.isfinite()).nonzero()
        if len(wrong):
            name = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"only finite weights can become {name}, but row {int(wrong[0])} holds NaN or Inf"
            )
    largest = device_kernels.LARGEST[dtype]
    scale = absmax / largest
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    scaled = wide / scale.unsqueeze(1)
    return (scaled.round() if dtype is torch.int8 else scaled).clamp(-largest, largest).to(dtype), scale


def input_scale_of(activations: str | None, scale: float | None) -> float | None:
    """The number that ``input_scale`` holds: ``None``, 0 for "dynamic", or the scale of "static".

    Raises:
        ValueError: another word; a scale that is missing, out of place, not positive or not finite.
    """
    if activations not in ACTIVATIONS:
        raise ValueError(f"activations must be None, 'dynamic' or 'static', not {activations!r}")
    if (scale is not None) != (activations == "static"):
        raise ValueError(f"input_scale belongs to activations='static', not to {activations!r} with {scale}")
    if activations is None:
        return None
    if scale is None:
        return 0.0
    if not 0 < scale < float("inf"):
        raise ValueError(f"input_scale must be positive and finite, not {scale}")
    return float(scale)


def store(layer: CompressedModule, values: Tensor, scale: Tensor, input_scale: Tensor | None) -> None:
    """Make 8-bit ``values`` and their scales the layer's storage."""
    layer.values = nn.Parameter(values, requires_grad=False)
    layer._buffers.pop("output_scale", None)
    for name, tensor in (("weight_scale", scale), ("input_scale", input_scale)):
        layer._buffers.pop(name, None)
        if tensor is not None:
            layer.register_buffer(name, tensor)


def is_narrow(layer: nn.Module) -> bool:
    """Whether the layer's storage is int8 or float8."""
    # As C reads a dict: a layer whose weight is away on a GPU (lent.py) does not bring it back for this.
    return dict.get(layer.__dict__["_buffers"], "weight_scale") is not None


def is_int8(layer: nn.Module) -> bool:
    """Whether the layer's storage is int8."""
    return is_narrow(layer) and not is_float8(layer)


def is_float8(layer: nn.Module) -> bool:
    """Whether the layer's storage is float8."""
    return is_narrow(layer) and layer.values.dtype in FLOAT8


def scales_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """weight_scale, input_scale."""
    return layer._buffers["weight_scale"], layer._buffers.get("input_scale")  # type: ignore[return-value]


def dequantized(layer: CompressedModule, dtype: torch.dtype) -> Tensor:
    """The dense weight of the layer's shape."""
    matrix = ops.dequantized(layer.values, layer.indices, scales_of(layer)[0], dtype)
    return layer._form.to_weight(matrix)


class _Exact(torch.autograd.Function):
    """The first argument's numbers with the second one's gradient."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, smooth: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def is_chained(layer: nn.Module, input: Tensor) -> bool:
    """Whether the layer is given int8, or hands it on (``output_scale``, of the layer that follows)."""
    return input.dtype == torch.int8 or dict.get(layer.__dict__["_buffers"], "output_scale") is not None


def _chained_scales(layer: CompressedModule, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """weight_scale, input_scale, output_scale.

    Raises:
        TypeError: an int8 input for a layer whose scale is not static.
    """
    weight_scale, input_scale = scales_of(layer)
    is_known = input_scale is not None and not (input_scale.is_meta or torch.compiler.is_compiling())
    if input_scale is None or (is_known and not float(input_scale) > 0):
        raise TypeError(
            "an int8 input is for layers whose activations are static, with the scale that it was made by; "
            f"this {type(layer).__name__} takes floating inputs"
        )
    return weight_scale, input_scale, layer._buffers.get("output_scale")


def _wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def linear(layer: SparseLinear, input: Tensor) -> Tensor:
    """The product; gradients are those of the dequantized weight, straight through the input's rounding."""
    values, indices, bias = layer._operands()
    if values.dtype in FLOAT8:
        return _linear_by(ops.float8_linear, layer, input, values, indices, scales_of(layer)[0])
    if is_chained(layer, input):
        weight_scale, input_scale, output_scale = _chained_scales(layer, input)
        dtype = layer._float_dtype if input.dtype == torch.int8 else input.dtype
        scaled = (values, indices, weight_scale, input_scale)
        return ops.int8_linear_chained(input, *scaled, bias, layer.activation, output_scale, dtype)
    return _linear_by(ops.int8_linear, layer, input, values, indices, *scales_of(layer))


def _linear_by(
    product: Callable[..., Tensor], layer: SparseLinear, input: Tensor, *weight: Tensor | None
) -> Tensor:
    bias = layer.bias
    if not _wants_grad(input, bias):
        return product(input, *weight, bias, layer.activation)
    exact = product(input.detach(), *weight, None if bias is None else bias.detach(), "none")
    smooth = F.linear(input, dequantized(layer, input.dtype), bias)
    output: Tensor = _Exact.apply(exact, smooth)  # type: ignore[no-untyped-call]
    return ops.activate(output, layer.activation)


def conv2d(layer: CompressedConvolution, input: Tensor) -> Tensor:
    """The convolution (of a SparseConv3d: of stacked planes), with gradients as :func:`linear` has them."""
    values, indices, bias = layer._operands()
    if values.dtype in FLOAT8:
        scale = scales_of(layer)[0]
        return _conv2d_by(ops.float8_conv2d, layer, input, values, indices, scale)
    if is_chained(layer, input):
        weight_scale, input_scale, output_scale = _chained_scales(layer, input)
        dtype = layer._float_dtype if input.dtype == torch.int8 else input.dtype
        scaled = (values, indices, weight_scale, input_scale)
        return ops.int8_conv2d_chained(
            input, scaled, bias, layer._window, layer.activation, output_scale, dtype
        )
    return _conv2d_by(ops.int8_conv2d, layer, input, values, indices, *scales_of(layer))


def _conv2d_by(
    product: Callable[..., Tensor],
    layer: CompressedConvolution,
    input: Tensor,
    *operands: Tensor | None,
) -> Tensor:
    bias = layer.bias
    if not _wants_grad(input, bias):
        return product(input, *operands, bias, layer.activation, layer._window)
    plain = None if bias is None else bias.detach()
    exact = product(input.detach(), *operands, plain, "none", layer._window)
    _, stride, padding, dilation, groups = ops.geometry_of(layer._window)
    weight = layer._two_dimensional(dequantized(layer, input.dtype))
    smooth = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    output: Tensor = _Exact.apply(exact, smooth)  # type: ignore[no-untyped-call]
    return ops.activate(output, layer.activation)


# ---- casts, and files ---------------------------------------------------------------------------------


def before_cast(layer: CompressedModule) -> tuple[Tensor, ...] | None:
    """values and scales of an 8-bit layer that is about to be moved or cast; ``None``: it is none."""
    if not is_narrow(layer):
        return None
    held = (layer._buffers.get(name) for name in _SCALES)
    own = layer.values.detach() if is_float8(layer) else layer.values.new_empty(0)  # int8 is cast by nobody
    return own, *(s for s in held if s is not None)


def after_cast(layer: CompressedModule, kept: tuple[Tensor, ...], fn: Any) -> None:
    """Scales stay float32 and float8 is float8, whatever the network is cast to; what the dense weight would
    be is remembered.
    """
    values, *kept_scales = kept
    if layer.values.dtype != values.dtype:
        device = layer.values.device
        back = values if values.is_meta and device.type == "meta" else values.to(device)
        layer._parameters["values"] = nn.Parameter(back, requires_grad=False)
    held = [name for name in _SCALES if layer._buffers.get(name) is not None]
    for name, old in zip(held, kept_scales, strict=True):
        new = layer._buffers[name]
        assert new is not None
        if new.dtype != torch.float32:
            layer._buffers[name] = new.float() if old.is_meta else old.to(new.device)
    cast = fn(torch.empty(0, dtype=layer._float_dtype, device=values.device))
    if cast.is_floating_point():
        layer._float_dtype = cast.dtype


def problem_with(layer: CompressedModule, values: Any, weight_scale: Any, input_scale: Any) -> str | None:
    """Why values of this dtype, with these scales, cannot be loaded; ``None``: they can."""
    if values is None or values.dtype not in (torch.int8, *FLOAT8):
        floats = values is None or values.is_floating_point()
        return None if floats else f"values are {values.dtype}: a weight is floating or int8"
    if weight_scale is None:
        return None if values.dtype in FLOAT8 else "values are int8, but no weight_scale is beside them"
    try:
        ops.check_scales(values.shape[0], weight_scale, input_scale)
    except (TypeError, ValueError) as error:
        return str(error)
    wrong = [] if weight_scale.is_meta else (~(weight_scale.isfinite() & (weight_scale >= 0))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        return f"weight_scale of row {row} is {float(weight_scale[row])}: it must be finite and not negative"
    known = input_scale is not None and not input_scale.is_meta
    if known and not (input_scale >= 0 and input_scale.isfinite()):
        return f"input_scale is {float(input_scale)}: it must be 0 (dynamic) or positive and finite"
    return None


def fit(layer: CompressedModule, state_dict: Any, prefix: str) -> Any:
    """Give the layer the storage that a checked checkpoint has; what to load, float8 being widened.

    The file decides: int8 values make an int8 layer, floating ones a floating layer. A layer of float8 keeps
    float8 with scales as it is.
    """
    values = state_dict.get(prefix + "values")
    if values is None:
        return state_dict
    layer.__dict__.pop("_was_float8", None)
    if values.dtype == torch.int8:
        _be_int8(layer, prefix + "input_scale" in state_dict)
        return state_dict
    if is_narrow(layer) and layer.values.dtype == values.dtype and prefix + "weight_scale" in state_dict:
        return {key: value for key, value in state_dict.items() if key != prefix + "input_scale"}
    _be_floating(layer)
    if values.dtype not in FLOAT8:
        return state_dict
    widened = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    scale = widened.pop(prefix + "weight_scale", None)
    widened.pop(prefix + "input_scale", None)
    wide = values.float()
    widened[prefix + "values"] = wide if scale is None else wide * scale.unsqueeze(1)
    layer._was_float8 = str(values.dtype).removeprefix("torch.")
    return widened


def _be_int8(layer: CompressedModule, has_input_scale: bool) -> None:
    own, rows = layer.values, layer.values.shape[0]
    if not is_int8(layer):
        layer._float_dtype = layer._dtype()
        ones = torch.ones(rows, device=own.device)
        store(layer, torch.zeros(own.shape, dtype=torch.int8, device=own.device), ones, None)
    layer._buffers.pop("input_scale", None)
    if has_input_scale:
        layer.register_buffer("input_scale", torch.zeros((), device=own.device))


def _be_floating(layer: CompressedModule) -> None:
    if not is_narrow(layer):
        return
    own = layer.values
    layer.values = nn.Parameter(torch.zeros(own.shape, dtype=layer._float_dtype, device=own.device), False)
    for name in _SCALES:
        layer._buffers.pop(name, None)


def remark_of(layer: CompressedModule) -> str:
    """What a representation says of the storage."""
    was = layer.__dict__.get("_was_float8")
    if was is not None:
        return f", dequantized from {was}"
    if not is_narrow(layer):
        return ""
    if is_float8(layer):
        return ", activations float8"
    _, input_scale = scales_of(layer)
    if input_scale is None:
        return ", weight only"
    if input_scale.is_meta:
        return ", activations int8"
    return ', activations="dynamic"' if float(input_scale) == 0 else ', activations="static"'
