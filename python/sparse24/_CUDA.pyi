"""The compiled CUDA kernels (csrc/cuda/bindings.cpp), present when the build found nvcc.

Pointers are addresses on the current device; ``stream`` is a ``cuda_stream`` handle; ``dtype`` is a value
of the enum in csrc/sparse24.h; a mask of address 0 is absent. ``image`` is (batch, height, width,
channels), ``channel_slice`` (first, count), ``window`` (kernel, stride, padding, dilation: height and
width of each) and ``token_range`` (first, count). Calls are asynchronous and let go of the interpreter
lock. A failed launch raises ``sparse24._C.Error``, sizes that a kernel cannot take ``ValueError``; the
contracts are in csrc/cuda/kernels.h.
"""

from collections.abc import Sequence

def mask24(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None: ...
def prune24(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None: ...
def transposable_mask(weight: int, dtype: int, rows: int, cols: int, mask: int, stream: int) -> None: ...
def compress(
    dense: int,
    dtype: int,
    rows: int,
    cols: int,
    row_stride: int,
    values: int,
    indices: int,
    first_crowded: int,
    stream: int,
) -> None: ...
def expand(
    values: int,
    indices: int,
    dtype: int,
    rows: int,
    padded: int,
    dense: int,
    dense_rows: int,
    dense_cols: int,
    stream: int,
) -> None: ...
def im2col(
    x: int,
    matrix: int,
    element_size: int,
    image: Sequence[int],
    channel_slice: Sequence[int],
    window: Sequence[int],
    k_padded: int,
    ld: int,
    token_range: Sequence[int],
    stream: int,
) -> None: ...
def quantize_per_token(
    x: int,
    dtype: int,
    n: int,
    k: int,
    row_stride: int,
    out: int,
    out_dtype: int,
    k_padded: int,
    given: int,
    scale: int,
    stream: int,
) -> None: ...

FEW_TOKENS: int
#: The address of a FewTokensFunction (csrc/few_tokens_call.h), for ``_C.Launches``.
few_tokens_function: int

def few_tokens(
    x: int,
    dtype: int,
    n: int,
    k: int,
    x_stride: int,
    values: int,
    weight_dtype: int,
    indices: int,
    m: int,
    scale: int,
    bias: int,
    activation: int,
    y: int,
    stream: int,
) -> None: ...
def epilogue(
    product: int,
    dtype: int,
    n: int,
    m: int,
    token_scale: int,
    row_scale: int,
    bias: int,
    activation: int,
    out: int,
    out_dtype: int,
    stream: int,
) -> None: ...
