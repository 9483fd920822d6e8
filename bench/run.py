"""The benchmarks behind every table: ``python bench/run.py [--write] [--threads N] [--only NAME]``.

Rivals take turns in one process and medians are compared, so a ratio holds where an absolute time
does not. ``--write`` puts the tables, with the machine and this command, into bench/RESULTS.md and
README.md between their markers.

Dense rivals: stock torch (``F.linear``, ``F.conv2d`` in the better of its two memory formats), and the
best dense that runs here: OpenBLAS through numpy for products, oneDNN with prepacked weights for
convolution (torch's own path through MKL is held back on AMD).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse24 import SparseLinear, ops
from sparse24.report import format_table
from sparse24.timing import Machine, interleaved_medians

ROOT = Path(__file__).resolve().parent.parent
LINEAR_SHAPES = [(1024, 1024), (4096, 1024), (1024, 4096)]  # (out, in): BERT-Large
CONV_SHAPES = [  # in, out, height = width, kernel
    (64, 64, 56, 3),
    (128, 128, 28, 3),
    (256, 256, 14, 3),
    (512, 512, 7, 3),
    (256, 1024, 14, 1),
    (1024, 256, 14, 1),
    (512, 2048, 7, 1),
]
CONV_BATCH = 8
COLD_BYTES = 160e6  # weights that take turns in decode: more than any cache holds


@dataclasses.dataclass(frozen=True)
class Table:
    name: str
    caption: str
    rows: list[list[str]]

    def markdown(self) -> str:
        head, *body = self.rows
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]
        return self.caption + "\n\n" + "\n".join(lines)


def pruned(*shape: int) -> Tensor:
    weight = torch.randn(*shape)
    torch.ops.sparse24.prune_(weight, 2, 4, 1)
    return weight


def tera(operations: float, seconds: float) -> str:
    return f"{operations / seconds / 1e9:.0f}"


def ratios(sparse: float, *rivals: float) -> list[str]:
    return [f"{rival / sparse:.2f}" for rival in rivals]


@contextlib.contextmanager
def numpy_threads(count: int) -> Iterator[str]:
    """OpenBLAS limited to ``count`` threads; yields its name for the caption."""
    try:
        import threadpoolctl  # noqa: PLC0415
    except ImportError:
        yield "numpy's BLAS, its own number of threads (threadpoolctl is missing)"
        return
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        blas = [
            i for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas" and "numpy" in i["filepath"]
        ]
        name = (
            f"{blas[0]['internal_api']} {blas[0]['version']} ({blas[0]['architecture']})" if blas else "numpy"
        )
        yield name


def bench_linear(threads: int, seconds: float) -> Table:
    rows = [["out, in", "tokens", "torch GF/s", "best dense GF/s", "2:4 GF/s", "x torch", "x best dense"]]
    with numpy_threads(threads) as blas:
        for (m, k), n in itertools.product(LINEAR_SHAPES, (16, 128, 512, 2048)):
            weight, bias, x = pruned(m, k), torch.randn(m), torch.randn(n, k)
            compressed = torch.ops.sparse24.compress(weight)
            a, b, out = x.numpy(), weight.numpy().T, np.empty((n, m), np.float32)
            turns = [
                lambda x=x, w=weight, b=bias: F.linear(x, w, b),
                lambda x=x, c=compressed, b=bias: torch.ops.sparse24.linear(x, *c, b),
            ]
            blas_turn = [lambda a=a, b=b, out=out: np.matmul(a, b, out=out)]
            blocks = []
            for _ in range(3):
                pair = interleaved_medians(turns, seconds / 4)
                best = interleaved_medians(blas_turn, seconds / 12)
                time.sleep(0.2)  # OpenBLAS's threads spin for a while, on the cores of the next turn
                blocks.append((*pair, *best))
            dense, sparse, best = map(statistics.median, zip(*blocks, strict=True))
            best, work = min(dense, best), 2.0 * m * k * n
            rows.append(
                [
                    f"{m}, {k}",
                    str(n),
                    *(tera(work, t) for t in (dense, best, sparse)),
                    *ratios(sparse, dense, best),
                ]
            )
    caption = f"Linear fp32, warm. Best dense: the faster of torch and {blas}."
    return Table("linear", caption, rows)


def bench_decode(seconds: float) -> Table:
    rows = [["out, in", "tokens", "torch", "2:4", "x torch", "weights read, GB/s"]]
    for m, k in LINEAR_SHAPES:
        copies = int(COLD_BYTES / (4 * m * k)) + 2
        weights = [pruned(m, k) for _ in range(copies)]
        compressed = [torch.ops.sparse24.compress(weight) for weight in weights]
        for n in (1, 2, 4, 8):
            x = torch.randn(n, k)
            for each in compressed:
                torch.ops.sparse24.linear(x, *each, None)
            dense_turns, sparse_turns = itertools.cycle(weights), itertools.cycle(compressed)
            dense, sparse = interleaved_medians(
                [
                    lambda x=x, turns=dense_turns: F.linear(x, next(turns)),
                    lambda x=x, turns=sparse_turns: torch.ops.sparse24.linear(x, *next(turns), None),
                ],
                seconds,
            )
            panels = m * k * (2 + 1 / 8)  # bytes: half the fp32 values, two bits each
            rows.append(
                [
                    f"{m}, {k}",
                    str(n),
                    f"{dense * 1e6:.0f} us",
                    f"{sparse * 1e6:.0f} us",
                    *ratios(sparse, dense),
                    f"{panels / sparse / 1e9:.1f}",
                ]
            )
    caption = "Linear fp32, few tokens, cold weights (more of them than any cache holds, taking turns)."
    return Table("decode", caption, rows)


def prepacked(weight: Tensor, bias: Tensor, x: Tensor, pad: int) -> Callable[[], Tensor]:
    """The convolution as torch.compile with freezing runs it: oneDNN, weights in its own layout."""
    onednn, one = torch.ops.mkldnn, [1, 1]
    packed = onednn._reorder_convolution_weight(weight, [pad, pad], one, one, 1, list(x.shape))
    return lambda: onednn._convolution_pointwise(x, packed, bias, [pad, pad], one, one, 1, "none", [], "")


def bench_conv(seconds: float) -> Table:
    rows = [
        ["in -> out, size, kernel", "torch GF/s", "prepacked oneDNN", "2:4 GF/s", "x torch", "x prepacked"]
    ]
    last = torch.channels_last
    for c, o, size, r in CONV_SHAPES:
        weight, bias, x = pruned(o, c, r, r), torch.randn(o), torch.randn(CONV_BATCH, c, size, size)
        compressed = torch.ops.sparse24.compress(ops.conv_weight_to_matrix(weight))
        x_last, weight_last, pad = (
            x.contiguous(memory_format=last),
            weight.contiguous(memory_format=last),
            r // 2,
        )

        def dense(x: Tensor, w: Tensor, b: Tensor = bias, pad: int = pad) -> Tensor:
            return F.conv2d(x, w, b, 1, pad)

        def sparse(x: Tensor, c=compressed, b: Tensor = bias, r: int = r, pad: int = pad) -> Tensor:
            return torch.ops.sparse24.conv2d(x, *c, b, (r, r), (1, 1), (pad, pad))

        with torch.no_grad():
            times = interleaved_medians(
                [
                    lambda x=x, w=weight: dense(x, w),
                    lambda x=x_last, w=weight_last: dense(x, w),
                    prepacked(weight, bias, x, pad),
                    prepacked(weight, bias, x_last, pad),
                    lambda x=x: sparse(x),
                    lambda x=x_last: sparse(x),
                ],
                2 * seconds,
            )
        torch_best, packed_best, ours = min(times[:2]), min(times[2:4]), min(times[4:])
        work = 2.0 * CONV_BATCH * size * size * o * c * r * r
        rows.append(
            [f"{c} -> {o}, {size}x{size}, {r}x{r}"]
            + [tera(work, t) for t in (torch_best, packed_best, ours)]
            + ratios(ours, torch_best, packed_best)
        )
    caption = (
        f"Convolution fp32, batch {CONV_BATCH}, stride 1. Each column is the better of contiguous and "
        "channels_last inputs."
    )
    return Table("conv", caption, rows)


def bench_overhead(seconds: float) -> Table:
    """Time of a module call beyond its kernel, on a layer too small for anything else to count."""
    dense = nn.Linear(8, 8)
    torch.ops.sparse24.prune_(dense.weight.data, 2, 4, 1)
    module, x = SparseLinear.from_dense(dense), torch.randn(1, 8)
    module(x)
    panels = ops._panels_of(module.values, module.indices, 1)
    assert panels is not None
    y = torch.empty(1, 8)
    args = (panels.address, x.data_ptr(), module.bias.data_ptr(), y.data_ptr(), 1, 8, 8, 8, 0, 1)
    calls, repeat = [lambda: ops._C.linear(*args), lambda: module(x), lambda: dense(x)], 200

    def loop(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [call() for _ in range(repeat)]

    with torch.no_grad():
        kernel, sparse, stock = (
            t / repeat * 1e6 for t in interleaved_medians([loop(c) for c in calls], seconds)
        )
    rows = [["call, Linear(8, 8), one token", "us"], ["kernel from Python", f"{kernel:.1f}"]]
    rows += [["SparseLinear", f"{sparse:.1f}"], ["SparseLinear beyond its kernel", f"{sparse - kernel:.1f}"]]
    rows += [["nn.Linear", f"{stock:.1f}"]]
    return Table("overhead", "Cost of a call in eager mode.", rows)


def bench_kernels(threads: int) -> list[Table]:
    """Builds and runs bench/kernels_bench.cpp."""
    with tempfile.TemporaryDirectory() as build:
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            build,
            "-DCMAKE_BUILD_TYPE=Release",
            "-DSPARSE24_BENCH=ON",
        ]
        for command in (configure, ["cmake", "--build", build, "--target", "kernels_bench", "-j2"]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        run = subprocess.run(
            [f"{build}/kernels_bench", str(threads)], check=True, capture_output=True, text=True
        )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    masks = [["4096 x 4096 fp32", "ms", "GB/s", "x plain read"]]
    masks += [
        [each["name"], f"{each['ms']:.2f}", f"{each['gb_s']:.1f}", f"{each['x_read']:.2f}"]
        for each in lines
        if each["table"] == "masks"
    ]
    peak = [["out, in", "tokens", "2:4 GF/s", "share of twice the multiply-add peak"]]
    peak += [
        [f"{each['m']}, {each['k']}", str(each["n"]), f"{each['gflops']:.0f}", f"{each['of_peak']:.0%}"]
        for each in lines
        if each["table"] == "linear"
    ]
    decode = [["out, in", "GB/s", "share of a plain read"]]
    decode += [
        [f"{each['m']}, {each['k']}", f"{each['gb_s']:.1f}", f"{each['of_read']:.0%}"]
        for each in lines
        if each["table"] == "decode"
    ]
    return [
        Table("masks", "Masks in C++ against a plain read (four streams) of the same array.", masks),
        Table("peak", "The large-product kernel against the multiply-add peak, measured in turns.", peak),
        Table("bandwidth", "The decode kernel, one token, cold weights, against a plain read.", decode),
    ]


def insert(path: Path, table: Table, command: str, machine: Machine) -> None:
    """Replace the text between the markers of ``table`` in a Markdown file, where it has them."""
    text = path.read_text()
    begin, end = f"<!-- table:{table.name} -->", f"<!-- /table:{table.name} -->"
    new = f"{begin}\n{table.markdown()}\n\nBy `{command}` on {machine}.\n{end}"
    path.write_text(re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: new, text, flags=re.DOTALL))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="update README.md and bench/RESULTS.md")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each row")
    parser.add_argument("--only", choices=["linear", "decode", "conv", "overhead", "kernels"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(24)
    machine, suffix = Machine.here(), f"-{options.threads}"
    benchmarks: dict[str, Callable[[], list[Table]]] = {
        "linear": lambda: [bench_linear(options.threads, options.seconds)],
        "decode": lambda: [bench_decode(options.seconds)],
        "conv": lambda: [bench_conv(options.seconds)],
        "overhead": lambda: [bench_overhead(options.seconds)],
        "kernels": lambda: bench_kernels(options.threads),
    }
    for name, benchmark in benchmarks.items():
        if options.only not in (None, name):
            continue
        command = f"python bench/run.py --only {name} --threads {options.threads}"
        for table in benchmark():
            print(f"\n{table.caption}\n{format_table(table.rows)}\n{machine}", flush=True)
            if options.write:
                named = dataclasses.replace(table, name=table.name + suffix)
                insert(ROOT / "README.md", named, command, machine)
                insert(ROOT / "bench" / "RESULTS.md", named, command, machine)


if __name__ == "__main__":
    sys.exit(main())
