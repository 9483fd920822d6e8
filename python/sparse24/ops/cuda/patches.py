"""The rows of the product behind a convolution: its pixels as they are, or patches that are copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from . import device_kernels
from .cusparselt import Stream
from .launch import legal_input

#: Patches of a convolution are written for as many images at a time as fit this many bytes.
IM2COL_BYTES = 256 << 20


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

    @property
    def copies(self) -> tuple[int, ...]:
        """The geometry as one tuple where patches have to be copied; empty: they are the pixels."""
        sizes = (*self.kernel_size, *self.stride, *self.padding, *self.dilation, self.groups)
        return () if self.is_pointwise else sizes


def parts_of(
    x: Tensor, window: Window, out_size: Sequence[int], columns: int
) -> Iterator[tuple[int, Tensor, tuple[int, int]]]:
    """First pixel, images, first and number of output lines of what fits IM2COL_BYTES at a time."""
    batch, (height, width) = x.shape[0], out_size
    if window.is_pointwise:
        yield 0, x, (0, height)
        return
    of_line = width * columns * x.element_size()
    images = min(batch, IM2COL_BYTES // (height * of_line))
    if images > 0:
        for first in range(0, batch, images):
            yield first * height * width, x[first : first + images], (0, height)
        return
    lines = max(IM2COL_BYTES // of_line, 1)
    for image in range(batch):
        for line in range(0, height, lines):
            first = (image * height + line) * width
            yield first, x[image : image + 1], (line, min(lines, height - line))


def rows_of(
    x: Tensor,
    group: int,
    window: Window,
    lines: tuple[tuple[int, int], Sequence[int]],
    columns: int,
    stream: Stream,
) -> Tensor:
    """The rows of the product for (first and number of lines, output size) of images [N, H, W, C]."""
    channels = x.shape[3] // window.groups
    first = group * channels
    if window.is_pointwise:
        pixels = x.reshape(-1, x.shape[3])[:, first : first + channels]
        return legal_input(pixels, columns, 16 // x.element_size())
    return device_kernels.im2col(
        x, first, channels, window.kernel_size, window.stride, window.padding, window.dilation, lines[1],
        columns, stream.handle, lines[0],
    )  # fmt: skip
