"""A three-dimensional convolution as a two-dimensional one: the planes under the taps of its depth, stacked.

An output plane sees T planes of the input. Stacked along the channels they are one image of T times as many,
and the product over all output planes is one convolution of N*D' images. The copy is T times the input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops


class Depth(NamedTuple):
    """The window along the depth, and what it shares with the others."""

    taps: int
    stride: int
    dilation: int
    groups: int


def is_channels_last_3d(input: Tensor) -> bool:
    return input.is_contiguous(memory_format=torch.channels_last_3d) and not input.is_contiguous()


def _padded(channels: int, taps: int) -> int:
    """C4 of a group's channels; with one tap they stay as they are."""
    return channels if taps == 1 else ops.round_up(channels, 4)


def stacked_channels(channels: int, depth: Depth) -> int:
    """How many channels :func:`stacked` gives."""
    return depth.groups * depth.taps * _padded(channels // depth.groups, depth.taps)


def stacked_weight(weight: Tensor) -> Tensor:
    """[out, C, T, R, S], dense, to [out, T*C4, R, S], which meets what :func:`stacked` gives."""
    out, channels, taps, *kernel = weight.shape
    padded = _padded(channels, taps)
    planes = F.pad(weight.transpose(1, 2), (0, 0, 0, 0, 0, padded - channels))
    return planes.reshape(out, taps * padded, *kernel)


def stacked(input: Tensor, depth: Depth) -> Tensor:
    """[N, C, D, H, W], padded along D, to [N*D', groups*T*C4, H, W]; channels_last where the input is.

    C4 is the channels of a group rounded up to 4; with one tap they stay as they are.

    Raises:
        ValueError: D is smaller than the window.
    """
    taps, stride, dilation, groups = depth
    images, channels, planes, height, width = input.shape
    span = (taps - 1) * dilation + 1
    if planes < span:
        raise ValueError(f"an input of {planes} planes, padding included, is smaller than a window of {span}")
    last, own = is_channels_last_3d(input), channels // groups
    padded = _padded(own, taps)
    parts: Tensor = input.unflatten(1, (groups, own))  # type: ignore[no-untyped-call]
    if padded != own:
        parts = F.pad(parts, (0, 0, 0, 0, 0, 0, 0, padded - own))
    seen = parts.unfold(3, span, stride)[..., ::dilation]  # [N, groups, C4, D', H, W, T]
    count = images * seen.shape[3]
    if last:
        rows = seen.permute(0, 3, 4, 5, 1, 6, 2).reshape(count, height, width, groups * taps * padded)
        return rows.permute(0, 3, 1, 2)
    return seen.permute(0, 3, 1, 6, 2, 4, 5).reshape(count, groups * taps * padded, height, width)


def unstacked(output: Tensor, input: Tensor, depth: Depth) -> Tensor:
    """[N*D', out, H', W'] to [N, out, D', H', W'], in the memory format of ``input``, which was stacked."""
    planes = (input.shape[2] - (depth.taps - 1) * depth.dilation - 1) // depth.stride + 1
    last = is_channels_last_3d(input)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    parts: Tensor = output.unflatten(0, (input.shape[0], planes))  # type: ignore[no-untyped-call]
    return parts.permute(0, 2, 1, 3, 4).contiguous(memory_format=layout)
