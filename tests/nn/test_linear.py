"""SparseLinear against the dense layer that it stands in for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference import ACTIVATIONS, assert_matches, linear_reference
from sparse24 import SparseLinear, masks

from .layers import DTYPES, assert_same_state, exact_state, pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")


LINEAR_SHAPES = [(64, 32), (13, 7), (1, 1), (3, 5), (8, 9), (100, 3), (257, 129)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", LINEAR_SHAPES)
def test_linear_matches_the_oracle(shape: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
    dense = pruned_linear(*shape, bias=bias, dtype=dtype)
    sparse = SparseLinear.from_dense(dense)
    x = torch.randn(9, shape[0]).to(dtype)
    with torch.no_grad():
        output = sparse(x)
    assert output.dtype == dtype
    assert_matches(output, linear_reference(x, dense.weight, dense.bias))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_linear_fuses_an_activation(activation: str) -> None:
    dense = pruned_linear(24, 10)
    sparse = SparseLinear(24, 10, activation=activation)
    sparse.load_state_dict(SparseLinear.from_dense(dense).state_dict())
    x = torch.randn(5, 24)
    assert_matches(sparse(x), linear_reference(x, dense.weight, dense.bias, activation))


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3, 4), (0,), (2, 0, 3)])
def test_linear_takes_any_leading_dims(lead: tuple[int, ...]) -> None:
    dense = pruned_linear(20, 6)
    x = torch.randn(*lead, 20)
    assert_matches(SparseLinear.from_dense(dense)(x), linear_reference(x, dense.weight, dense.bias))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_linear_without_inputs_or_outputs(shape: tuple[int, int]) -> None:
    dense = nn.Linear(*shape, bias=False, device="meta").to_empty(device="cpu")
    sparse = SparseLinear.from_dense(dense)
    assert torch.equal(sparse(torch.randn(3, shape[0])), torch.zeros(3, shape[1]))
    assert sparse.weight.shape == (shape[1], shape[0])


def test_linear_takes_strided_and_broadcast_inputs() -> None:
    dense = pruned_linear(20, 6)
    sparse = SparseLinear.from_dense(dense)
    base = torch.randn(20, 8, 2)
    for x in (base[..., 0].t(), base.permute(2, 1, 0), torch.randn(1, 20).expand(7, 20), base[:, ::2, 1].t()):
        assert_matches(sparse(x), linear_reference(x, dense.weight, dense.bias))


@pytest.mark.parametrize("shape", [(5, 19), (21,), ()])
def test_linear_refuses_an_input_of_another_width(shape: tuple[int, ...]) -> None:
    sparse = SparseLinear(20, 4)
    with pytest.raises(ValueError, match=r"\[\.\.\., 20\]"):
        sparse(torch.randn(shape))


def test_a_new_linear_holds_zeros_and_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    sparse = SparseLinear(10, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sparse(torch.randn(2, 10)), torch.zeros(2, 4))
    assert not any(parameter.requires_grad for parameter in sparse.parameters())


def test_linear_and_dense_convert_into_each_other_exactly() -> None:
    dense = pruned_linear(22, 9).eval()
    with torch.no_grad():
        dense.weight[0, :8] = 0
    sparse = SparseLinear.from_dense(dense)
    back = sparse.to_dense()
    assert type(back) is nn.Linear
    assert not sparse.training
    assert not back.training
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)
    assert torch.equal(sparse.weight, dense.weight)
    assert back.weight.requires_grad


def test_from_dense_copies_the_bias() -> None:
    dense = pruned_linear(8, 4)
    sparse = SparseLinear.from_dense(dense)
    with torch.no_grad():
        dense.bias.fill_(7)
    assert not (sparse.bias == 7).any()


def test_from_dense_casts() -> None:
    dense = pruned_linear(16, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"float32, float16, bfloat16, not torch\.float64"):
        SparseLinear.from_dense(dense)
    sparse = SparseLinear.from_dense(dense, dtype=torch.bfloat16)
    assert sparse.values.dtype == sparse.bias.dtype == torch.bfloat16
    assert torch.equal(sparse.weight, dense.weight.to(torch.bfloat16))


def test_from_dense_names_the_first_group_that_is_not_sparse() -> None:
    dense = pruned_linear(14, 6)
    with torch.no_grad():
        dense.weight[3, 8:11] = 1
    with pytest.raises(ValueError, match=r"row 3, columns 8-11 .*\(6, 14\).*Sparsifier\(model\)\.prune\(\)"):
        SparseLinear.from_dense(dense)


def test_linear_classes_refuse_other_modules_and_missing_data() -> None:
    with pytest.raises(TypeError, match=r"nn\.Linear, not Conv2d"):
        SparseLinear.from_dense(nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match="meta"):
        SparseLinear.from_dense(nn.Linear(4, 4, device="meta"))
    with pytest.raises(ValueError, match=r"\[out_features, in_features\], not \(8,\)"):
        SparseLinear.from_weight(torch.zeros(8))
    with pytest.raises(ValueError, match="'swish'"):
        SparseLinear(4, 4, activation="swish")
    with pytest.raises(ValueError, match=r"relu.*nn\.Linear cannot hold"):
        SparseLinear(4, 4, activation="relu").to_dense()


def test_an_assigned_weight_is_the_layers() -> None:
    dense = pruned_linear(20, 6)
    sparse = SparseLinear.from_dense(dense)
    x, held = torch.randn(3, 20), sparse.values
    sparse.weight = nn.Parameter(torch.zeros(6, 20))
    assert torch.equal(sparse(x), dense.bias.expand(3, 6))
    assert not sparse.values.any()
    other = pruned_linear(20, 6).weight
    sparse.weight = other
    assert torch.equal(sparse.weight, other)
    assert_matches(sparse(x), linear_reference(x, other, dense.bias))
    sparse.weight = SparseLinear.from_dense(dense).weight
    assert_matches(sparse(x), linear_reference(x, dense.weight, dense.bias))
    assert sparse.values is held
    assert [*sparse._parameters, *sparse._buffers] == ["values", "bias", "indices"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: nn.Parameter(torch.ones(6, 20)), ValueError, r"row 0, columns 0-3 .*sparse24\.to_dense"),
        (lambda: torch.zeros(6, 24), ValueError, r"\(6, 20\) cannot become \(6, 24\): call to_dense\(\)"),
        (lambda: torch.zeros(20, 6).t()[:5], ValueError, r"cannot become \(5, 20\)"),
        (lambda: None, TypeError, "must be a tensor, not NoneType"),
    ],
    ids=["dense", "wide", "rows", "none"],
)
def test_a_weight_that_cannot_be_assigned_changes_nothing(
    wrong: Callable[[], object], error: type[Exception], message: str
) -> None:
    sparse = SparseLinear.from_dense(pruned_linear(20, 6))
    x, state = torch.randn(3, 20), exact_state(sparse)
    before, addresses = sparse(x), [tensor.data_ptr() for tensor in sparse.state_dict().values()]
    with pytest.raises(error, match=message):
        sparse.weight = wrong()
    assert_same_state(sparse, state)
    assert [tensor.data_ptr() for tensor in sparse.state_dict().values()] == addresses
    assert torch.equal(sparse(x), before)


def test_linear_repr_names_what_is_not_the_default() -> None:
    assert repr(SparseLinear(8, 4)) == "SparseLinear(in_features=8, out_features=4)"
    text = repr(SparseLinear(8, 4, bias=False, dtype=torch.float16, activation="gelu"))
    assert "bias=False, activation='gelu', dtype=torch.float16" in text


def test_masks_agree_that_the_layers_are_sparse() -> None:
    linear = SparseLinear.from_dense(pruned_linear(32, 8))
    assert masks.is_sparse24(linear.weight)
    assert F.linear(torch.ones(1, 32), linear.weight, linear.bias).shape == (1, 8)
