"""Sparse products beside torch's dense ones (cuBLASLt) and torch's own semi-structured ones.

Rivals take turns in one process; a figure is the median of the rounds. Losing shapes are in the report too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.cuda import device_kernels, published, route
from ...ops.cuda.cusparselt import Algorithm
from ...ops.cuda.launch import forget_plans
from ..doctor import relative_error
from .ground import Ground
from .products import TOLERANCE, name_of, sparse_weight

#: BERT-Large of the talk (m, n, k), and projections of 7B and 70B language models at a few token counts.
TALK = ((1024, 8192, 1024), (1024, 16384, 1024), (4096, 8192, 1024), (4096, 16384, 1024), (1024, 8192, 4096))
LANGUAGE_MODELS = tuple(
    (m, n, k) for m, k in ((11008, 4096), (8192, 8192)) for n in (1, 16, 64, 512, 2048, 8192)
)
QUICK = (TALK[0], TALK[-1], (8192, 1, 8192), (8192, 16, 8192), (8192, 2048, 8192))
SMALL = ((288, 64, 64), (288, 4, 64))
ROUNDS = 9


def run(ground: Ground) -> None:
    """Time them all; a check fails only where results are wrong: speed is reported, not judged."""
    for dtype in (torch.float16, torch.bfloat16):
        shapes = QUICK if ground.quick else TALK + LANGUAGE_MODELS
        for m, n, k in SMALL if ground.emulated else shapes:
            with ground.attempt(name_of(dtype, (m, n, k))):
                _one(ground, route.Call(dtype, dtype, m, n, k))


def _one(ground: Ground, call: route.Call) -> None:
    weight = sparse_weight(ground, call.m, call.k, dtype=call.dtype)
    x = ground.tensor(call.n, call.k, dtype=call.dtype)
    values, indices = torch.ops.sparse24.compress(weight)
    # The sparse product itself, wherever the threshold would send it.
    forced = route.Measured(Algorithm(), 1.0, 0.0, 0.0)
    route.measured[route.measured_key(call, ground.gpu)] = forced
    forget_plans()
    operator = ground.operator("linear")
    rivals: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: F.linear(x, weight),
        "sparse": lambda: operator(x, values, indices, None, "none"),
    }
    if ground.gpu.kernels and device_kernels.takes_few(call.n, call.dtype, call.dtype):
        rivals["few tokens"] = lambda: device_kernels.few_tokens(
            x, values, indices, None, None, "none", ground.stream.handle
        )
    facts: dict[str, object] = {}
    if not ground.emulated:
        try:
            theirs = torch.sparse.to_sparse_semi_structured(weight)
            rivals["torch semi-structured"] = lambda: F.linear(x, theirs)
            rivals["torch semi-structured"]()
        except (RuntimeError, NotImplementedError, ValueError) as refusal:
            rivals.pop("torch semi-structured", None)
            facts["torch semi-structured"] = f"cannot: {str(refusal).splitlines()[0]}"
    error = relative_error(rivals["sparse"](), rivals["dense"]())
    times = _medians(ground, rivals)
    facts |= {f"{name} us": time for name, time in times.items()}
    best = min(time for name, time in times.items() if name in ("sparse", "few tokens"))
    facts["x dense"] = times["dense"] / best
    facts["published"] = published.gain(
        ground.gpu.sm, call.dtype, call.n, call.m, call.k
    )  # what routes expect
    ground.check(name_of(call.dtype, (call.m, call.n, call.k)), error <= 2 * TOLERANCE[call.dtype], **facts)


def _medians(ground: Ground, rivals: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Microseconds of each rival, taking turns."""
    stream, rounds = ground.stream, 2 if ground.emulated else ROUNDS
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, work in rivals.items():
            times[name].append(stream.microseconds(work, 3))
    return {name: statistics.median(found) for name, found in times.items()}
