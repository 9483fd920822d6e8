"""The registered CUDA operators: their schemas, their stream, tracing for a GPU that is not there."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch._subclasses import FakeTensorMode

from emulated import HALF, EmulatedStream, Emulator, compressed, eight_bit, randn, sparse_weight
from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import SparseConv2d, SparseLinear
from sparse24.ops import scaled
from sparse24.ops.cuda import operators as cuda_ops

from .precision import close


@pytest.mark.parametrize("name", cuda_ops.KERNELS)
def test_cuda_kernels_take_what_their_schema_says(name: str) -> None:
    schema = getattr(torch.ops.sparse24, name).default._schema
    *parameters, stream = inspect.signature(cuda_ops.KERNELS[name]).parameters.values()
    assert stream.name == "stream"
    assert [p.name for p in parameters] == [a.name for a in schema.arguments]
    for parameter, argument in zip(parameters, schema.arguments, strict=True):
        if argument.has_default_value():
            default = argument.default_value
            assert parameter.default == (tuple(default) if isinstance(default, list) else default)
        else:
            assert parameter.default is inspect.Parameter.empty
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sparse24::{name}", "CUDA")


def test_cuda_kernels_run_on_a_stream(
    emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_ops.device_kernels, "BUILT", False)  # the emulator runs no kernels: torch does
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    values, indices = cuda_ops.KERNELS["compress"](weight, stream=stream)
    assert torch.equal(cuda_ops.KERNELS["decompress"](values, indices, stream=stream), weight)
    output = cuda_ops.KERNELS["linear"](x, values, indices, stream=stream)
    assert_matches(output, linear_reference(x, weight))
    image = randn(2, 64, 4, 4)
    pointwise = cuda_ops.KERNELS["conv2d"](image, values, indices, None, (1, 1), stream=stream)
    close(pointwise, conv2d_reference(image, weight.view(32, 64, 1, 1)))
    eight, eights = (
        eight_bit(16, 64, dtype=torch.int8),
        compressed(eight_bit(32, 64, dtype=torch.int8, sparse=True)),
    )
    sums = cuda_ops.KERNELS["scaled_linear"](eight, *eights, None, None, torch.int32, stream=stream)
    assert torch.equal(sums, scaled.scaled_linear_torch(eight, *eights, None, None, torch.int32))
    picture = eight.view(1, 64, 4, 4)
    sums = cuda_ops.KERNELS["scaled_conv2d"](picture, *eights, None, None, torch.int32, (1, 1), stream=stream)
    assert torch.equal(sums, scaled.scaled_conv2d_torch(picture, *eights, None, None, torch.int32, (1, 1)))
    quantized, _ = cuda_ops.KERNELS["quantize_per_token"](x, stream=stream)
    assert torch.equal(quantized, torch.ops.sparse24.quantize_per_token(x)[0])
    assert emulator.launches() == 4


def test_shapes_and_layouts_of_cuda_tensors_are_known_to_compilers() -> None:
    with FakeTensorMode():
        layer = SparseLinear(50, 40, dtype=HALF, device="cuda")
        conv = SparseConv2d(16, 24, 3, stride=2, padding=1, dtype=HALF, device="cuda")
        output = layer(torch.empty(3, 7, 50, dtype=HALF, device="cuda"))
        assert (output.shape, output.device.type, output.is_contiguous()) == ((3, 7, 40), "cuda", True)
        for layout in (torch.contiguous_format, torch.channels_last):
            image = torch.empty(2, 16, 9, 9, dtype=HALF, device="cuda", memory_format=layout)
            pixels = conv(image)
            assert pixels.shape == (2, 24, 5, 5)
            assert pixels.is_contiguous(memory_format=layout)


def test_a_model_of_cuda_layers_is_exported() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = torch.nn.Sequential(
            SparseLinear(64, 128, dtype=HALF, device="cuda", activation="relu"),
            SparseLinear(128, 32, dtype=HALF, device="cuda"),
        )
        exported = torch.export.export(model, (torch.empty(16, 64, dtype=HALF, device="cuda"),))
    called = [node.target for node in exported.graph.nodes if "sparse24" in str(node.target)]
    assert called == [torch.ops.sparse24.linear.default] * 2
