"""One encoder layer of BERT-Large by its parts, dense and 2:4: where the rest of Amdahl's law is."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ... import Sparsifier, to_sparse
from .definitions.transformers import SEQUENCE, Block
from .table import Rows, Setting, Table

BATCH, QUICK_BATCH = 8, 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Parts by the modules of a block; what is around them is the last two.
PARTS = {
    "q, k, v": ("attention.q", "attention.k", "attention.v"),
    "attention's output": ("attention.out",),
    "up": ("mlp.0",),
    "down": ("mlp.2",),
    "GELU": ("mlp.1",),
    "norms": ("norm1", "norm2"),
}
PRODUCTS = ("q, k, v", "attention's output", "up", "down")
SOFTMAX, RESIDUALS, WHOLE = "batched products and softmax", "residuals and calls", "whole layer"
ROUNDS = 5


class Times(NamedTuple):
    """Milliseconds of each part, in the order of ``names``."""

    parts: dict[str, float]
    whole: float


def tables(setting: Setting) -> list[Table]:
    """Rows of parts for each dtype, then the whole, and what Amdahl's law makes of the products' ratios."""
    batch = QUICK_BATCH if setting.quick else BATCH
    head = ["dtype", "part", "dense ms", "2:4 ms", "x dense"]
    caption = (
        f"One encoder layer of BERT-Large, batch {batch}, sequence {SEQUENCE}, by its parts, eager, every "
        "product 2:4. Amdahl's law: what the ratios of the products say of the whole, all else as "
        "before."
    )
    with Rows(setting, "encoder", caption, head) as rows, torch.no_grad():
        for name, dtype in DTYPES.items():
            dense, sparse = measure(dtype, batch, setting.seconds)
            for part, before in dense.parts.items():
                after = sparse.parts[part]
                rows.add([name, part, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}"])
            ratio = f"{dense.whole / sparse.whole:.2f}"
            rows.add([name, WHOLE, f"{dense.whole:.2f}", f"{sparse.whole:.2f}", ratio])
            law = dense.whole - sum(dense.parts[part] - sparse.parts[part] for part in PRODUCTS)
            rows.add(
                [name, "by Amdahl's law", f"{dense.whole:.2f}", f"{law:.2f}", f"{dense.whole / law:.2f}"]
            )
    return [rows.table()]


def measure(dtype: torch.dtype, batch: int, seconds: float) -> tuple[Times, Times]:
    """The layer dense and 2:4, in turns."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(24)
        dense = Block(1024, 16, 4096, norm_first=False).to(dtype).eval()
        x = torch.randn(batch, SEQUENCE, 1024).to(dtype)
    Sparsifier(dense, select=["*"]).prune()
    sparse = copy.deepcopy(dense)
    to_sparse(sparse, when="always")
    watches = [_Watch(model) for model in (dense, sparse)]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds <= ROUNDS or time.perf_counter() < end:
        for watch in watches:
            watch.call(x, keep=rounds > 0)
        rounds += 1
    first, second = (watch.times() for watch in watches)
    return first, second


class _Watch:
    """A block whose modules note when they begin and end."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = [name for names in PARTS.values() for name in names]
        self._begun: dict[str, float] = {}
        self._spent: dict[str, list[float]] = {name: [] for name in ("", "attention", *self._names)}

    def call(self, x: Tensor, keep: bool) -> None:
        handles = []
        for name in self._spent:
            module = self._model.get_submodule(name)
            handles += [
                module.register_forward_pre_hook(self._begin(name)),
                module.register_forward_hook(self._end(name, keep)),
            ]
        try:
            self._model(x)
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, name: str) -> Callable[..., None]:
        return lambda *given: self._begun.__setitem__(name, time.perf_counter())

    def _end(self, name: str, keep: bool) -> Callable[..., None]:
        def end(*given: object) -> None:
            if keep:
                self._spent[name].append(time.perf_counter() - self._begun[name])

        return end

    def times(self) -> Times:
        """Means over the middle half of the calls, by their time: the parts add up to the whole."""
        calls = [
            dict(zip(self._spent, each, strict=True)) for each in zip(*self._spent.values(), strict=True)
        ]
        calls.sort(key=lambda call: call[""])
        middle = calls[len(calls) // 4 : max(len(calls) // 4 + 1, 3 * len(calls) // 4)]
        each = {name: statistics.fmean(call[name] for call in middle) * 1e3 for name in self._spent}
        parts = {part: sum(each[name] for name in names) for part, names in PARTS.items()}
        parts[SOFTMAX] = each["attention"] - sum(each[n] for n in self._names if n.startswith("attention."))
        return Times({**parts, RESIDUALS: each[""] - sum(parts.values())}, each[""])
