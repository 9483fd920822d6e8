"""What the CUDA kernels of csrc/cuda do, by them or by torch: the module is there where the build found nvcc.

Every function takes the stream's handle and queues its work there; torch's own operators use the current
stream, which is the same one when an operator runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import kept_columns
from ..registry import ACTIVATION_CODES, DTYPES, Error, round_up

if TYPE_CHECKING or find_spec("sparse24._CUDA") is not None:
    from ... import _CUDA

    BUILT = True
else:
    BUILT = False


@functools.cache
def why_unusable(index: int) -> str:
    """Why the kernels that are built in cannot run on a device; empty: they can. Asked once, by running one.

    A build by nvcc 13 needs a driver for CUDA 13, and an architecture that it was made for: else torch does
    the work.
    """
    if not BUILT:
        return "not built (no nvcc was found)"
    with torch.cuda.device(index):
        values = torch.ones(1, 4, dtype=torch.float16, device=f"cuda:{index}")
        indices = torch.full((1, 1), 0b0100_0100, dtype=torch.uint8, device=values.device)
        dense = torch.empty(1, 8, dtype=torch.float16, device=values.device)
        try:
            _CUDA.expand(
                values.data_ptr(), indices.data_ptr(), DTYPES[values.dtype], 1, 8, dense.data_ptr(), 1, 8,
                torch.cuda.current_stream().cuda_stream,
            )  # fmt: skip
        except Error as error:
            return str(error)
        right = dense.tolist() == [[1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]]
    return "" if right else "they compute something else on this device"


def built_for(tensor: Tensor) -> bool:
    """Whether the kernels can take a tensor that an operator was called with on a GPU's stream."""
    return BUILT and (not tensor.is_cuda or usable(tensor))


def usable(tensor: Tensor) -> bool:
    """Whether the kernels can run where a tensor is."""
    if not BUILT or not tensor.is_cuda:
        return False
    if torch.cuda.is_current_stream_capturing():
        return True  # a probe would end the capture; whoever captures has run it all before
    return not why_unusable(tensor.get_device())


def expand(values: Tensor, indices: Tensor, rows: int, cols: int, stream: int) -> Tensor:
    """The dense weight [rows, cols] of a compressed one, zeros beyond its own rows and columns.

    values [m, K/2] and indices uint8 [m, K/8]; rows >= m, cols >= K.
    """
    m, padded = values.shape[0], 2 * values.shape[1]
    if usable(values):
        dense = values.new_empty(rows, cols)
        _CUDA.expand(
            values.data_ptr(), indices.data_ptr(), DTYPES[values.dtype], m, padded, dense.data_ptr(), rows,
            cols, stream,
        )  # fmt: skip
        return dense
    bits = values.view(torch.uint8) if values.element_size() == 1 else values  # fp8 does not scatter
    dense = torch.zeros(rows, cols, dtype=bits.dtype, device=bits.device)
    dense[:m].scatter_(1, kept_columns(indices), bits)
    return dense.view(values.dtype)


def im2col(
    x: Tensor, first_channel: int, channels: int, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], out_size: Sequence[int], columns: int, stream: int,
    lines: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """Patches of some channels of ``x`` as rows [N*oh*ow, columns], k ordered (r, s, c), zeros beyond.

    Args:
        x: [N, H, W, C], contiguous; every tap's channels are padded to a multiple of four.
        columns: at least R*S*C4, and a multiple of 16 bytes.
        lines: the first line of the output and how many, of one image; None: all lines of all images.
    """
    r, s = kernel_size
    c4 = round_up(channels, 4)
    batch, height, width, all_channels = x.shape
    first_line, count = (0, out_size[0]) if lines is None else lines
    tokens = batch * count * out_size[1]
    if usable(x):
        matrix = x.new_empty(tokens, columns)
        _CUDA.im2col(
            x.data_ptr(), matrix.data_ptr(), x.element_size(), (batch, height, width, all_channels),
            (first_channel, channels), (*kernel_size, *stride, *padding, *dilation), columns, columns,
            (first_line * out_size[1], tokens), stream,
        )  # fmt: skip
        return matrix
    bits = x.view(torch.uint8) if x.element_size() == 1 else x
    part = bits[..., first_channel : first_channel + channels]
    part = F.pad(part, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    n, h, w, c = part.stride()
    windows = part.as_strided(
        (batch, count, out_size[1], r, s, channels),
        (n, h * stride[0], w * stride[1], h * dilation[0], w * dilation[1], c),
        part.storage_offset() + first_line * stride[0] * h,
    )
    matrix = bits.new_zeros(tokens, columns)
    taps = matrix[:, : r * s * c4].view(batch, count, out_size[1], r, s, c4)
    taps[..., :channels] = windows
    return matrix.view(x.dtype)


#: The largest number of the dtypes that activations are quantized to.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantize_per_token(
    x: Tensor, stream: int, dtype: torch.dtype = torch.int8, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[n, k] in ``dtype`` and float32 scale [n] = absmax / largest of the rows of ``x``, to nearest even.

    A row whose absmax is below largest * 2^-126 counts as zeros, with scale 1; one that holds NaN or Inf
    gives zeros and scale NaN, so that its product is NaN.

    Args:
        dtype: int8, whose largest is 127, or float8_e4m3fn: 448.
        given: float32 []: the scale of all rows where it is not 0; what is beyond the largest saturates.
    """
    n, k = x.shape
    if usable(x):
        out = torch.empty(n, k, dtype=dtype, device=x.device)
        scale = torch.empty(n, dtype=torch.float32, device=x.device)
        _CUDA.quantize_per_token(
            x.data_ptr(), DTYPES[x.dtype], n, k, x.stride(0), out.data_ptr(), DTYPES[dtype], k,
            0 if given is None else given.data_ptr(), scale.data_ptr(), stream,
        )  # fmt: skip
        return out, scale
    return quantize_in_torch(x, dtype, given)


def quantize_in_torch(
    x: Tensor, dtype: torch.dtype = torch.int8, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`quantize_per_token` by torch's own passes, wherever ``x`` is."""
    rows, largest = x.float(), LARGEST[dtype]
    absmax = rows.abs().amax(1) if x.shape[1] else rows.new_zeros(len(rows))
    given = rows.new_zeros(()) if given is None else given
    finite = absmax.isfinite()
    tiny = (absmax < largest * torch.finfo(torch.float32).tiny) & (given == 0)
    # As a division of tensors: 127 / absmax would be a reciprocal, times 127, which is rounded twice.
    inverse = torch.where(given == 0, torch.full_like(absmax, largest) / absmax, 1 / given)
    scale = torch.where(given == 0, absmax / largest, given)
    scaled = (rows * inverse.unsqueeze(1)).masked_fill((tiny | ~finite).unsqueeze(1), 0)
    scaled = scaled.clamp(-largest, largest)
    out = (scaled.round() if dtype is torch.int8 else scaled).to(dtype)
    return out, scale.masked_fill(tiny, 1).masked_fill(~finite, float("nan"))


#: Tokens that :func:`few_tokens` takes at most.
FEW_TOKENS = 16


def takes_few(n: int, x: torch.dtype, weight: torch.dtype) -> bool:
    """Whether :func:`few_tokens` is made for a product of ``n`` tokens, wherever it runs."""
    floats = x in (torch.float32, torch.float16, torch.bfloat16)
    return n <= FEW_TOKENS and floats and weight in (x, torch.int8)


def few_tokens(
    x: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None, activation: str,
    stream: int,
) -> Tensor:  # fmt: skip
    """activation(scale * (x W^T) + bias) [n, m] in the dtype of ``x``, from the compressed weight as it lies.

    Nothing is expanded, padded or kept: it reads the weight once. Only where the kernels are :func:`usable`.

    Args:
        x: [n, k] with n <= FEW_TOKENS; float32, float16 or bfloat16.
        values, indices: [m, K/2] of ``x``'s dtype or int8, and uint8 [m, K/8]; K is k rounded up to 8.
        scale: float32 [m], of the rows, or None.
        bias: [m] of ``x``'s dtype, or None.
    """
    n, k = x.shape
    x = x if x.stride(1) == 1 and x.stride(0) >= k else x.contiguous()
    values, indices = values.contiguous(), indices.contiguous()
    scale, bias = (None if each is None else each.contiguous() for each in (scale, bias))
    y = x.new_empty(n, values.shape[0])
    _CUDA.few_tokens(
        x.data_ptr(), DTYPES[x.dtype], n, k, x.stride(0), values.data_ptr(), DTYPES[values.dtype],
        indices.data_ptr(), values.shape[0], 0 if scale is None else scale.data_ptr(),
        0 if bias is None else bias.data_ptr(), ACTIVATION_CODES[activation], y.data_ptr(), stream,
    )  # fmt: skip
    return y


def few_tokens_function() -> int:
    """The address of the kernel's launch, for ``_C.Launches``; 0: it is not built."""
    return _CUDA.few_tokens_function if BUILT else 0


def epilogue(
    product: Tensor, token_scale: Tensor | None, row_scale: Tensor | None, bias: Tensor | None,
    activation: str, out_dtype: torch.dtype, stream: int,
) -> Tensor:  # fmt: skip
    """activation(token_scale * row_scale * product + bias) in one pass. Only where the kernels are
    :func:`usable`.

    Args:
        product: [n, m], int32 or float32.
        token_scale, row_scale, bias: float32 [n], [m] and [m], or None.
        out_dtype: float32, float16, bfloat16, or int8: to nearest even, saturated.
    """
    product = product.contiguous()
    n, m = product.shape
    vectors = [None if each is None else each.contiguous() for each in (token_scale, row_scale, bias)]
    tokens, rows, biases = (0 if each is None else each.data_ptr() for each in vectors)
    out = torch.empty(n, m, dtype=out_dtype, device=product.device)
    code = 6 if product.dtype is torch.int32 else DTYPES[product.dtype]
    _CUDA.epilogue(
        product.data_ptr(), code, n, m, tokens, rows, biases, ACTIVATION_CODES[activation], out.data_ptr(),
        DTYPES[out_dtype], stream,
    )  # fmt: skip
    return out


def mask24(weight: Tensor, stream: int) -> Tensor:
    """2:4 magnitude mask, bool, of a contiguous CUDA weight [rows, cols] along its columns."""
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    rows, cols = weight.shape
    _CUDA.mask24(weight.data_ptr(), DTYPES[weight.dtype], rows, cols, mask.data_ptr(), stream)
    return mask


def prune24_(weight: Tensor, stream: int) -> Tensor:
    """:func:`mask24`, and the weight's pruned values zeroed in the same pass."""
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    rows, cols = weight.shape
    _CUDA.prune24(weight.data_ptr(), DTYPES[weight.dtype], rows, cols, mask.data_ptr(), stream)
    return mask


def transposable_mask(weight: Tensor, stream: int) -> Tensor:
    """Best of 90 per 4x4 tile, bool, of a contiguous CUDA weight [rows, cols], both multiples of four."""
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    rows, cols = weight.shape
    _CUDA.transposable_mask(weight.data_ptr(), DTYPES[weight.dtype], rows, cols, mask.data_ptr(), stream)
    return mask


def compress(weight: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor]:
    """values, indices and the first crowded group (int64, on the device; maximal: none) of [rows, cols]."""
    rows, cols = weight.shape
    padded = round_up(cols, 8)
    values = weight.new_empty(rows, padded // 2)
    indices = torch.empty(rows, padded // 8, dtype=torch.uint8, device=weight.device)
    crowded = torch.full((), torch.iinfo(torch.int64).max, device=weight.device)
    _CUDA.compress(
        weight.data_ptr(), DTYPES[weight.dtype], rows, cols, weight.stride(0), values.data_ptr(),
        indices.data_ptr(), crowded.data_ptr(), stream,
    )  # fmt: skip
    return values, indices, crowded
