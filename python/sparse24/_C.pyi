"""The compiled extension (csrc/bindings*.cpp, cpu/bindings.cpp, cusparselt/bindings.cpp).

Pointers are addresses; ops has checked every argument.

``dtype`` and ``activation`` are the values of the enums in csrc/sparse24.h; a mask or bias of address 0
is absent. ``weight`` is (values, indices, dtype, rows, padded, scale or 0), ``mode`` (precision, quantize,
input_scale, output_scale), ``shape`` (batch, in_channels, height, width) and ``window`` (kernel, stride,
padding, dilation: height and width of each; groups). Products and masks let go of the interpreter lock while
they run.
``call_linear`` and ``call_conv2d`` take a layer's __dict__, and return a tensor or ``NotImplemented``, having
done nothing.

What begins with ``cusparselt_`` is the C++ API of that name in csrc/sparse24.h. ``stream`` is a cudaStream_t;
sizes are (blob, compress buffer, workspace) in bytes; ``batches`` is (count, stride of x, stride of y);
``buffers`` of a search are the addresses (dense, x, y, bias, scale, blob, compress buffer, workspace, flush),
and the bytes of the last.
"""

from collections.abc import Callable, Sequence
from typing import Any

class Error(RuntimeError):
    """A backend that failed or is missing."""

def cpu_isa() -> str: ...
def compress(dense: int, dtype: int, rows: int, cols: int, values: int, indices: int) -> None: ...
def find_crowded(dense: int, dtype: int, rows: int, cols: int) -> int: ...
def expand(values: int, indices: int, dtype: int, rows: int, padded: int, dense: int) -> None: ...
def nm_mask(
    weight: int, dtype: int, outer: int, length: int, inner: int, n: int, m: int, mask: int, threads: int
) -> None: ...
def nm_prune(
    weight: int, dtype: int, outer: int, length: int, inner: int, n: int, m: int, mask: int, threads: int
) -> None: ...
def transposable_mask(weight: int, dtype: int, rows: int, cols: int, mask: int, threads: int) -> None: ...
def pack_mask(mask: int, count: int, bits: int, threads: int) -> None: ...
def unpack_mask(bits: int, count: int, mask: int, threads: int) -> None: ...
def apply_mask_bits(numbers: int, bytes_each: int, count: int, bits: int, threads: int) -> None: ...
def sparsegpt_block(
    weight: int,
    rows: int,
    cols: int,
    weight_stride: int,
    factor: int,
    factor_stride: int,
    error: int,
    mask: int,
    mask_stride: int,
    choose: bool,
    threads: int,
) -> None: ...
def search_columns(
    score: int,
    rows: int,
    cols: int,
    row_stride: int,
    block: int,
    seed: int,
    tolerance: float,
    steps: int,
    order: int,
    threads: int,
) -> None: ...
def kept_sum(score: int, rows: int, cols: int, row_stride: int, order: int, threads: int) -> float: ...
def linear(
    weight: tuple[int, int, int, int, int, int],
    dtype: int,
    x: int,
    bias: int,
    y: int,
    n: int,
    k: int,
    x_stride: int,
    activation: int,
    threads: int,
    mode: tuple[int, int, float, float],
) -> None: ...
def conv2d(
    weight: tuple[int, int, int, int, int, int],
    dtype: int,
    x: int,
    bias: int,
    y: int,
    shape: Sequence[int],
    window: Sequence[int],
    channels_last: bool,
    activation: int,
    threads: int,
    mode: tuple[int, int, float, float],
) -> None: ...
def call_linear(input: Any, state: dict[str, Any], /) -> Any: ...
def call_conv2d(input: Any, state: dict[str, Any], /) -> Any: ...

class Launches:
    """A layer's products on a GPU that ran before: see csrc/bindings_launches.cpp."""

    def __init__(self, parameters: object, buffers: object, ask_stream: Callable[[int], int]) -> None: ...
    def add(
        self,
        epoch: int,
        input: object,
        m: int,
        activation: object,
        has_bias: bool,
        stream: int,
        parts: Sequence[tuple[int, Product, BlobKey, int, object]],
        window: object,
    ) -> None: ...
    def add_few(
        self,
        epoch: int,
        input: object,
        m: int,
        activation: object,
        has_bias: bool,
        stream: int,
        function: int,
        values: object,
        indices: object,
    ) -> None: ...
    def call(self, input: object, state: dict[str, Any]) -> Any: ...
    def clear(self) -> None: ...
    def __len__(self) -> int: ...

def launches_epoch() -> int: ...
def forget_launches() -> None: ...
def cpu_isas() -> list[tuple[str, str]]: ...
def machine() -> dict[str, Any]: ...
def amx_problem() -> str: ...
def describe_amx(cpu: bool, saved: bool, error: int) -> str: ...
def tuning() -> dict[str, Any]: ...
def set_tuning(**fields: int) -> None: ...

class Algorithm:
    """How cuSPARSELt computes a product; 0, 0, 0, -1: the library's defaults."""

    def __init__(
        self, id: int = 0, split_k: int = 0, split_k_mode: int = 0, split_k_buffers: int = -1
    ) -> None: ...
    @property
    def id(self) -> int: ...
    @property
    def split_k(self) -> int: ...
    @property
    def split_k_mode(self) -> int: ...
    @property
    def split_k_buffers(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

class Product:
    """Everything that a plan depends on."""

    def __init__(
        self,
        dtype: int,
        out_dtype: int,
        m: int,
        n: int,
        k: int,
        x_stride: int,
        y_stride: int,
        batches: Sequence[int],
        activation: int,
        relu_bounds: Sequence[float],
        has_bias: bool,
        scale_per_row: bool,
        algorithm: Algorithm,
    ) -> None: ...
    @property
    def m(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def algorithm(self) -> Algorithm: ...

class BlobKey:
    """What a blob was compressed for."""

    @property
    def out_dtype(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

class Trial:
    """One algorithm of a search."""

    @property
    def algorithm(self) -> Algorithm: ...
    @property
    def microseconds(self) -> float: ...
    @property
    def error(self) -> float: ...
    @property
    def refused(self) -> str: ...

class Search:
    """Algorithms of one product, one after the other on the same operands."""

    def __init__(self, device: int, product: Product, buffers: Sequence[int], stream: int) -> None: ...
    def try_out(self, algorithm: Algorithm, launches: int) -> Trial: ...

def cusparselt_set_search_paths(cusparselt: Sequence[str], cudart: Sequence[str]) -> None: ...
def cusparselt_library() -> tuple[int, str, str, str]: ...
def cusparselt_driver() -> tuple[int, int, int, str]: ...
def cusparselt_why_unusable(device: int) -> str: ...
def cusparselt_open_device(device: int) -> tuple[int, int]: ...
def cusparselt_why_illegal(product: Product, sm: int, version: int) -> str: ...
def cusparselt_multiples(dtype: int, out_dtype: int) -> tuple[int, int, int, int, int]: ...
def cusparselt_is_capturing(stream: int) -> bool: ...
def cusparselt_synchronize(stream: int) -> None: ...
def cusparselt_set_plan_capacity(plans: int) -> None: ...
def cusparselt_plans_cached() -> int: ...
def cusparselt_release_thread() -> None: ...
def cusparselt_sizes(device: int, product: Product, bias: int, stream: int) -> tuple[int, int, int]: ...
def cusparselt_blob_key(device: int, product: Product) -> BlobKey: ...
def cusparselt_compress(
    device: int, product: Product, bias: int, dense: int, blob: int, buffer: int, stream: int
) -> BlobKey: ...
def cusparselt_matmul(
    device: int,
    product: Product,
    key: BlobKey,
    blob: int,
    x: int,
    y: int,
    bias: int,
    scale: int,
    alpha: float,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None: ...
def cusparselt_search_sizes(device: int, product: Product, stream: int) -> tuple[int, int, int]: ...
def cusparselt_algorithms(device: int, product: Product, stream: int) -> list[Algorithm]: ...
def cusparselt_library_search(
    device: int, product: Product, buffers: Sequence[int], launches: int, stream: int
) -> Algorithm: ...
