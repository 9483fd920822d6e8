"""Many tokens, or images, of 16 bits or made int8: kernels get them in parts, and memory does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import SparseConv2d, SparseLinear, masks

pytestmark = pytest.mark.usefixtures("seeded")

HALVES = (torch.bfloat16, torch.float16)
#: Arguments of to_int8; None: the weight keeps its dtype.
WAYS: dict[str, dict[str, Any] | None] = {
    "floating": None,
    "int8 weight": {},
    "dynamic": {"activations": "dynamic"},
    "static": {"activations": "static", "input_scale": 0.03},
}
#: A part holds 2 MB of what is widened, so these are several parts.
TOKENS, IMAGES = 2100, 37


def linear(dtype: torch.dtype, way: str) -> SparseLinear:
    dense = nn.Linear(512, 512, dtype=dtype)
    masks.prune_(dense.weight.data)
    layer, options = SparseLinear.from_dense(dense), WAYS[way]
    return layer if options is None else layer.to_int8(**options)


def convolution(dtype: torch.dtype, way: str) -> SparseConv2d:
    dense = nn.Conv2d(16, 24, 3, padding=1, stride=2, dtype=dtype)
    masks.prune_(dense.weight.data)
    layer, options = SparseConv2d.from_dense(dense), WAYS[way]
    return layer if options is None else layer.to_int8(**options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_tokens_get_the_bits_of_a_short_call(dtype: torch.dtype, way: str) -> None:
    layer = linear(dtype, way)
    x = torch.randn(TOKENS, 520).to(dtype)[:, :512]  # rows that do not touch
    output = layer(x)
    assert torch.equal(output, torch.cat([layer(part) for part in x.split(150)]))
    if WAYS[way] is None:
        assert_matches(output, linear_reference(x, layer.weight.to_dense(), layer.bias))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_images_get_the_bits_of_a_short_call(
    dtype: torch.dtype, way: str, layout: torch.memory_format
) -> None:
    layer = convolution(dtype, way)
    x = torch.randn(IMAGES, 16, 40, 40).to(dtype).contiguous(memory_format=layout)
    output = layer(x)
    assert output.is_contiguous(memory_format=layout)
    assert torch.equal(output, torch.cat([layer(part) for part in x.split(3)]))
    if WAYS[way] is None:
        weight = layer.weight.to_dense()
        assert_matches(output, conv2d_reference(x, weight, layer.bias, padding=1, stride=2))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_int8_is_taken_and_handed_on(dtype: torch.dtype) -> None:
    """As :func:`sparse24.quant.chain` lets two layers do."""
    layers: list[tuple[Any, Tensor, int]] = [
        (linear(dtype, "static"), torch.randn(TOKENS, 512), 150),
        (convolution(dtype, "static"), torch.randn(IMAGES, 16, 40, 40), 3),
    ]
    for layer, x, few in layers:
        layer.register_buffer("output_scale", torch.tensor(0.02), persistent=False)
        rounded = (x / 0.03).round().clamp(-127, 127).to(torch.int8)
        for given in (x.to(dtype), rounded):
            output = layer(given)
            assert output.dtype == torch.int8
            assert torch.equal(output, torch.cat([layer(part) for part in given.split(few)]))


def test_damaged_indices_are_named_and_a_bad_shape_is_refused() -> None:
    layer = linear(torch.bfloat16, "floating")
    x = torch.randn(TOKENS, 512).bfloat16()
    layer.indices[7, 3] = 0
    with pytest.raises(ValueError, match="row 7"):
        layer(x)
    with pytest.raises(ValueError, match=r"must be \[\.\.\., 512\], not \(2100, 520\)"):
        layer(torch.randn(TOKENS, 520).bfloat16())


MEMORY = """
import json, sys
import torch
from torch import nn
from sparse24 import SparseLinear, masks
torch.set_num_threads(1)
def read(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) * 1024
dense = nn.Linear(64, 1024, dtype=getattr(torch, sys.argv[1]))
masks.prune_(dense.weight.data)
layer = SparseLinear.from_dense(dense)
if sys.argv[2] == "dynamic":
    layer.to_int8("dynamic")
x = torch.randn(65536, 64).to(dense.weight.dtype)
before = read("VmRSS")
with torch.inference_mode():
    output = layer(x)
print(json.dumps({"output": output.nbytes, "peak": read("VmHWM") - before}))
"""


@pytest.mark.parametrize("way", ["floating", "dynamic"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_long_batch_takes_little_beyond_its_output(dtype: str, way: str) -> None:
    """A float32 copy of the output alone would take twice its 128 MB more."""
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, dtype, way], capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    assert found["peak"] <= 1.5 * found["output"]
