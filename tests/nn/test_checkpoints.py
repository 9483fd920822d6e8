"""State dicts of compressed layers: what they hold, and which are refused."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from sparse24 import SparseConv2d, SparseLinear

from .layers import assert_same_state, exact_state, pruned_conv, pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")


def test_state_dict_holds_the_compressed_form_only() -> None:
    linear = SparseLinear.from_dense(pruned_linear(20, 6))
    state = linear.state_dict()
    shapes = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}
    assert shapes == {
        "values": ((6, 12), torch.float32),
        "indices": ((6, 3), torch.uint8),
        "bias": ((6,), torch.float32),
    }
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    twin = SparseLinear(20, 6)
    twin.load_state_dict(torch.load(saved, weights_only=True))
    x = torch.randn(3, 20)
    assert torch.equal(twin(x), linear(x))


def damage_order(state: dict[str, torch.Tensor]) -> None:
    state["indices"][2, 1] = 0b1110_0101  # the lower group of the byte keeps column 1 twice


def damage_shape(state: dict[str, torch.Tensor]) -> None:
    state["values"] = state["values"][:, :-4]


def damage_dtype(state: dict[str, torch.Tensor]) -> None:
    state["indices"] = state["indices"].long()


def damage_pair(state: dict[str, torch.Tensor]) -> None:
    del state["indices"]


def damage_padding(state: dict[str, torch.Tensor]) -> None:
    state["values"][1, -1] = 3.0


def make_dense(state: dict[str, torch.Tensor]) -> None:
    state.clear()
    state["weight"] = torch.randn(6, 20)
    state["bias"] = torch.randn(6)


DAMAGES = [
    (damage_order, r"layer\.indices are damaged: .* must increase, .* row 2, group 2"),
    (damage_shape, r"layer\.values has shape \(6, 8\) in the checkpoint, \(6, 12\) here"),
    (damage_dtype, r"layer\.indices must be uint8, not torch\.int64"),
    (damage_pair, r"values and indices belong together"),
    (damage_padding, r"layer\.values holds a non-zero in row 1, column 2[0-3], which is padding"),
    (make_dense, r"layer\.weight: at most two of every four .* row 0, columns 0-3 .* hold more"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_bad_checkpoints_are_refused_and_change_nothing(damage: object, message: str) -> None:
    model = nn.ModuleDict({"layer": SparseLinear.from_dense(pruned_linear(20, 6))})
    before = exact_state(model)
    state = {key: tensor.clone() for key, tensor in model["layer"].state_dict().items()}
    state["bias"] += 1
    damage(state)
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict({f"layer.{key}": tensor for key, tensor in state.items()})
    assert_same_state(model, before)


def test_a_missing_bias_is_torchs_own_error_and_strict_false_forgives_it() -> None:
    linear = SparseLinear.from_dense(pruned_linear(20, 6))
    state = exact_state(SparseLinear.from_dense(pruned_linear(20, 6)))
    bias = linear.bias.clone()
    del state["bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        linear.load_state_dict(state)
    assert linear.load_state_dict(state, strict=False).missing_keys == ["bias"]
    assert torch.equal(linear.values, state["values"])
    assert torch.equal(linear.bias, bias)
    linear.load_state_dict({}, strict=False)
    with pytest.raises(RuntimeError, match="row 0, columns 0-3"):
        linear.load_state_dict({"weight": torch.randn(6, 20)}, strict=False)
    assert torch.equal(linear.values, state["values"])


def test_a_conv_refuses_values_in_padded_channels() -> None:
    conv = SparseConv2d.from_dense(pruned_conv(in_channels=3, out_channels=4, kernel_size=2))
    state = exact_state(conv)
    state["indices"][1, 0] |= 0b1100_0000  # second tap keeps its fourth channel, which is padding
    state["values"][1, 3] = 1.0
    with pytest.raises(RuntimeError, match="row 1, column 7, which is padding"):
        conv.load_state_dict(state)


def test_damage_done_behind_the_checks_is_found_at_the_call() -> None:
    linear = SparseLinear.from_dense(pruned_linear(20, 6))
    linear.indices.fill_(0)
    with pytest.raises(ValueError, match="row 0"):
        linear(torch.randn(2, 20))
    weight = linear.weight  # reads nothing
    assert weight.shape == (6, 20)
    for read in (weight.dense, weight.sum, lambda: weight + 1, linear.to_dense):
        with pytest.raises(ValueError, match="row 0"):
            read()
