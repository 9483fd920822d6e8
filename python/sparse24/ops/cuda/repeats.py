"""Products of a layer that are done again as they were, by one C call (csrc/bindings_launches.cpp).

A call that went the long way is noted with all that it settled: plans, blobs, workspace. The next one with as
many tokens on the same stream is repeated without any of it, until the layer's weight or the figures change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _C
from .launch import Launch, Part

Launches = _C.Launches

#: The index of a device to the handle of torch's current stream there; None: this torch has no CUDA.
ask_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)

#: Dtypes of products that are repeated. float32 depends on what torch is told about TF32, call by call.
_DTYPES = (torch.float16, torch.bfloat16)


class Done(NamedTuple):
    """A call that has run."""

    launch: Launch
    input: Tensor


def launches_for(parameters: dict[str, Any], buffers: dict[str, Any]) -> Launches | None:
    """An empty collection for the layer with these dicts, which it refers to weakly; None: no CUDA here."""
    return None if ask_stream is None else Launches(parameters, buffers, ask_stream)


def may_repeat(done: Done) -> bool:
    """Whether a call like this one may be repeated at all."""
    return done.input.dtype in _DTYPES and not done.launch.stream.is_capturing


def add(launches: Launches, done: Done, parts: list[Part]) -> None:
    """Repeat ``done``, which made these launches, from now on; nothing happens if figures changed since."""
    launch = done.launch
    has_bias = launch.epilogue.bias is not None
    launches.add(
        launch.route.epoch, done.input, launch.call.m, launch.call.activation, has_bias, launch.stream.handle,
        [(p.first, p.plan.product, p.blob.key, p.plan.workspace_bytes, p.blob.data) for p in parts],
    )  # fmt: skip
