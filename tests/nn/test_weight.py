"""``layer.weight``: products with it run sparse, anything else sees the dense values, its shape is free."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import SparseConv2d, SparseLinear, is_sparse24
from sparse24.nn.weight import CompressedWeight

from .layers import pruned_conv, pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")

LINEAR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "F.linear": F.linear,
    "matmul": lambda x, w, b: x @ w.t() + b,
    "T": lambda x, w, b: torch.matmul(x, w.T) + b,
    "mT": lambda x, w, b: x.matmul(w.mT) + b,
    "transpose": lambda x, w, b: torch.mm(x, w.transpose(0, 1)) + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    "Tensor.addmm": lambda x, w, b: b.addmm(x, w.t()),
}


class Operators(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


def pair() -> tuple[nn.Linear, SparseLinear, Tensor]:
    dense = pruned_linear(22, 9)
    return dense, SparseLinear.from_dense(dense), torch.randn(5, 22)


@pytest.mark.parametrize("how", list(LINEAR))
def test_products_with_the_weight_run_sparse(how: str) -> None:
    dense, layer, x = pair()
    with torch.no_grad(), Operators() as seen:
        output = LINEAR[how](x, layer.weight, layer.bias)
    assert_matches(output, linear_reference(x, dense.weight, dense.bias))
    assert "sparse24.linear.default" in seen.ran
    assert "sparse24.decompress.default" not in seen.ran


@pytest.fixture
def never_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the dense values fails."""

    def refuse(self: CompressedWeight) -> Tensor:
        raise AssertionError("decompressed")

    monkeypatch.setattr(CompressedWeight, "dense", refuse)


def test_functions_of_torch_run_it_sparse_inside(request: pytest.FixtureRequest) -> None:
    """``F.multi_head_attention_forward`` calls F.linear where no Python function sees it."""
    layers = [SparseLinear.from_dense(pruned_linear(16, 16)) for _ in range(4)]
    x, zeros = torch.randn(3, 2, 16), torch.zeros(16)

    def attend(weights: list[Tensor]) -> Tensor:
        q, k, v, out = weights
        return F.multi_head_attention_forward(
            x, x, x, 16, 2, None, torch.zeros(48), None, None, False, 0.0, out, zeros, training=False,
            use_separate_proj_weight=True, q_proj_weight=q, k_proj_weight=k, v_proj_weight=v,
        )[0]  # fmt: skip

    with torch.no_grad():
        expected = attend([layer.weight.dense() for layer in layers])
        request.getfixturevalue("never_dense")
        output = attend([layer.weight for layer in layers])
    assert torch.allclose(output, expected, atol=1e-6)


@pytest.mark.parametrize("padding", [0, (1, 2), "same", "valid"])
def test_convolutions_with_the_weight_are_right(padding: Any, never_dense: None) -> None:
    dense = pruned_conv(in_channels=12, out_channels=8, kernel_size=3, groups=2)
    layer = SparseConv2d.from_dense(dense)
    x = torch.randn(2, 12, 7, 6)
    with torch.no_grad():
        output = F.conv2d(x, layer.weight, layer.bias, 1, padding, 1, 2)
    assert_matches(output, conv2d_reference(x, dense.weight, dense.bias, padding=padding, groups=2))


def test_anything_else_sees_the_dense_values() -> None:
    dense, layer, x = pair()
    weight = layer.weight
    assert torch.equal(weight + 0, dense.weight)
    assert torch.equal(weight.sum(1), dense.weight.sum(1))
    assert torch.equal(torch.cat([weight, weight]), torch.cat([dense.weight, dense.weight]))
    assert torch.equal(x.new_ones(3, 9) @ weight, x.new_ones(3, 9) @ dense.weight)
    assert torch.allclose(torch.einsum("tk,mk->tm", x, weight), x @ dense.weight.t(), atol=1e-5)
    assert is_sparse24(weight)
    assert np.array_equal(np.asarray(weight.detach()), dense.weight.detach().numpy())
    assert weight.tolist() == dense.weight.tolist()
    assert type(weight * 1) is Tensor
    assert type(weight.clone()) is Tensor
    assert type(weight.to(torch.float64)) is Tensor


def test_copies_are_dense_tensors_of_their_own() -> None:
    dense, layer, _ = pair()
    saved = io.BytesIO()
    torch.save(layer.weight, saved)
    saved.seek(0)
    for twin in (
        copy.deepcopy(layer.weight),
        pickle.loads(pickle.dumps(layer.weight)),
        torch.load(saved, weights_only=True),
    ):
        assert type(twin) is Tensor
        assert torch.equal(twin, dense.weight)
    assert "CompressedWeight(tensor(" in repr(layer.weight)
    assert "meta" in repr(layer.to("meta").weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_shape_dtype_and_device_are_read_without_decompressing(dtype: torch.dtype) -> None:
    layer = SparseConv2d(6, 8, 3, groups=2, dtype=dtype)
    with Operators() as seen:
        weight = layer.weight
        assert weight.shape == (8, 3, 3, 3)
        assert weight.dtype is dtype
        assert weight.device == torch.device("cpu")
        assert (weight.dim(), weight.numel(), weight.size(1), weight.requires_grad) == (4, 216, 3, False)
        assert weight.is_contiguous()
    assert seen.ran == []


def test_gradients_pass_through_products_with_the_weight() -> None:
    _, layer, x = pair()
    layer.requires_grad_()
    assert layer.weight.requires_grad
    x.requires_grad_()
    F.linear(x, layer.weight, layer.bias).square().sum().backward()
    own = x.grad.clone(), layer.values.grad.clone()
    x.grad = layer.values.grad = None
    layer(x).square().sum().backward()
    assert torch.equal(own[0], x.grad)
    assert torch.equal(own[1], layer.values.grad)
    assert float(own[1].abs().sum()) > 0


def test_autocast_and_compile_see_the_same_product() -> None:
    dense, layer, x = pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = F.linear(x, layer.weight, layer.bias)
    assert output.dtype is torch.bfloat16
    assert torch.allclose(output.float(), dense(x), atol=0.05)

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.to(self.layer.weight.dtype), self.layer.weight, self.layer.bias)

    compiled = torch.compile(Reads(), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_matches(compiled(x), linear_reference(x, dense.weight, dense.bias))


def test_operands_that_do_not_fit_get_torchs_own_words() -> None:
    _, layer, _ = pair()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        F.linear(torch.randn(2, 21), layer.weight)
    with pytest.raises(RuntimeError, match="dtype"):
        F.linear(torch.randn(2, 22).double(), layer.weight)


def test_its_memory_cannot_be_reached_past_the_layer() -> None:
    _, layer, _ = pair()
    with pytest.raises(RuntimeError, match=r"no dense memory to point at.*to_dense"):
        layer.weight.data_ptr()
    with pytest.raises(RuntimeError, match=r"no dense memory to share: call share_memory"):
        layer.weight.share_memory_()
    with pytest.raises(RuntimeError, match="weakref"):
        torch.utils.swap_tensors(layer.weight, torch.zeros(9, 22))
    layer.weight.grad = None
    with pytest.raises(BufferError, match="to_dense"):
        torch.from_dlpack(layer.weight)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.detach().numpy()[0, 0] = 1
