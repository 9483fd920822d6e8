"""The kernels of every instruction set that runs here, in processes of their own."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("seeded")


MACHINE = platform.machine().lower().replace("aarch64", "arm64")
PRODUCTS = """
import torch, sparse24
from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import ops
from tests.ops.operands import compressed_conv, compressed_linear, sparse
from tests.ops.test_int8 import SCALES, as_multiplied, int8_linear_operands, scale_of
print(ops.cpu_isa())
torch.manual_seed(0)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for rows, columns in ((1, 4), (9, 65), (40, 200)):
        weight, values, indices, bias = compressed_linear(rows, columns, dtype)
        for tokens in (1, 3, 9, 130):
            x = torch.randn(tokens, columns).to(dtype)
            assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))
    for shape, groups in (((6, 7, 3, 3), 1), ((8, 4, 1, 1), 2), ((8, 5, 2, 3), 4)):
        weight, values, indices, bias = compressed_conv(*shape, dtype=dtype)
        x = torch.randn(2, shape[1] * groups, 9, 11).to(dtype)
        for image in (x, x.contiguous(memory_format=torch.channels_last)):
            output = sparse.conv2d(image, values, indices, bias, shape[2:], (1, 2), (1, 0), (1, 1), groups)
            expected = conv2d_reference(image, weight, bias, stride=(1, 2), padding=(1, 0), groups=groups)
            assert_matches(output, expected)
for name in SCALES:
    for tokens in (1, 3, 9, 130):
        weight, values, indices, scale, bias = int8_linear_operands(40, 200, torch.float32)
        x = torch.randn(tokens, 200)
        output = sparse.int8_linear(x, values, indices, scale, scale_of(name), bias)
        assert_matches(output, linear_reference(as_multiplied(x, scale_of(name), [-1]), weight, bias))
weight = torch.randn(12, 40)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    twin = weight.to(dtype, copy=True)
    assert torch.equal(sparse.nm_mask(twin, 2, 4, 1), ops.nm_mask_torch(twin, 2, 4, 1))
    assert torch.equal(sparse.prune_(twin, 2, 4, 1), twin != 0)
assert torch.equal(sparse.transposable_mask(weight), ops.transposable_mask_torch(weight))
"""


ISAS = ["scalar", "neon"] if "arm" in MACHINE else ["scalar", "avx2", "avx512", "avx512_vnni", "amx"]


def run_with_isa(isa: str, code: str = PRODUCTS) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SPARSE24_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_of_this_machine_agrees_with_the_oracle(isa: str) -> None:
    result = run_with_isa(isa)
    if re.search(r"does not run it|is not one of", result.stderr):
        pytest.skip(f"this machine does not run {isa}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == isa


def test_an_unknown_instruction_set_is_refused_with_the_known_ones() -> None:
    result = run_with_isa("mmx", "from sparse24 import ops; ops.cpu_isa()")
    assert result.returncode == 1
    assert re.search(r"ValueError: .*SPARSE24_CPU_ISA=mmx is not one of .*scalar", result.stderr)
