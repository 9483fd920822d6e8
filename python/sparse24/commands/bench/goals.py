"""What this library set out to reach, what it reaches here, and what bounds it.

A goal is a ratio to stock torch in the same dtype, the geometric mean over some shapes. It belongs to a class
of kernels; with others it is measured for orientation, and has no verdict: what those kernels reach stays a
prediction, which the figure of a prototype goes with. Goals of networks are read from the rows that ``--only
networks`` has kept.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ...ops.registry import cpu_isa
from . import conv, keeping, linear, single
from .networks import HEADER
from .table import Rows, Setting, Table

WITHIN = 0.97  #: of a goal for networks: noise


class Goal(NamedTuple):
    """One line."""

    kernels: tuple[str, ...]  #: how the instruction set begins, of the class that it was set for
    what: str
    kind: str  #: key of ``single.KINDS``
    tokens: tuple[int, ...]  #: of linear layers; empty: a convolution
    channels: tuple[int, int]  #: of convolutions: at least, at most
    goal: float
    prototype: str  #: what a prototype reached, or where the goal is from

    @property
    def is_cold(self) -> bool:
        """Whether no cache holds the weights."""
        return "cold" in self.what

    @property
    def is_over_fp32(self) -> bool:
        """Whether the rival computes in float32."""
        return "over fp32" in self.what


AMX, AVX512, AVX2 = ("amx",), ("avx512",), ("avx2",)
NO_CHANNELS = (0, 0)
GOALS = (
    Goal(AMX, "bf16, 1 to 16 tokens, cold", "bf16", (1, 16), NO_CHANNELS, 1.8, "1.9 to 2.1"),
    Goal(AMX, "bf16, 32 and 64 tokens", "bf16", (32, 64), NO_CHANNELS, 1.9, "1.6 to 3.0"),
    Goal(AMX, "bf16, 128 tokens", "bf16", (128,), NO_CHANNELS, 1.5, "1.3 to 1.9"),
    Goal(AMX, "bf16, 512 tokens", "bf16", (512,), NO_CHANNELS, 1.45, "1.1 to 1.9"),
    Goal(AMX, "bf16, 2048 tokens", "bf16", (2048,), NO_CHANNELS, 1.3, "1.1 to 1.6"),
    Goal(AMX, "fp32, 64 tokens and more", "fp32", (64, 512, 2048), NO_CHANNELS, 1.95, "1.7 to 2.4"),
    Goal(AMX, "fp32, 1 token, cold", "fp32", (1,), NO_CHANNELS, 1.8, "1.85"),
    Goal(AMX, "fp16, 64 tokens and more", "fp16", (64, 512), NO_CHANNELS, 2.5, "arithmetic"),
    Goal(AMX, "int8 weights, 1 token, cold, over bf16", "int8 weights", (1,), NO_CHANNELS, 2.8, "2.8"),
    Goal(AMX, "int8, 64 tokens and more, over torch's int8", "int8", (64, 512), NO_CHANNELS, 1.2, ""),
    Goal(AMX, "convolution fp32, 128 channels and more", "fp32", (), (128, 1 << 30), 1.7, "arithmetic"),
    Goal(AMX, "convolution fp32, 64 channels", "fp32", (), (0, 64), 1.3, "arithmetic"),
    Goal(AMX, "convolution bf16, 256 channels and more", "bf16", (), (256, 1 << 30), 1.2, "1.1 to 2.5"),
    Goal(AVX512, "fp32, 128 tokens and more, without AMX", "fp32", (128, 512, 2048), NO_CHANNELS, 1.5, "1.6"),
    Goal(AVX2, "fp32, 512 tokens and more", "fp32", (512, 2048), NO_CHANNELS, 1.9, "2.2"),
    Goal(AVX2, "fp32, 128 tokens", "fp32", (128,), NO_CHANNELS, 1.9, "2.0 to 2.2"),
    Goal(AVX2, "fp32, 1 token, cold", "fp32", (1,), NO_CHANNELS, 1.8, "1.8 to 3.0"),
    Goal(AVX2, "convolution fp32, 256 channels and more", "fp32", (), (256, 1 << 30), 1.5, "1.4 to 2.5"),
    Goal(AVX2, "convolution fp32, 64 to 128 channels", "fp32", (), (64, 128), 1.3, "1.2 to 1.5"),
    Goal(AVX2, "bf16, 1 token, cold, over fp32", "bf16", (1,), NO_CHANNELS, 3.2, "3.2 to 6.9"),
    Goal(AVX2, "fp16, 1 token, cold, over fp32", "fp16", (1,), NO_CHANNELS, 3.2, "3.3 to 7.0"),
    Goal(AVX2, "int8 weights, 1 token, cold, over fp32", "int8 weights", (1,), NO_CHANNELS, 6.5, "6.5 to 12"),
)


class Point(NamedTuple):
    """One shape of a goal."""

    times: single.Times
    rival: float  #: seconds of what the goal is a ratio to
    operations: float  #: of the dense product
    cold: bool


def tables(setting: Setting) -> list[Table]:
    """The goals of this machine's class, measured, and the others for orientation."""
    kernels = cpu_isa()
    own = [goal for goal in GOALS if kernels.startswith(goal.kernels)]
    others = [goal for goal in GOALS if goal not in own]
    read = read_gigabytes(0.2 if setting.quick else 1.0)
    caption = (
        f"Goals, and what {kernels} kernels reach: ratios to torch, geometric means over BERT-Large's linear "
        "layers or the convolutions of the benchmark conv, and the least of them; best dense is oneDNN with "
        f"prepacked weights where that is faster. A plain read reaches {read:.1f} GB/s."
    )
    head = ["goal", "asked", "reached", "least", "x best dense", "", "what bounds it"]
    known: dict[tuple[object, ...], list[Point]] = {}  # some goals are set for two classes
    with Rows(setting, "goals", caption, head) as rows:
        for goal in GOALS[:1] if setting.quick else [*own, *others]:
            what = (goal.kind, goal.tokens, goal.channels, goal.is_cold, goal.is_over_fp32)
            if what not in known:
                known[what] = points(goal, setting)
            rows.add(row(goal, known[what], read, goal in own))
        for line in _of_networks(setting):
            rows.add(line)
    return [rows.table()]


def points(goal: Goal, setting: Setting) -> list[Point]:
    """Every shape of a goal, measured."""
    kind = single.KINDS[goal.kind]
    if not goal.tokens:
        shapes = [s for s in conv.SHAPES if goal.channels[0] <= min(s[:2]) <= goal.channels[1]]
        return [_conv2d(kind, shape, setting.seconds) for shape in (shapes[:1] if setting.quick else shapes)]
    found = []
    shapes_of_layers = linear.SHAPES[:1] if setting.quick else linear.SHAPES
    for shape, tokens in itertools.product(shapes_of_layers, goal.tokens):
        times = single.linear(kind, shape, tokens, setting.seconds, goal.is_cold)
        rival = times.torch
        if goal.is_over_fp32:
            rival = single.linear(single.KINDS["fp32"], shape, tokens, setting.seconds, goal.is_cold).torch
        found.append(Point(times, rival, 2.0 * shape[0] * shape[1] * tokens, goal.is_cold))
    return found


def _conv2d(kind: single.Kind, shape: tuple[int, int, int, int], seconds: float) -> Point:
    c, o, size, r = shape
    layer = nn.Conv2d(c, o, r, padding=r // 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(conv.BATCH, c, size, size).contiguous(memory_format=torch.channels_last)
    times = single.conv2d(kind, layer, x, seconds)
    return Point(times, times.torch, 2.0 * conv.BATCH * size * size * o * c * r * r, False)


def row(goal: Goal, found: Sequence[Point], read: float, is_own: bool = True) -> list[str]:
    """A line of the table; ``read``: GB/s of a plain read; ``is_own``: the goal is this class's."""
    ratios = [point.rival / point.times.sparse for point in found]
    best = [min(point.rival, point.times.best) / point.times.sparse for point in found]
    reached, least = mean(ratios), min(ratios)
    verdict = "met" if reached >= goal.goal and least >= 1 else "missed"
    if not is_own:
        verdict = f"for {goal.kernels[0]}: a prediction"
    asked = f"{goal.goal:g}" + (f" (prototype: {goal.prototype})" if goal.prototype else "")
    cells = [f"{reached:.2f}", f"{least:.2f}", f"{mean(best):.2f}"]
    return [goal.what, asked, *cells, verdict, bound(found, read)]


def bound(found: Sequence[Point], read: float) -> str:
    """What the kernel does of what could be done: bandwidth where weights are cold, else dense's rate."""
    if found[0].cold:
        speeds = [point.times.weight_bytes / point.times.sparse / 1e9 for point in found]
        return f"weights read at {mean(speeds):.1f} GB/s, {mean(speeds) / read:.0%} of a plain read"
    executed = mean([point.operations / 2 / point.times.sparse / 1e9 for point in found])
    dense = mean([point.operations / point.times.best / 1e9 for point in found])
    limit = mean([2 * point.rival / point.times.best for point in found])
    return (
        f"executes {executed:.0f} GF/s, {executed / dense:.0%} of the best dense rate ({dense:.0f}); "
        f"at that rate the ratio would be {limit:.2f}"
    )


def _of_networks(setting: Setting) -> list[list[str]]:
    """Goals of networks, by the rows that were kept."""
    rows = keeping.Rows("networks", dataclasses.replace(setting, resume=True)).all()
    if not rows:
        return [
            ["networks: .95 of Amdahl's prediction", "0.95", "", "", "", "not measured", "--only networks"]
        ]
    at = {name: HEADER.index(name) for name in ("x torch", "x best dense", "of Amdahl", "in products")}
    lines = []
    for what, name, goal in (
        ("of Amdahl's prediction", "of Amdahl", 0.95),
        ("not slower than torch", "x torch", 1.0),
    ):
        numbers = {key: float(cells[at[name]]) for key, cells in rows.items() if cells[at[name]]}
        if not numbers:
            continue
        worst = min(numbers, key=lambda key: numbers[key])
        asked = goal if name == "of Amdahl" else goal * WITHIN
        verdict = "met" if min(numbers.values()) >= asked else "missed"
        reached = f"{mean(list(numbers.values())):.2f}"
        best = mean([float(cells[at["x best dense"]]) for cells in rows.values()])
        why = f"least: {worst}, {rows[worst][at['in products']]} of whose time is in products"
        lines.append(
            [f"networks: {what}", f"{goal:g}", reached, f"{numbers[worst]:.2f}", f"{best:.2f}", verdict, why]
        )
    return lines


def mean(numbers: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


def read_gigabytes(seconds: float) -> float:
    """GB/s of a plain read of more than caches hold, by all threads: the fastest."""
    words = torch.ones(int(single.COLD_BYTES) // 4, dtype=torch.int32)
    read: Callable[[], object] = functools.partial(torch.amax, words)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - start)
    return words.nbytes / best / 1e9
