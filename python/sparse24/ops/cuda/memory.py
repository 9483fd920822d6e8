"""Memory on a device: what is kept between calls, and what a launch needs.

``torch.compile(mode="reduce-overhead")`` runs a program once with every allocation of its thread (before
torch 2.8: of its stream) taken from the pool of a CUDA graph, where nothing may live longer than that run:
"not tracked as outputs" is the error. The stream is not capturing then, so an operator cannot tell. What is
kept is therefore allocated by a thread and on a stream of its own, which no pool is ever set for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


@functools.cache
def _stream_of(index: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(index)


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.empty`` of what may be kept. Not while a CUDA graph is captured: it waits.

    The tensor belongs to no stream that computes, so each one that uses it has to say so (``Stream.record``).
    """

    def make() -> Tensor:
        if device.type != "cuda":
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        stream = _stream_of(torch.cuda.current_device() if device.index is None else device.index)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            made = torch.empty(tuple(shape), dtype=dtype, device=device)
            stream.synchronize()  # deterministic algorithms fill what is empty
        return made

    return _apart(make)


def scratch(bytes: int, device: torch.device) -> Tensor:
    """Memory for one launch, from torch's allocator: in a CUDA graph's capture it is the graph's for good."""
    return torch.empty(bytes, dtype=torch.uint8, device=device)


def copy_of(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of ``tensor`` on ``device`` that may be kept, made on the current stream, which may use it."""
    made = empty(tensor.shape, dtype or tensor.dtype, device).copy_(tensor)
    if made.is_cuda:
        made.record_stream(torch.cuda.current_stream(device))  # freed, it waits for what is queued there
    return made


def _apart(make: Callable[[], Tensor]) -> Tensor:
    with ThreadPoolExecutor(1, "sparse24-memory") as pool:
        return pool.submit(make).result()
