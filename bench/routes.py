#!/usr/bin/env python3
"""Fits python/sparse24/ops/cuda/published.py: where sparse products beat dense ones on GPUs, from published
times.

    python bench/routes.py measured.csv            # how well it does on shapes that it was not fitted to
    python bench/routes.py measured.csv --write    # and write the table

The times are not shipped. They are 4,184 problems of cuSPARSELt 0.8.1 and cuBLASLt on A100, H100 PCIe, B200,
RTX 4090, RTX 5080 and GB10 (github.com/bcacdwk/vllmbench, slidesparse/benchmark_kernel), the best algorithm
of a search each; the columns used here are sm, dtype, tokens, m, k, dense_us and sparse_us.

The model is a ridge regression of log(dense / sparse), cut off at a factor of two, on 14 functions of the
sizes' logs: one for each architecture and width, so that float16 and bfloat16 share one where both were
measured. Weights of 8 bits have no rival in torch and need no model: the last column says what always taking
sparse loses there.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse24.ops.cuda.published import features

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "python" / "sparse24" / "ops" / "cuda" / "published.py"
DTYPES = {"BF16": "bfloat16", "FP16": "float16", "INT8": "int8", "FP8": "float8_e4m3fn"}
HALVES = ("BF16", "FP16")
#: Strength of the ridge, and where ratios are cut off: a loss of a factor of five teaches no more than one of
#: two.
RIDGE, CUT = 1.0, math.log(2)
BEGIN, END = "# ---- written by bench/routes.py ----", "# ---- to here ----"


class Row(NamedTuple):
    """One problem, in microseconds."""

    sm: int
    dtype: str
    tokens: int
    m: int
    k: int
    dense: float
    sparse: float

    @property
    def shape(self) -> tuple[int, int]:
        """What is kept out of a fit as a whole."""
        return self.m, self.k


def read(path: Path) -> list[Row]:
    """The rows that have both times."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            Row(int(r["sm"]), r["dtype"], int(r["tokens"]), int(r["m"]), int(r["k"]),
                float(r["dense_us"]), float(r["sparse_us"]))
            for r in csv.DictReader(file)
        ]  # fmt: skip
    return [row for row in rows if row.dense > 0 and row.sparse > 0]


def fit(rows: Sequence[Row]) -> list[float]:
    """The weights of ``published.features``."""
    x = np.array([features(row.tokens, row.m, row.k) for row in rows])
    y = np.clip([math.log(row.dense / row.sparse) for row in rows], -CUT, CUT)
    found = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
    return [float(weight) for weight in found]


def loss(rows: Iterable[Row], weights: Sequence[float] | None) -> list[float]:
    """What the choice loses against always choosing right, a number a row; no weights: always sparse."""
    losses = []
    for row in rows:
        gain = 0.0
        if weights is not None:
            gain = sum(w * f for w, f in zip(weights, features(row.tokens, row.m, row.k), strict=True))
        losses.append((row.sparse if gain >= 0 else row.dense) / min(row.sparse, row.dense) - 1)
    return losses


def kept_out(rows: Sequence[Row], folds: int = 5, rounds: int = 4) -> list[float]:
    """Losses on shapes that the fit has not seen, every shape in turn."""
    losses: list[float] = []
    for seed in range(rounds):
        shapes = sorted({row.shape for row in rows})
        random.Random(seed).shuffle(shapes)
        for fold in range(folds):
            out = set(shapes[fold::folds])
            weights = fit([row for row in rows if row.shape not in out])
            losses += loss((row for row in rows if row.shape in out), weights)
    return losses


def groups(rows: Iterable[Row]) -> dict[tuple[int, tuple[str, ...]], list[Row]]:
    """Rows by architecture and the dtypes that share a model."""
    found: dict[tuple[int, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.dtype in DTYPES:
            found[row.sm, "half" if row.dtype in HALVES else row.dtype].append(row)
    return {(sm, tuple(sorted({row.dtype for row in each}))): each for (sm, _), each in sorted(found.items())}


def table(rows: Sequence[Row]) -> str:
    """The weights as Python, 16-bit types only."""
    lines = ["WEIGHTS: dict[tuple[int, str], tuple[float, ...]] = {"]
    for (sm, dtypes), each in groups(rows).items():
        for dtype in dtypes if dtypes[0] in HALVES else ():
            numbers = [f"{weight:.4f}," for weight in fit(each)]
            lines += [
                f'    ({sm}, "{DTYPES[dtype]}"): (',
                *("        " + " ".join(numbers[i : i + 7]) for i in (0, 7)),
            ]
            lines += ["    ),"]
    return "\n".join(["# fmt: off", *lines, "}", "# fmt: on"])


def write(rows: Sequence[Row]) -> None:
    """Replace the table in published.py."""
    text = TABLE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN + "\n")
    _, after = rest.split(END)
    TABLE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Print losses by card and type, and write the table if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = read(options.csv)
    print("sm    dtypes       rows  loss on shapes kept out  always sparse")
    for (sm, dtypes), each in groups(rows).items():
        chosen = kept_out(each) if dtypes[0] in HALVES else loss(each, None)
        always = loss(each, None)
        mean, simple = (100 * sum(losses) / len(losses) for losses in (chosen, always))
        print(f"{sm:<5} {'+'.join(dtypes):<12} {len(each):4}  {mean:20.2f} %  {simple:11.2f} %")
    if options.write:
        write(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
