"""The kernels from C++, without Python: builds and runs bench/kernels_bench.cpp of the checkout."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ...files import FileError
from .papers import checkout
from .table import Setting, Table


def tables(setting: Setting) -> list[Table]:
    found = run(checkout(), setting.threads)
    masks = [["4096 x 4096 fp32", "ms", "GB/s", "x plain read"]]
    masks += [
        [each["name"], f"{each['ms']:.2f}", f"{each['gb_s']:.1f}", f"{each['x_read']:.2f}"]
        for each in found
        if each["table"] == "masks"
    ]
    speed = ["2:4 GF/s", "share of twice the multiply-add peak"]
    peak = [["dtype", "out, in", "tokens", *speed]]
    peak += [
        [each["dtype"], f"{each['m']}, {each['k']}", str(each["n"]), *_speed(each)]
        for each in found
        if each["table"] == "linear"
    ]
    conv = [["dtype", "in -> out, size, kernel", *speed]]
    conv += [
        [each["dtype"], "{in} -> {out}, {size}x{size}, {kernel}x{kernel}".format(**each), *_speed(each)]
        for each in found
        if each["table"] == "conv2d"
    ]
    decode = [["dtype", "out, in", "GB/s", "share of a plain read"]]
    decode += [
        [each["dtype"], f"{each['m']}, {each['k']}", f"{each['gb_s']:.1f}", f"{each['of_read']:.0%}"]
        for each in found
        if each["table"] == "decode"
    ]
    turns = "against float32's multiply-add peak, measured in turns; narrow dtypes may have a higher one"
    return [
        Table("masks", "Masks in C++ against a plain read (four streams) of the same array.", masks),
        Table("peak", f"The large-product kernels {turns}.", peak),
        Table("peak-conv", f"The convolution kernels, batch 8, channels_last, {turns}.", conv),
        Table("bandwidth", "The decode kernels, one token, cold weights, against a plain read.", decode),
    ]


def _speed(each: dict[str, Any]) -> list[str]:
    return [f"{each['gflops']:.0f}", f"{each['of_peak']:.0%}"]


def run(root: Path, threads: int, only: str = "") -> list[dict[str, Any]]:
    """What the program prints; ``only``: one of its tables.

    Raises:
        FileError: it cannot be built here.
    """
    with tempfile.TemporaryDirectory() as build:
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DSPARSE24_BENCH=ON"]
        for command in (
            ["cmake", "-S", str(root), "-B", build, *options],
            ["cmake", "--build", build, "--target", "kernels_bench", "-j2"],
        ):
            made = subprocess.run(command, check=False, capture_output=True, text=True)
            if made.returncode:
                said = (made.stderr or made.stdout).strip().splitlines() or ["no message"]
                raise FileError(
                    f"bench/kernels_bench.cpp cannot be built ({' '.join(command[:2])}): {said[0]}"
                )
        program = [f"{build}/kernels_bench", str(threads), *([only] if only else [])]
        ran = subprocess.run(program, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]
