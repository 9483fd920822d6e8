"""The explanations of what a call does, and why."""

from __future__ import annotations

import pytest
import torch

import sparse24
from emulated import HALF
from reference import ACTIVATIONS
from sparse24 import SparseConv2d, SparseConv3d, SparseLinear, ops
from sparse24.choose import gpu
from sparse24.ops.cuda.cusparselt import GPU

A100 = GPU(80, 108, 801)


def test_explain_on_a_cpu() -> None:
    said = sparse24.explain(SparseLinear(8, 8), (3, 8))
    assert said.startswith(f"sparse: CPU kernels for {ops.cpu_isa()}; by rule, not measured: 8x8 is tiny")
    with pytest.raises(ValueError, match=r"input must be \[..., 8\], not \(3, 9\)"):
        sparse24.explain(SparseLinear(8, 8), (3, 9))
    assert "meta has no sparse kernels" in sparse24.explain(SparseLinear(8, 8, device="meta"), (3, 8))
    with pytest.raises(TypeError, match="not Linear"):
        sparse24.explain(torch.nn.Linear(8, 8), (3, 8))  # type: ignore[arg-type]


def test_explanations_name_what_a_call_does_besides_the_product() -> None:
    layer = SparseLinear(50, 40, dtype=HALF, activation="gelu")
    said = gpu.describe_route(layer, (3, 43, 50), A100, True)
    assert said.startswith("sparse: cuSPARSELt 0.8.1, algorithm 0; ")
    for part in (
        "gelu after the product, in torch",
        "output of 40 rows computed as 48",
        "input of 50 columns padded to 64",
        "129 tokens are no multiple of 8: the last 8 in a second launch",
    ):
        assert part in said
    assert "through a weight expanded for the call: 1 tokens" in gpu.describe_route(layer, (50,), A100, True)
    sparse24.keep_dense(layer)
    said = gpu.describe_route(layer, (2, 50), A100, True)
    assert said == "dense, through a kept copy: 2 tokens are fewer than 8: a sparse product was seen to lose"
    sparse24.keep_dense(layer, keep=False)
    with pytest.raises(ValueError, match=r"input must be \[..., 50\], not \(3, 51\)"):
        gpu.describe_route(layer, (3, 51), A100, True)


@pytest.mark.usefixtures("patches_gain")
def test_grouped_convolutions_are_explained() -> None:
    grouped = SparseConv2d(16, 24, 3, groups=2, dtype=HALF)
    assert "no legal size; nearest: 16" in gpu.describe_route(grouped, (2, 16, 8, 8), A100, True)


def test_volumes_are_explained() -> None:
    layer = SparseConv3d(12, 32, 3, padding=1, dtype=HALF)
    said = sparse24.explain(layer, (2, 12, 4, 6, 8))
    assert said.startswith(f"sparse: CPU kernels for {ops.cpu_isa()}; ")
    with pytest.raises(ValueError, match=r"input must be \[N, 12, D, H, W\], not \(2, 11, 4, 6, 8\)"):
        sparse24.explain(layer, (2, 11, 4, 6, 8))
    with pytest.raises(ValueError, match=r"input must be \[N, 12, D, H, W\], not \(12, 8, 8\)"):
        sparse24.explain(layer, (12, 8, 8))
    untuned = gpu.describe_route(layer, (2, 12, 4, 6, 8), A100, True)
    assert untuned.startswith("dense, through a weight expanded for the call: a 3 x 3 convolution copies its")


@pytest.mark.usefixtures("patches_gain")
def test_explanations_name_the_copies_of_volumes() -> None:
    layer = SparseConv3d(12, 32, (3, 1, 1), padding=(1, 0, 0), stride=(1, 2, 2), dtype=HALF)
    said = gpu.describe_route(layer, (2, 12, 4, 8, 8), A100, False)
    assert said.startswith("sparse: cuSPARSELt 0.8.1, algorithm 0; ")
    assert "input and output are copied: give a channels_last_3d input" in said
    assert "the planes under 3 taps are stacked in a copy" in said
    flat = SparseConv3d(16, 32, (3, 1, 1), padding=(1, 0, 0), dtype=HALF)
    assert "stacked" not in gpu.describe_route(flat, (2, 16, 4, 8, 8), A100, True)


def test_explanations_of_convolutions() -> None:
    layer = SparseConv2d(16, 32, 3, padding=1, dtype=HALF)
    untuned = gpu.describe_route(layer, (2, 16, 8, 8), A100, True)
    assert untuned.startswith("dense, through a weight expanded for the call: a 3 x 3 convolution copies its")
    pointwise = SparseConv2d(16, 32, 1, dtype=HALF)
    assert gpu.describe_route(pointwise, (2, 16, 8, 8), A100, True) == "sparse: cuSPARSELt 0.8.1, algorithm 0"
    assert "input and output are copied" in gpu.describe_route(pointwise, (2, 16, 8, 8), A100, False)
    with pytest.raises(ValueError, match=r"input must be \[N, 16, H, W\]"):
        gpu.describe_route(layer, (2, 15, 8, 8), A100, True)


def test_few_tokens_are_explained() -> None:
    layer = SparseLinear(512, 256, dtype=HALF)
    with_kernels = A100._replace(kernels=True)
    for tokens in (1, 16):
        said = gpu.describe_route(layer, (tokens, 512), with_kernels, True)
        assert said.startswith(f"on the compressed weight: {tokens} tokens are few: a kernel reads the")
    assert gpu.describe_route(layer, (17, 512), with_kernels, True).startswith("sparse: cuSPARSELt")
    sparse24.keep_dense(layer)
    assert "through a kept copy" in gpu.describe_route(layer, (16, 512), with_kernels, True)
    assert "as it lies" in gpu.describe_route(layer, (8, 512), with_kernels, True)


def test_activations_of_the_reference_are_those_of_the_operators() -> None:
    assert tuple(ACTIVATIONS) == ops.ACTIVATIONS
