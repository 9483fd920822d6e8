"""The operators ``torch.ops.sparse24.*``: schemas, kernels per device, fake kernels.

The only module that imports the compiled extension. Each operator has three bodies: the C++ one for
CPU tensors, one in plain torch that serves every other device and dtype, and a fake one that gives
shapes to ``torch.compile`` and ``torch.export``. Arguments are checked here, before anything runs.

Canonical compressed layout of a weight [rows, K], on every device::

    values   [rows, Kp/2]  weight dtype: the two kept values of every group of four, in column order
    indices  [rows, Kp/8]  uint8: 2 bits a kept value, low bits first   (Kp = K rounded up to 8)

A group with fewer than two non-zeros is filled with zero slots at its lowest free columns, so the two
indices of a group always increase.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import Library, register_fake

from . import _C

Error = _C.Error
Error.__doc__ = "A backend that failed or is missing. Mistakes of the caller are ValueError and TypeError."

_library = Library("sparse24", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)

#: Names of the fused activations, in the order of the C++ enum.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh")
_ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}

_DTYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 4,
}
_MASK_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def round_up(value: int, multiple: int) -> int:
    """``value`` rounded up to a multiple of ``multiple``."""
    return -(-value // multiple) * multiple


# ---- masks ------------------------------------------------------------------------------------------

_library.define("nm_mask(Tensor weight, int n, int m, int dim) -> Tensor", tags=_TAGS)
_library.define("prune_(Tensor(a!) weight, int n, int m, int dim) -> Tensor", tags=_TAGS)
_library.define("transposable_mask(Tensor weight) -> Tensor", tags=_TAGS)


def _check_pattern(weight: Tensor, n: int, m: int, dim: int) -> int:
    torch._check_value(
        1 <= n <= m, lambda: f"an N:M pattern needs 1 <= N <= M, not {n}:{m}; 2:4 is the hardware's"
    )
    torch._check_value(
        weight.dim() > 0 and -weight.dim() <= dim < weight.dim(),
        lambda: f"dim {dim} is out of range for a weight of shape {tuple(weight.shape)}",
    )
    torch._check_value(
        not weight.is_complex() and weight.dtype != torch.bool,
        lambda: f"magnitudes of dtype {weight.dtype} cannot be ranked; give a real dtype",
    )
    return dim % weight.dim()


def _magnitude_bits(weight: Tensor) -> Tensor:
    """Integers that order as magnitudes do: NaN above Inf, -0 equal to +0."""
    if not weight.is_floating_point():
        return weight.to(torch.int64).abs()
    if weight.element_size() == 1:  # fp8 has no integer order of its own on every format
        weight = weight.float()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return weight.contiguous().view(bits) & torch.iinfo(bits).max


def nm_mask_torch(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """``nm_mask`` in plain torch, for every device and dtype."""
    dim = _check_pattern(weight, n, m, dim)
    bits = _magnitude_bits(weight).movedim(dim, -1)
    length = bits.shape[-1]
    # Positions beyond the end rank below every weight, zero included.
    groups = F.pad(bits, (0, round_up(length, m) - length), value=-1).unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.flatten(-2)[..., :length].movedim(-1, dim).contiguous()


def _split_at(weight: Tensor, dim: int) -> tuple[int, int, int]:
    """Sizes (before, of, after) dimension ``dim`` of a contiguous weight."""
    shape = weight.shape
    return shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel()


def _nm_mask_cpu(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    if weight.dtype not in _MASK_DTYPES:
        return nm_mask_torch(weight, n, m, dim)
    dim = _check_pattern(weight, n, m, dim)
    weight = weight.contiguous()
    mask = torch.empty(weight.shape, dtype=torch.bool)
    _C.nm_mask(
        weight.data_ptr(), _DTYPES[weight.dtype], *_split_at(weight, dim), n, m, mask.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return mask


def prune_torch_(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """``prune_`` in plain torch, for every device and dtype."""
    mask = nm_mask_torch(weight, n, m, dim)
    weight.masked_fill_(~mask, 0)
    return mask


def _prune_cpu_(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    if weight.dtype not in _MASK_DTYPES or not weight.is_contiguous():
        return prune_torch_(weight, n, m, dim)
    dim = _check_pattern(weight, n, m, dim)
    mask = torch.empty(weight.shape, dtype=torch.bool)
    if not weight.is_inference():
        torch.autograd.graph.increment_version(weight)
    _C.nm_prune(
        weight.data_ptr(), _DTYPES[weight.dtype], *_split_at(weight, dim), n, m, mask.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return mask


def _check_transposable(weight: Tensor) -> None:
    torch._check_value(
        weight.dim() == 2 and weight.shape[0] % 4 == 0 and weight.shape[1] % 4 == 0,
        lambda: (
            "a transposable mask needs a weight [rows, cols] with both multiples of 4, not "
            f"{tuple(weight.shape)}; the nearest legal shape is "
            f"{tuple(round_up(size, 4) for size in weight.shape)}"
        ),
    )
    torch._check_value(
        weight.is_floating_point(), lambda: f"a transposable mask needs a floating dtype, not {weight.dtype}"
    )


def _transposable_patterns(device: torch.device) -> Tensor:
    """The 90 boolean 4x4 patterns with two kept per row and column, [90, 16], in ascending order."""
    rows = [p for p in range(16) if bin(p).count("1") == 2]
    columns = torch.tensor([[(p >> c) & 1 for c in range(4)] for p in rows])
    grid = torch.cartesian_prod(*[torch.arange(6)] * 4)
    patterns = columns[grid]  # [1296, 4, 4]
    return patterns[(patterns.sum(1) == 2).all(-1)].flatten(1).bool().to(device)


def transposable_mask_torch(weight: Tensor) -> Tensor:
    """``transposable_mask`` in plain torch: brute force over the 90 patterns."""
    _check_transposable(weight)
    rows, cols = weight.shape
    magnitude = weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))
    tiles = magnitude.reshape(rows // 4, 4, cols // 4, 4).transpose(1, 2).reshape(-1, 16)
    patterns = _transposable_patterns(weight.device)
    best = (tiles @ patterns.to(tiles.dtype).t()).argmax(-1)
    mask = patterns[best].reshape(rows // 4, cols // 4, 4, 4).transpose(1, 2)
    return mask.reshape(rows, cols)


def _transposable_mask_cpu(weight: Tensor) -> Tensor:
    if weight.dtype not in _MASK_DTYPES:
        return transposable_mask_torch(weight)
    _check_transposable(weight)
    weight = weight.contiguous()
    rows, cols = weight.shape
    mask = torch.empty(weight.shape, dtype=torch.bool)
    _C.transposable_mask(
        weight.data_ptr(), _DTYPES[weight.dtype], rows, cols, mask.data_ptr(), torch.get_num_threads()
    )
    return mask


_library.impl("nm_mask", nm_mask_torch, "CompositeExplicitAutograd")
_library.impl("nm_mask", _nm_mask_cpu, "CPU")
_library.impl("prune_", prune_torch_, "CompositeExplicitAutograd")
_library.impl("prune_", _prune_cpu_, "CPU")
_library.impl("transposable_mask", transposable_mask_torch, "CompositeExplicitAutograd")
_library.impl("transposable_mask", _transposable_mask_cpu, "CPU")


@register_fake("sparse24::nm_mask", lib=_library)
def _(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    _check_pattern(weight, n, m, dim)
    return torch.empty(weight.shape, dtype=torch.bool, device=weight.device)


@register_fake("sparse24::prune_", lib=_library)
def _(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    _check_pattern(weight, n, m, dim)
    return torch.empty(weight.shape, dtype=torch.bool, device=weight.device)


@register_fake("sparse24::transposable_mask", lib=_library)
def _(weight: Tensor) -> Tensor:
    _check_transposable(weight)
    return torch.empty(weight.shape, dtype=torch.bool, device=weight.device)


# ---- canonical format -------------------------------------------------------------------------------

_library.define("compress(Tensor weight) -> (Tensor, Tensor)", tags=_TAGS)
_library.define("decompress(Tensor values, Tensor indices) -> Tensor", tags=_TAGS)


def _check_compressible(weight: Tensor) -> None:
    torch._check_value(
        weight.dim() >= 1,
        lambda: "compress needs a weight [..., K], not a scalar",
    )
    torch._check_type(
        weight.dtype in _DTYPES,
        lambda: f"compress supports {names_of(_DTYPES)}, not {weight.dtype}",
    )


def _check_compressed(values: Tensor, indices: Tensor) -> None:
    torch._check_type(
        values.dtype in _DTYPES and indices.dtype == torch.uint8,
        lambda: (
            f"values must be one of {names_of(_DTYPES)} and indices uint8, "
            f"not {values.dtype} and {indices.dtype}"
        ),
    )
    torch._check_value(
        values.dim() >= 1
        and values.shape[:-1] == indices.shape[:-1]
        and values.shape[-1] == 4 * indices.shape[-1],
        lambda: (
            "values [..., K/2] and indices [..., K/8] with K a multiple of 8 do not fit: "
            f"{tuple(values.shape)} and {tuple(indices.shape)}"
        ),
    )


def names_of(dtypes: Iterable[torch.dtype]) -> str:
    """Dtypes as a reader writes them: "float32, float16"."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _compress(weight: Tensor) -> tuple[Tensor, Tensor]:
    _check_compressible(weight)
    *lead, cols = weight.shape
    flat = weight.detach().cpu().reshape(weight.shape[:-1].numel(), cols).contiguous()
    padded = round_up(cols, 8)
    values = torch.empty((*lead, padded // 2), dtype=weight.dtype)
    indices = torch.empty((*lead, padded // 8), dtype=torch.uint8)
    _C.compress(
        flat.data_ptr(), _DTYPES[weight.dtype], flat.shape[0], cols, values.data_ptr(), indices.data_ptr()
    )
    return values.to(weight.device), indices.to(weight.device)


def _decompress(values: Tensor, indices: Tensor) -> Tensor:
    _check_compressed(values, indices)
    padded = 2 * values.shape[-1]
    host_values, host_indices = values.detach().cpu().contiguous(), indices.cpu().contiguous()
    dense = torch.empty((*values.shape[:-1], padded), dtype=values.dtype)
    _C.expand(
        host_values.data_ptr(), host_indices.data_ptr(), _DTYPES[values.dtype],
        values.shape[:-1].numel(), padded, dense.data_ptr(),
    )  # fmt: skip
    return dense.to(values.device)


_library.impl("compress", _compress, "CompositeExplicitAutograd")
_library.impl("decompress", _decompress, "CompositeExplicitAutograd")


@register_fake("sparse24::compress", lib=_library)
def _(weight: Tensor) -> tuple[Tensor, Tensor]:
    _check_compressible(weight)
    *lead, cols = weight.shape
    padded = round_up(cols, 8)
    return weight.new_empty((*lead, padded // 2)), weight.new_empty((*lead, padded // 8), dtype=torch.uint8)


@register_fake("sparse24::decompress", lib=_library)
def _(values: Tensor, indices: Tensor) -> Tensor:
    _check_compressed(values, indices)
    return values.new_empty((*values.shape[:-1], 2 * values.shape[-1]))


# ---- panels: the canonical form packed for this machine's kernels, cached beside it -----------------


class _Panels(NamedTuple):
    owner: weakref.ref[Tensor]  # the `values` they were packed from
    state: tuple[int, ...]  # what _state said then: a moved or changed weight is packed again
    groups: int
    packed: Tensor
    address: int


_panels: dict[int, _Panels] = {}  # by id(values), for as long as that tensor lives


def _state(values: Tensor, indices: Tensor) -> tuple[int, ...]:
    try:
        return values.data_ptr(), indices.data_ptr(), values._version, indices._version
    except RuntimeError:  # inference tensors keep no version: they must not be written to
        return values.data_ptr(), indices.data_ptr()


def _pack(values: Tensor, indices: Tensor, groups: int) -> _Panels:
    rows, padded = values.shape[0], 2 * values.shape[1]
    packed = torch.empty(_C.panels_bytes(rows // groups, padded) * groups, dtype=torch.uint8)
    dense_values, dense_indices = values.detach().contiguous(), indices.contiguous()
    state = _state(values, indices)
    _C.pack(
        dense_values.data_ptr(), dense_indices.data_ptr(), _DTYPES[values.dtype], rows, padded, groups,
        packed.data_ptr(),
    )  # fmt: skip
    return _Panels(weakref.ref(values), state, groups, packed, packed.data_ptr())


def _panels_of(values: Tensor, indices: Tensor, groups: int) -> _Panels | None:
    """The panels of a weight that has not changed since it was packed, else None.

    A hit also says that ``values`` and ``indices`` have passed the checks of the operator before.
    Callers keep the entry while a kernel reads it: another thread may replace it meanwhile.
    """
    entry = _panels.get(id(values))
    if (
        entry is None
        or entry.owner() is not values
        or entry.state != _state(values, indices)
        or entry.groups != groups
    ):
        return None
    return entry


def _pack_panels(values: Tensor, indices: Tensor, groups: int) -> _Panels:
    """Pack a checked weight and keep its panels until ``values`` is gone."""
    key = id(values)
    if key not in _panels:
        weakref.finalize(values, _panels.pop, key, None).atexit = False
    entry = _panels[key] = _pack(values, indices, groups)
    return entry


# ---- linear -----------------------------------------------------------------------------------------

_library.define(
    "linear(Tensor input, Tensor values, Tensor indices, Tensor? bias=None, str activation='none') -> Tensor",
    tags=_TAGS,
)


def _check_product(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str
) -> None:
    torch._check_value(
        activation in ACTIVATIONS, lambda: f"activation {activation!r} is not one of {ACTIVATIONS}"
    )
    torch._check_type(
        input.dtype == values.dtype and (bias is None or bias.dtype == values.dtype),
        lambda: (
            f"input, values and bias must have one dtype, not {input.dtype}, {values.dtype} and "
            f"{None if bias is None else bias.dtype}; convert with .to(...) or use autocast"
        ),
    )
    torch._check_type(
        values.dtype in _COMPUTE_DTYPES,
        lambda: f"products need values of {names_of(_COMPUTE_DTYPES)}, not {values.dtype}",
    )
    torch._check_value(
        values.dim() == 2 and indices.dim() == 2,
        lambda: (
            "values and indices must be [rows, K/2] and [rows, K/8], not "
            f"{tuple(values.shape)} and {tuple(indices.shape)}"
        ),
    )
    _check_compressed(values, indices)
    torch._check_value(
        bias is None or bias.shape == (values.shape[0],),
        lambda: f"bias must be [{values.shape[0]}], not {tuple(bias.shape) if bias is not None else None}",
    )


def _check_linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str
) -> None:
    _check_product(input, values, indices, bias, activation)
    torch._check_value(
        input.dim() >= 1 and round_up(input.shape[-1], 8) == 2 * values.shape[1],
        lambda: (
            f"input [..., K] has shape {tuple(input.shape)}, but the compressed weight holds "
            f"K = {2 * values.shape[1]} columns (K rounded up to 8)"
        ),
    )


def _activate(output: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return F.relu(output)
    if activation == "gelu":
        return F.gelu(output)
    if activation == "gelu_tanh":
        return F.gelu(output, approximate="tanh")
    return output


def linear_torch(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``linear`` through a dense weight, for devices that have no sparse kernel."""
    _check_linear(input, values, indices, bias, activation)
    weight = torch.ops.sparse24.decompress(values, indices)[:, : input.shape[-1]]
    return _activate(F.linear(input, weight, bias), activation)


def _linear_cpu(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    # Microseconds count here: a hit in the cache stands for the checks of the weight.
    panels = _panels_of(values, indices, 1)
    if panels is None:
        _check_linear(input, values, indices, bias, activation)
        panels = _pack_panels(values, indices, 1)
    rows, half = values.shape
    dtype = values.dtype
    if (
        input.dtype is not dtype
        or input.dim() == 0
        or not 2 * half - 8 < input.shape[-1] <= 2 * half
        or activation not in _ACTIVATION_CODES
        or (bias is not None and (bias.dtype is not dtype or bias.shape != (rows,)))
    ):
        _check_linear(input, values, indices, bias, activation)
    *lead, cols = input.shape
    if cols == 0:
        return linear_torch(input, values, indices, bias, activation)
    x = input
    if dtype is not torch.float32:
        x, bias = input.float(), None if bias is None else bias.float()
    stride = cols
    if not x.is_contiguous():
        if x.dim() == 2 and x.stride(1) == 1:
            stride = x.stride(0)
        else:
            x = x.contiguous()
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    output = x.new_empty(*lead, rows)
    _C.linear(
        panels.address, x.data_ptr(), 0 if bias is None else bias.data_ptr(), output.data_ptr(),
        x.numel() // cols, rows, cols, stride, _ACTIVATION_CODES[activation], torch.get_num_threads(),
    )  # fmt: skip
    return output if dtype is torch.float32 else output.to(dtype)


def linear(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str = "none"
) -> Tensor:
    """``torch.ops.sparse24.linear``, past the dispatcher when nothing listens there.

    The way through it costs five microseconds, as much as all the rest of a small call. It is taken
    when somebody traces, compiles, profiles, maps or casts, or gives anything but a plain CPU tensor.
    """
    if (
        torch.compiler.is_compiling()
        or type(input) is not Tensor
        or not input.is_cpu
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._autograd._profiler_enabled()
    ):
        output: Tensor = torch.ops.sparse24.linear.default(input, values, indices, bias, activation)
        return output
    return _linear_cpu(input, values, indices, bias, activation)


_library.impl("linear", linear_torch, "CompositeExplicitAutograd")
_library.impl("linear", _linear_cpu, "CPU")


def _under_autocast(operator: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """The product as autocast sees it: in the weight's dtype (its panels exist), out in autocast's."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def product(
        input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, *rest: Any
    ) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            bias = None if bias is None else bias.to(values.dtype)
            output = operator(input.to(values.dtype), values, indices, bias, *rest)
            return output.to(torch.get_autocast_dtype(device))

    return product


for _device in ("cpu", "cuda"):
    _library.impl(
        "linear", _under_autocast(torch.ops.sparse24.linear.default, _device), f"Autocast{_device.upper()}"
    )


@register_fake("sparse24::linear", lib=_library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    _check_linear(input, values, indices, bias, activation)
    return input.new_empty((*input.shape[:-1], values.shape[0]))


# ---- conv2d -----------------------------------------------------------------------------------------

_library.define(
    "conv2d(Tensor input, Tensor values, Tensor indices, Tensor? bias, SymInt[2] kernel_size, "
    "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, "
    "str activation='none') -> Tensor",
    tags=_TAGS,
)


def conv_weight_to_matrix(weight: Tensor) -> Tensor:
    """[out, C, R, S] to the 2-D form that conv2d compresses: [out, R*S*C4], k ordered (r, s, c).

    C4 is C rounded up to 4, so that the groups of every tap start at its first channel.
    """
    out_channels, channels = weight.shape[:2]
    taps = F.pad(weight.permute(0, 2, 3, 1), (0, round_up(channels, 4) - channels))
    return taps.reshape(out_channels, -1).contiguous()


def conv_matrix_to_weight(matrix: Tensor, channels: int, kernel_size: Sequence[int]) -> Tensor:
    """The inverse of :func:`conv_weight_to_matrix`: [out, >= R*S*C4] to [out, C, R, S]."""
    r, s = kernel_size
    padded = round_up(channels, 4)
    taps = matrix[:, : r * s * padded].reshape(-1, r, s, padded)[..., :channels]
    return taps.permute(0, 3, 1, 2).contiguous()


def _conv_out_size(
    input: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:  # fmt: skip
    return [
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]


def _is_channels_last(input: Tensor) -> bool:
    return input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()


def _check_conv2d(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, activation: str,
) -> None:  # fmt: skip
    _check_product(input, values, indices, bias, activation)
    torch._check_value(
        input.dim() == 4,
        lambda: f"conv2d needs an input [N, C, H, W], not {tuple(input.shape)}",
    )
    torch._check_value(
        min(*kernel_size, *stride, *dilation, groups, input.shape[1]) > 0 and min(padding) >= 0,
        lambda: (
            "kernel_size, stride, dilation, groups and the channels must be positive and padding not "
            f"negative, not {list(kernel_size)}, {list(stride)}, {list(dilation)}, {groups}, "
            f"{input.shape[1]} and {list(padding)}"
        ),
    )
    channels = input.shape[1]
    k = kernel_size[0] * kernel_size[1] * round_up(channels // groups, 4)
    torch._check_value(
        channels % groups == 0 and values.shape[0] % groups == 0 and round_up(k, 8) == 2 * values.shape[1],
        lambda: (
            f"input {tuple(input.shape)} with kernel {list(kernel_size)} and groups {groups} needs "
            f"K = {round_up(k, 8)} columns, but the compressed weight is [{values.shape[0]}, "
            f"{2 * values.shape[1]}]"
        ),
    )
    torch._check_value(
        min(_conv_out_size(input, kernel_size, stride, padding, dilation)) > 0,
        lambda: (
            f"input {tuple(input.shape)} with padding {list(padding)} is smaller than the kernel "
            f"{list(kernel_size)} with dilation {list(dilation)}"
        ),
    )


def conv2d_torch(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    """``conv2d`` through a dense weight, for devices that have no sparse kernel."""
    _check_conv2d(input, values, indices, bias, kernel_size, stride, padding, dilation, groups, activation)
    matrix = torch.ops.sparse24.decompress(values, indices)
    weight = conv_matrix_to_weight(matrix, input.shape[1] // groups, kernel_size)
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _activate(output, activation)


def _conv2d_cpu(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    _check_conv2d(input, values, indices, bias, kernel_size, stride, padding, dilation, groups, activation)
    channels_last = _is_channels_last(input)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = input.to(torch.float32).contiguous(memory_format=layout)
    batch, channels, height, width = x.shape
    out_channels = values.shape[0]
    out_size = _conv_out_size(input, kernel_size, stride, padding, dilation)
    output = torch.empty((batch, out_channels, *out_size), dtype=torch.float32, memory_format=layout)
    bias32 = None if bias is None else bias.to(torch.float32).contiguous()
    panels = _panels_of(values, indices, groups)
    if panels is None:
        panels = _pack_panels(values, indices, groups)
    _C.conv2d(
        panels.address, x.data_ptr(), 0 if bias32 is None else bias32.data_ptr(), output.data_ptr(),
        (batch, channels, height, width, out_channels),
        (*kernel_size, *stride, *padding, *dilation, groups),
        channels_last, _ACTIVATION_CODES[activation], torch.get_num_threads(),
    )  # fmt: skip
    return output.to(input.dtype)


_library.impl("conv2d", conv2d_torch, "CompositeExplicitAutograd")
_library.impl("conv2d", _conv2d_cpu, "CPU")


for _device in ("cpu", "cuda"):
    _library.impl(
        "conv2d", _under_autocast(torch.ops.sparse24.conv2d.default, _device), f"Autocast{_device.upper()}"
    )


@register_fake("sparse24::conv2d", lib=_library)
def _(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1),
    groups: int = 1, activation: str = "none",
) -> Tensor:  # fmt: skip
    _check_conv2d(input, values, indices, bias, kernel_size, stride, padding, dilation, groups, activation)
    layout = torch.channels_last if _is_channels_last(input) else torch.contiguous_format
    out_size = _conv_out_size(input, kernel_size, stride, padding, dilation)
    shape = (input.shape[0], values.shape[0], *out_size)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=layout)


def cpu_isa() -> str:
    """The instruction set of the CPU kernels: "avx512", "avx2", "neon" or "scalar"."""
    return _C.cpu_isa()
