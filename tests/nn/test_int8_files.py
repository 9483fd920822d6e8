"""Files of layers whose storage is int8: loaded into any layer, float8 widened, damage refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from sparse24 import SparseLinear

from .layers import (
    INT8_WAYS as WAYS,
)
from .layers import (
    assert_same_state,
    exact_state,
    pruned_linear,
    saved,
)
from .layers import (
    int8_linear as linear,
)

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("way", WAYS)
def test_a_file_makes_any_layer_int8(way: str) -> None:
    layer = linear(**WAYS[way])
    x = torch.randn(3, 40)
    for fresh in (SparseLinear(40, 24), linear(), linear(activations="static", input_scale=1.0)):
        fresh.load_state_dict(saved(layer))
        assert_same_state(fresh, exact_state(layer))
        assert torch.equal(fresh(x), layer(x))
    with torch.device("meta"):
        empty = SparseLinear(40, 24)
    empty.load_state_dict(saved(layer), assign=True)
    assert torch.equal(empty(x), layer(x))


def test_a_floating_file_makes_an_int8_layer_floating() -> None:
    floating = SparseLinear.from_dense(pruned_linear(40, 24))
    layer = linear(activations="dynamic")
    layer.load_state_dict(saved(floating))
    assert_same_state(layer, exact_state(floating))
    assert layer.values.dtype == torch.float32
    assert not layer.is_int8


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_float8_files_are_dequantized_once_and_say_so(dtype: torch.dtype, scaled: bool) -> None:
    layer = SparseLinear.from_dense(pruned_linear(40, 24))
    state = saved(layer)
    state["values"] = state["values"].to(dtype)
    expected = state["values"].float()
    if scaled:
        state["weight_scale"] = torch.rand(24) + 0.5
        expected = expected * state["weight_scale"].unsqueeze(1)
    fresh = SparseLinear(40, 24, dtype=torch.bfloat16)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.values, expected.bfloat16())
    assert "dequantized from float8" in repr(fresh)
    (row,) = sparse24.to_sparse(nn.Sequential(fresh))
    assert row.reason == f"already sparse, dequantized from {str(dtype).removeprefix('torch.')}"
    assert list(fresh.state_dict()) == ["values", "bias", "indices"]
    fresh.load_state_dict(saved(layer))
    assert "float8" not in repr(fresh)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight_scale": None}, "values are int8, but no weight_scale"),
        ({"weight_scale": torch.ones(23)}, r"weight_scale must be \[24\], not \(23,\)"),
        ({"weight_scale": torch.ones(24).double()}, "weight_scale must be float32"),
        (
            {"weight_scale": torch.ones(24).index_fill(0, torch.tensor(5), torch.nan)},
            "weight_scale of row 5 is nan",
        ),
        ({"weight_scale": -torch.ones(24)}, "weight_scale of row 0 is -1"),
        ({"input_scale": torch.tensor(-2.0)}, "input_scale is -2"),
        ({"input_scale": torch.ones(2)}, r"input_scale must be a scalar \[\]"),
        ({"values": torch.zeros(24, 20, dtype=torch.int16)}, "values are torch.int16"),
        ({"values": torch.zeros(24, 16, dtype=torch.int8)}, "values has shape"),
    ],
    ids=str,
)
def test_damaged_files_are_refused_and_change_nothing(change: dict[str, Any], text: str) -> None:
    state = {**saved(linear(activations="dynamic")), **change}
    state = {key: value for key, value in state.items() if value is not None}
    for layer in (SparseLinear(40, 24), linear()):
        before = exact_state(layer)
        with pytest.raises(RuntimeError, match=text):
            layer.load_state_dict(state)
        assert_same_state(layer, before)
