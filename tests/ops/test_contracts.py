"""What torch asks of an operator: opcheck, compile, export, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from reference import (
    TOLERANCE,
    assert_matches,
    conv2d_reference,
    linear_reference,
    prune_layers,
    relative_error,
)
from sparse24 import SparseConv2d, SparseLinear

from .operands import DTYPES, compressed_conv, compressed_linear, pruned, sparse

pytestmark = pytest.mark.usefixtures("seeded")


def linear_arguments() -> tuple[Any, ...]:
    _, values, indices, bias = compressed_linear(6, 20)
    return torch.randn(3, 20), values, indices, bias, "relu"


def conv_arguments() -> tuple[Any, ...]:
    _, values, indices, bias = compressed_conv(6, 5, 3, 3)
    return torch.randn(2, 10, 7, 7), values, indices, bias, [3, 3], [2, 1], [1, 1], [1, 1], 2


def int8_arguments(*shape: int) -> tuple[Any, ...]:
    """An int8 input, a compressed int8 weight [8, 40], a scale and a bias, to float16."""
    weight = pruned(8, 40).mul(20).to(torch.int8)
    input = torch.randint(-9, 10, shape, dtype=torch.int8)
    return (input, *sparse.compress(weight), torch.rand(8), torch.randn(8), torch.float16)


def int8_weight_arguments(*shape: int) -> tuple[Any, ...]:
    """A floating input, a compressed int8 weight [8, 40] and its scale, and dynamic scales of the input."""
    weight = pruned(8, 40).mul(20).to(torch.int8)
    return torch.randn(*shape), *sparse.compress(weight), torch.rand(8), torch.tensor(0.0), torch.randn(8)


def float8_arguments(*shape: int) -> tuple[Any, ...]:
    """A floating input, a compressed float8 weight [8, 40] and its scale."""
    values, indices = sparse.compress(pruned(8, 40))
    return (
        torch.randn(*shape), values.to(torch.float8_e4m3fn), indices, torch.rand(8), torch.randn(8), "relu",
    )  # fmt: skip


def float8_conv_arguments(*shape: int) -> tuple[Any, ...]:
    """As float8_arguments, the weight being that of a 1 x 1 kernel."""
    *operands, activation = float8_arguments(*shape)
    return (*operands, (1, 1), (1, 1), (0, 0), (1, 1), 1, activation)


def chained_arguments(input: torch.Tensor, *window: Any) -> tuple[Any, ...]:
    """An int8 input with a static scale, a weight [8, 40], and the scale of the output."""
    _, values, indices, scale, _, bias = int8_weight_arguments(1)
    static, handed_on = torch.tensor(0.1), torch.tensor(0.2)
    return (input, values, indices, scale, static, bias, *window, "relu", handed_on, torch.float32)


OPERATORS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "nm_mask": lambda: (torch.randn(4, 10), 2, 4, 1),
    "prune_": lambda: (torch.randn(4, 10), 2, 4, 0),
    "transposable_mask": lambda: (torch.randn(8, 12),),
    "compress": lambda: (pruned(4, 10),),
    "decompress": lambda: sparse.compress(pruned(4, 10)),
    "linear": linear_arguments,
    "conv2d": conv_arguments,
    "scaled_linear": lambda: int8_arguments(3, 40),
    "scaled_conv2d": lambda: (*int8_arguments(2, 40, 4, 4), (1, 1)),
    "int8_linear": lambda: (*int8_weight_arguments(3, 40), "gelu"),
    "float8_linear": lambda: float8_arguments(3, 40),
    "float8_conv2d": lambda: float8_conv_arguments(2, 40, 4, 4),
    "int8_conv2d": lambda: (*int8_weight_arguments(2, 40, 4, 4), (1, 1)),
    "int8_linear_chained": lambda: chained_arguments(torch.ones(3, 40, dtype=torch.int8)),
    "int8_conv2d_chained": lambda: chained_arguments(
        torch.ones(2, 40, 4, 4, dtype=torch.int8), [1, 1, 1, 1, 0, 0, 1, 1, 1]
    ),
    "quantize_per_token": lambda: (torch.randn(2, 3, 10),),
}


#: torch compares tensors before and after by multiplying them, which float8 cannot be.
WITHOUT_PRODUCTS = ("test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("name", list(OPERATORS))
def test_opcheck(name: str) -> None:
    checks = {"test_utils": WITHOUT_PRODUCTS} if name.startswith("float8") else {}
    results = torch.library.opcheck(getattr(sparse, name).default, OPERATORS[name](), **checks)
    assert set(results.values()) == {"SUCCESS"}


def test_every_operator_is_checked() -> None:
    registered = {
        n.removeprefix("sparse24::") for n in torch._C._dispatch_get_all_op_names() if "sparse24::" in n
    }
    assert registered == set(OPERATORS)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_fake_convolution_has_the_strides_of_the_real_one(channels_last: bool) -> None:
    input, *rest = conv_arguments()
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = sparse.conv2d(mode.from_tensor(input), *rest)
    real = sparse.conv2d(input, *rest)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2, padding="same"),
        nn.Flatten(),
        nn.Linear(8 * 20, 9),
    )
    return prune_layers(model).eval()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_takes_the_whole_graph(backend: str) -> None:
    model = network()
    x = torch.randn(3, 6, 4, 5)
    expected = model(x)
    assert not sparse24.to_sparse(model, when="always").left
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(4):
        with torch.no_grad():
            assert_matches(compiled(x), expected)
    with torch.no_grad():
        assert_matches(model(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_gradients_are_the_eager_ones() -> None:
    model = prune_layers(nn.Sequential(nn.Linear(20, 8), nn.GELU(), nn.Linear(8, 4)))
    sparse24.to_sparse(model, when="always")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        x = torch.linspace(-1, 1, 60).view(3, 20).requires_grad_()
        run(x).square().sum().backward()
        gradients.append(x.grad)
    assert_matches(gradients[1], gradients[0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_keeps_the_operators(tmp_path: Any) -> None:
    model = network()
    x = torch.randn(3, 6, 4, 5)
    expected = model(x)
    sparse24.to_sparse(model, when="always")
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    targets = [str(node.target) for node in loaded.graph.nodes if node.op == "call_function"]
    assert targets.count("sparse24.conv2d.default") == 2
    assert targets.count("sparse24.linear.default") == 1
    run = loaded.module()
    for rows in (3, 1, 2):
        assert_matches(run(x[:rows]), expected[:rows])
    with pytest.raises(AssertionError, match=r"batch|shape|Guard"):
        run(torch.randn(3, 5, 4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_autocast_computes_in_the_weights_dtype(weight_dtype: torch.dtype, dtype: torch.dtype) -> None:
    linear = SparseLinear.from_dense(prune_layers(nn.Linear(20, 6, dtype=weight_dtype)))
    conv = SparseConv2d.from_dense(prune_layers(nn.Conv2d(6, 4, 3, dtype=weight_dtype)))
    for input_dtype in (torch.float32, dtype):
        x, image = torch.randn(3, 20).to(input_dtype), torch.randn(2, 6, 5, 5).to(input_dtype)
        with torch.autocast("cpu", dtype):
            outputs = linear(x), conv(image)
        expected = (
            linear_reference(x.to(weight_dtype), linear.weight, linear.bias),
            conv2d_reference(image.to(weight_dtype), conv.weight, conv.bias),
        )
        for output, reference in zip(outputs, expected, strict=True):
            assert output.dtype == dtype
            assert relative_error(output, reference) <= TOLERANCE[dtype] + TOLERANCE[weight_dtype]
    with torch.autocast("cpu", enabled=False):
        assert linear(torch.randn(3, 20).to(weight_dtype)).dtype == weight_dtype
