"""SparseConv2d against the dense layer that it stands in for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reference import ACTIVATIONS, assert_matches, conv2d_reference
from sparse24 import SparseConv2d

from .layers import CONVOLUTIONS, DTYPES, assert_same_state, exact_state, pruned_conv

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conv_matches_the_dense_module(options: dict[str, object], layout: torch.memory_format) -> None:
    dense = pruned_conv(**options)
    sparse = SparseConv2d.from_dense(dense)
    x = torch.randn(2, dense.in_channels, 11, 9).contiguous(memory_format=layout)
    with torch.no_grad():
        output = sparse(x)
        expected = copy.deepcopy(dense).double()(x.double())
    assert_matches(output, expected)
    if dense.padding_mode == "zeros":
        assert output.is_contiguous(memory_format=layout)
    assert torch.equal(sparse.weight, dense.weight)
    assert sparse.weight.is_contiguous()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (3, 2)])
def test_conv_pads_an_even_kernel_as_torch_does(kernel: tuple[int, int]) -> None:
    dense = pruned_conv(in_channels=5, out_channels=4, kernel_size=kernel, padding="same")
    x = torch.randn(1, 5, 6, 7)
    assert_matches(
        SparseConv2d.from_dense(dense)(x), conv2d_reference(x, dense.weight, dense.bias, padding="same")
    )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_conv_takes_unbatched_and_empty_inputs(padding_mode: str) -> None:
    dense = pruned_conv(
        in_channels=8, out_channels=6, kernel_size=3, padding=1, padding_mode=padding_mode
    ).double()
    sparse = SparseConv2d.from_dense(dense, torch.float32)
    x = torch.randn(8, 5, 6)
    assert_matches(sparse(x), dense(x.double()))
    assert sparse(torch.randn(0, 8, 5, 6)).shape == (0, 6, 5, 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_conv_dtypes_and_activations(dtype: torch.dtype, activation: str) -> None:
    dense = pruned_conv(in_channels=12, out_channels=8, kernel_size=3, dtype=dtype)
    sparse = SparseConv2d(12, 8, 3, dtype=dtype, activation=activation)
    sparse.load_state_dict(SparseConv2d.from_dense(dense).state_dict())
    x = torch.randn(2, 12, 6, 6).to(dtype)
    assert_matches(sparse(x), conv2d_reference(x, dense.weight, dense.bias, activation))


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_conv_and_dense_convert_into_each_other_exactly(options: dict[str, object]) -> None:
    dense = pruned_conv(**options).eval()
    back = SparseConv2d.from_dense(dense).to_dense()
    assert type(back) is nn.Conv2d
    assert not back.training
    assert repr(back) == repr(dense)
    assert_same_state(back, exact_state(dense))


@pytest.mark.parametrize("shape", [(2, 7, 5, 5), (8, 8), (1, 1, 8, 5, 5), (5, 5, 8)])
def test_conv_refuses_inputs_of_another_shape(shape: tuple[int, ...]) -> None:
    sparse = SparseConv2d(8, 4, 3)
    with pytest.raises(ValueError, match=r"\[N, 8, H, W\] or \[8, H, W\]"):
        sparse(torch.randn(shape))


def test_conv_names_the_first_group_that_is_not_sparse() -> None:
    dense = pruned_conv(in_channels=6, out_channels=5, kernel_size=(2, 3))
    with torch.no_grad():
        dense.weight[2, :3, 1, 2] = 1
    with pytest.raises(ValueError, match=r"row 2, tap \(1, 2\), channels 0-3 .*\(5, 6, 2, 3\)"):
        SparseConv2d.from_dense(dense)


def test_conv_refuses_what_the_dense_one_refuses() -> None:
    with pytest.raises(ValueError, match="groups"):
        SparseConv2d(8, 4, 3, groups=3)
    with pytest.raises(ValueError, match="strided"):
        SparseConv2d(8, 4, 3, stride=2, padding="same")
    with pytest.raises(TypeError, match=r"nn\.Conv2d, not Linear"):
        SparseConv2d.from_dense(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="meta"):
        SparseConv2d.from_dense(nn.Conv2d(4, 4, 1, device="meta"))
    with pytest.raises(ValueError, match=r"gelu.*nn\.Conv2d cannot hold"):
        SparseConv2d(4, 4, 1, activation="gelu").to_dense()
    with pytest.raises(ValueError, match="padding not negative"):
        SparseConv2d(4, 4, 1, padding=-1)(torch.randn(1, 4, 5, 5))


def test_conv_repr_names_what_is_not_the_default() -> None:
    assert repr(SparseConv2d(8, 4, 3)) == "SparseConv2d(8, 4, kernel_size=(3, 3), stride=(1, 1))"
    text = repr(SparseConv2d(8, 4, 3, padding=1, groups=2, bias=False))
    assert "padding=(1, 1), groups=2, bias=False" in text
