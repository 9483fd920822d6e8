"""The fastest algorithm of one product on this GPU, beside what dense takes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _C
from ..registry import round_up
from . import device_kernels, route
from .cusparselt import Algorithm, Stream


def measure(
    call: route.Call, values: Tensor, indices: Tensor, stream: Stream, *, launches: int, by_library: bool,
    seconds: float,
) -> tuple[route.Measured, int, int]:  # fmt: skip
    """Figures of a call with this weight, how many algorithms were tried, and how many of them refused.

    An algorithm is refused that fails, or whose results differ from the default one's beyond rounding. Runs
    on ``stream``, which must be the current one, and synchronises. The default algorithm is always measured.

    Args:
        by_library: try the choice of ``cusparseLtMatmulSearch`` instead of every algorithm.
        seconds: no further algorithm is begun after this time.

    Raises:
        Error: the default algorithm fails.
    """
    handle = stream.handle
    m, k, multiple = route.legal_sizes(call)
    n = round_up(call.n, multiple)
    dense = device_kernels.expand(values, indices, m, k, handle)
    own = torch.Generator(device=values.device).manual_seed(24)  # the user's random state stays as it is
    x = torch.randn(n, k, device=values.device, generator=own).to(call.dtype)
    y = torch.empty(n, m, dtype=call.out_dtype, device=values.device)
    form = route.product(call._replace(m=m, n=n, k=k, activation="none", has_bias=False), "none", Algorithm())
    sizes = _C.cusparselt_search_sizes(stream.device, form, handle)
    scratch = [torch.empty(bytes, dtype=torch.uint8, device=values.device) for bytes in sizes]
    buffers = [t.data_ptr() for t in (dense, x, y)] + [0, 0] + [t.data_ptr() for t in scratch]
    if by_library:
        candidates = [_C.cusparselt_library_search(stream.device, form, buffers, launches, handle)]
    else:
        candidates = _C.cusparselt_algorithms(stream.device, form, handle)
    trials = _C.cusparselt_search(
        stream.device, form, candidates, buffers, launches, 1000 * seconds, handle
    )  # fmt: skip
    right = [trial for trial in trials if not trial.refused]
    best = min(right, key=lambda trial: trial.microseconds)
    tokens, weight = x[: call.n, : call.k], dense[: call.m, : call.k]

    def expanded() -> Tensor:
        whole = device_kernels.expand(values, indices, call.m, k, handle)
        return F.linear(tokens, whole[:, : call.k])

    dense_us = stream.microseconds(lambda: F.linear(tokens, weight), launches)
    expanded_us = stream.microseconds(expanded, launches)
    found = route.Measured(best.algorithm, best.microseconds, dense_us, expanded_us)
    return found, len(trials), len(trials) - len(right)


def algorithms(call: route.Call, stream: Stream) -> list[Algorithm]:
    """What the library has for a call whose sizes are legal, the default first."""
    form = route.product(call, "none", Algorithm())
    return _C.cusparselt_algorithms(stream.device, form, stream.handle)
