"""What the machine could do, and what products reach of it: a roofline, fp32.

Operations are those of the dense product, for both: a 2:4 product that executes half of them may reach twice
the peak. Bytes are those of the weight as it is stored, the input and the output, each once.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch

from ...files import FileError
from ...timing import interleaved_medians
from . import goals, kernels, single
from .linear import SHAPES
from .papers import checkout
from .table import Rows, Setting, Table

TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
#: Weights are cold up to so many tokens.
COLD = 16
#: Of the dense product that stands for the peak where the C++ program cannot be built.
SIDE = 2048
PRODUCT = "the fastest dense product"


class Limits(NamedTuple):
    """Of this machine, with the threads that were asked for."""

    giga: float  #: operations a second, 10^9
    how: str  #: how that was found
    bandwidth: float  #: GB/s of a plain read


def tables(setting: Setting) -> list[Table]:
    """The limits, then a row a shape and count of tokens."""
    found = limits(setting)
    machine = Table(
        "roofline-limits",
        "Limits of this machine, fp32.",
        [
            ["limit", "figure", "how"],
            ["operations", f"{found.giga:.0f} GF/s", found.how],
            ["reading", f"{found.bandwidth:.1f} GB/s", "a plain read of more than caches hold"],
        ],
    )
    head = [
        "out, in",
        "tokens",
        "operations a byte",
        "torch GF/s",
        "operations a byte, 2:4",
        "2:4 GF/s",
        "of its roof",
    ]
    caption = (
        f"Linear fp32 under the roof of this machine ({found.giga:.0f} GF/s by {found.how}, "
        f"{found.bandwidth:.1f} GB/s). Operations of the dense product for both, so the roof of 2:4 is twice "
        f"as high. Weights are cold up to {COLD} tokens, warm beyond."
    )
    shapes, counts = (SHAPES[:1], TOKENS[:2]) if setting.quick else (SHAPES, TOKENS)
    with Rows(setting, "roofline", caption, head, [machine]) as rows:
        for shape, tokens in itertools.product(shapes, counts):
            times = single.linear(single.KINDS["fp32"], shape, tokens, setting.seconds, cold=tokens <= COLD)
            work = 2.0 * shape[0] * shape[1] * tokens
            others = 4.0 * tokens * sum(shape)
            intensities = [work / (size + others) for size in (4.0 * shape[0] * shape[1], times.weight_bytes)]
            speeds = [work / each / 1e9 for each in (times.torch, times.sparse)]
            roof = min(2 * found.giga, intensities[1] * found.bandwidth)
            cells = [
                cell
                for pair in zip(intensities, speeds, strict=True)
                for cell in (f"{pair[0]:.1f}", f"{pair[1]:.3g}")
            ]
            rows.add([f"{shape[0]}, {shape[1]}", str(tokens), *cells, f"{speeds[1] / roof:.0%}"])
    return [machine, rows.table()]


def limits(setting: Setting) -> Limits:
    """The peak of multiply-adds by the C++ program where it can be built, else of a dense product."""
    bandwidth = goals.read_gigabytes(0.2 if setting.quick else 1.0)
    if setting.quick:  # which builds nothing
        return Limits(_dense_rate(setting), PRODUCT, bandwidth)
    try:
        lines = kernels.run(checkout(), setting.threads, "linear")
    except FileError:
        return Limits(_dense_rate(setting), PRODUCT, bandwidth)
    shares = [line for line in lines if line["table"] == "linear" and line["dtype"] == "fp32"]
    # A share is one of twice the peak, measured in turns with its product.
    peak = max(line["gflops"] / line["of_peak"] / 2 for line in shares)
    return Limits(peak, "multiply-adds in registers", bandwidth)


def _dense_rate(setting: Setting) -> float:
    side = 256 if setting.quick else SIDE
    a, b = torch.randn(side, side), torch.randn(side, side)
    (seconds,) = interleaved_medians([functools.partial(torch.mm, a, b)], setting.seconds)
    return 2.0 * side**3 / seconds / 1e9
