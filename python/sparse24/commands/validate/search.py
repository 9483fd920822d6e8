"""Every algorithm of some products: compared with the default one, and timed."""

from __future__ import annotations

import torch

from ...ops.cuda import route
from ...ops.cuda import search as one_search
from ...ops.cuda.trials import Trials
from .ground import Ground
from .products import name_of

SHAPES = ((1024, 4096, 1024), (4096, 4096, 1024), (4096, 512, 4096), (4096, 16, 4096))  # m, n, k
SMALL_SHAPES = ((288, 64, 64),)


def run(ground: Ground) -> None:
    """Search, without writing to the user's file of figures; what kills a process is denied from then on."""
    with Trials(ground.device, ground.gpu) as trials:
        for dtype in (torch.float16, torch.bfloat16):
            for m, n, k in SMALL_SHAPES if ground.emulated else SHAPES[: 1 if ground.quick else None]:
                name = name_of(dtype, (m, n, k))
                with ground.attempt(name):
                    _search(ground, trials, route.Call(dtype, dtype, m, n, k), name)


def _search(ground: Ground, trials: Trials, call: route.Call, name: str) -> None:
    for by_library in (True, False):
        found, tried = one_search.measure(
            call,
            trials,
            launches=3 if ground.emulated else 20,
            by_library=by_library,
            seconds=1.0 if ground.quick else 5.0,
        )
        chosen = found.algorithm
        label = (chosen.id, chosen.split_k, chosen.split_k_mode)
        way = "by the library" if by_library else "by trying all"
        refused = {str(trial.algorithm.id): trial.refused for trial in tried if trial.refused}
        ground.check(
            f"{name} {way}", found.sparse > 0, tried=len(tried), refused=refused, algorithm=label,
            sparse_us=found.sparse, dense_us=found.dense, expanded_us=found.expanded,
        )  # fmt: skip
