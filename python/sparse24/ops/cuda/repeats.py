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
from .blobs import Operands
from .cusparselt import Stream
from .device_kernels import few_tokens_function
from .launch import Launch, Part

Launches = _C.Launches

#: The index of a device to the handle of torch's current stream there; None: this torch has no CUDA.
ask_stream: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)

#: Dtypes of products that are repeated. float32 depends on what torch is told about TF32, call by call.
_DTYPES = (torch.float16, torch.bfloat16)


class Done(NamedTuple):
    """A call that has run."""

    input: Tensor
    stream: Stream
    m: int
    activation: str
    has_bias: bool
    epoch: int  #: of the figures that it went by
    launch: Launch | None  #: None: the kernel for few tokens, on the canonical form


def epoch() -> int:
    """Grows with every change of figures or of the library (``route.forget``)."""
    return _C.launches_epoch()


def launches_for(dicts: tuple[dict[str, Any], dict[str, Any]] | None) -> Launches | None:
    """An empty collection; None: no CUDA here.

    Args:
        dicts: of the layer, which the weight is away from; they are referred to weakly. None: it is in them.
    """
    parameters, buffers = dicts or (None, None)
    return None if ask_stream is None else Launches(parameters, buffers, ask_stream)


def may_repeat(done: Done) -> bool:
    """Whether a call like this one may be repeated at all."""
    narrow = done.launch is None or done.input.dtype in _DTYPES
    return narrow and not done.stream.is_capturing


def add(launches: Launches, done: Done, parts: list[Part], window: object) -> None:
    """Repeat ``done``, which made these launches, from now on; nothing happens if figures changed since.

    Args:
        window: of a layer that is a 1 x 1 convolution; None: it is linear.
    """
    launches.add(
        done.epoch, done.input, done.m, done.activation, done.has_bias, done.stream.handle,
        [(p.first, p.plan.product, p.blob.key, p.plan.workspace_bytes, p.blob.data) for p in parts],
        window,
    )  # fmt: skip


def add_few(launches: Launches, done: Done, canonical: Operands | None) -> None:
    """Repeat ``done`` by the kernel for few tokens, on ``canonical``, or on what the layer's dicts hold."""
    function = few_tokens_function()
    if function:
        launches.add_few(
            done.epoch, done.input, done.m, done.activation, done.has_bias, done.stream.handle, function,
            *(canonical or (None, None)),
        )  # fmt: skip
