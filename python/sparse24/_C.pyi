"""The compiled extension (csrc/bindings.cpp). Pointers are addresses; ops has checked every argument.

``dtype`` and ``activation`` are the values of the enums in csrc/sparse24.h; a mask or bias of address 0
is absent. ``shape`` is (batch, in_channels, height, width, out_channels) and ``window`` (kernel, stride,
padding, dilation: height and width of each; groups). All but the first two let go of the interpreter
lock while they run.
"""

from collections.abc import Sequence

class Error(RuntimeError):
    """A backend that failed or is missing."""

def cpu_isa() -> str: ...
def panels_bytes(rows: int, padded: int) -> int: ...
def compress(dense: int, dtype: int, rows: int, cols: int, values: int, indices: int) -> None: ...
def expand(values: int, indices: int, dtype: int, rows: int, padded: int, dense: int) -> None: ...
def nm_mask(
    weight: int, dtype: int, outer: int, length: int, inner: int, n: int, m: int, mask: int, threads: int
) -> None: ...
def nm_prune(
    weight: int, dtype: int, outer: int, length: int, inner: int, n: int, m: int, mask: int, threads: int
) -> None: ...
def transposable_mask(weight: int, dtype: int, rows: int, cols: int, mask: int, threads: int) -> None: ...
def pack(values: int, indices: int, dtype: int, rows: int, padded: int, groups: int, panels: int) -> None: ...
def linear(
    panels: int,
    x: int,
    bias: int,
    y: int,
    n: int,
    m: int,
    k: int,
    x_stride: int,
    activation: int,
    threads: int,
) -> None: ...
def conv2d(
    panels: int,
    x: int,
    bias: int,
    y: int,
    shape: Sequence[int],
    window: Sequence[int],
    channels_last: bool,
    activation: int,
    threads: int,
) -> None: ...
