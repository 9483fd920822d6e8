"""The compressed modules against the dense ones they stand in for."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference import (
    ACTIVATIONS,
    TOLERANCE,
    assert_matches,
    conv2d_reference,
    linear_reference,
    prune_layers,
    relative_error,
)
from sparse24 import SparseConv2d, SparseLinear, SparseMultiheadAttention, masks

DTYPES = list(TOLERANCE)
LINEAR_SHAPES = [(64, 32), (13, 7), (1, 1), (3, 5), (8, 9), (100, 3), (257, 129)]
CONVOLUTIONS = [
    {"in_channels": 8, "out_channels": 6, "kernel_size": 3},
    {"in_channels": 8, "out_channels": 6, "kernel_size": 1, "bias": False},
    {"in_channels": 7, "out_channels": 5, "kernel_size": 3, "padding": 1},
    {"in_channels": 12, "out_channels": 9, "kernel_size": (2, 5), "stride": (2, 1), "padding": (1, 2)},
    {"in_channels": 12, "out_channels": 8, "kernel_size": 3, "groups": 2, "dilation": 2, "padding": 2},
    {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6, "padding": 1},
    {"in_channels": 10, "out_channels": 4, "kernel_size": 3, "groups": 2, "padding": "valid"},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 5, "padding": "same", "dilation": (1, 2)},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"in_channels": 9, "out_channels": 4, "kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
]


def pruned_linear(in_features: int, out_features: int, **options: object) -> nn.Linear:
    return prune_layers(nn.Linear(in_features, out_features, **options))


def pruned_conv(**options: object) -> nn.Conv2d:
    return prune_layers(nn.Conv2d(**options))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def exact_state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_same_state(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    now = module.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[key], state[key]) for key in state)


# ---- SparseLinear -----------------------------------------------------------------------------------


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
    with pytest.raises(KeyError, match="weight"):
        SparseLinear(4, 4).weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="'swish'"):
        SparseLinear(4, 4, activation="swish")
    with pytest.raises(ValueError, match=r"relu.*nn\.Linear cannot hold"):
        SparseLinear(4, 4, activation="relu").to_dense()


def test_linear_repr_names_what_is_not_the_default() -> None:
    assert repr(SparseLinear(8, 4)) == "SparseLinear(in_features=8, out_features=4)"
    text = repr(SparseLinear(8, 4, bias=False, dtype=torch.float16, activation="gelu"))
    assert "bias=False, activation='gelu', dtype=torch.float16" in text


# ---- SparseConv2d -----------------------------------------------------------------------------------


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


# ---- what every compressed module can do ------------------------------------------------------------


def compressed_layers() -> list[tuple[nn.Module, torch.Tensor]]:
    linear = SparseLinear.from_dense(pruned_linear(19, 8))
    conv = SparseConv2d.from_dense(pruned_conv(in_channels=6, out_channels=8, kernel_size=3, padding=1))
    attention = SparseMultiheadAttention.from_dense(prune_layers(nn.MultiheadAttention(16, 2)))
    return [
        (linear, torch.randn(4, 19)),
        (conv, torch.randn(2, 6, 5, 5)),
        (SelfAttention(attention), torch.randn(4, 3, 16)),
    ]


class SelfAttention(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_copies_answer_alike_and_share_nothing(which: int) -> None:
    module, x = compressed_layers()[which]
    expected = module(x)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert not module(x).any()
    for twin in copies:
        assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_keep_the_indices(which: int, dtype: torch.dtype) -> None:
    module, x = compressed_layers()[which]
    expected = module(x)
    cast = copy.deepcopy(module).to(dtype)
    output = cast(x.to(dtype))
    assert output.dtype == dtype
    assert (
        relative_error(output, expected)
        < {torch.float32: 1e-9, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    )
    assert all(buffer.dtype == torch.uint8 for buffer in cast.buffers())
    assert relative_error(cast.float()(x), expected) < 2e-2


def test_a_float64_cast_is_refused_at_the_call() -> None:
    module = SparseLinear.from_dense(pruned_linear(8, 4)).double()
    with pytest.raises(TypeError, match="float64"):
        module(torch.randn(2, 8, dtype=torch.float64))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_meta_modules_have_shapes_and_come_to_life(which: int) -> None:
    module, x = compressed_layers()[which]
    expected = module(x)
    twin = copy.deepcopy(module).to("meta")
    assert twin(x.to("meta")).shape == expected.shape
    twin.to_empty(device="cpu")
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), expected)
    twin.to("meta").load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(twin(x), expected)


def test_meta_construction_then_reset() -> None:
    with torch.device("meta"):
        module = SparseLinear(12, 4)
    assert module.values.is_meta
    module.to_empty(device="cpu").reset_parameters()
    assert not module(torch.randn(2, 12)).any()


def test_the_default_dtype_and_device_are_honoured() -> None:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert SparseLinear(8, 4).values.dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(previous)


# ---- checkpoints ------------------------------------------------------------------------------------


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
    (make_dense, r"layer\.weight is dense, .* load the checkpoint before to_sparse"),
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
    with pytest.raises(RuntimeError, match="weight is dense"):
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
    with pytest.raises(ValueError, match="row 0"):
        _ = linear.weight


# ---- gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_linear_passes_gradients_on(activation: str) -> None:
    dense = pruned_linear(21, 6)
    sparse = SparseLinear(21, 6, activation=activation)
    sparse.load_state_dict(SparseLinear.from_dense(dense).state_dict())
    sparse.requires_grad_()
    x = torch.randn(2, 5, 21, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    upstream = torch.randn(2, 5, 6)
    sparse(x).backward(upstream)
    reference = copy.deepcopy(dense).double()
    ACTIVATIONS[activation](reference(twin)).backward(upstream.double())
    assert_matches(x.grad, twin.grad)
    assert_matches(sparse.bias.grad, reference.bias.grad)
    on_kept = SparseLinear.from_dense(dense)
    on_kept.values.data.copy_(sparse.values.grad)
    kept = dense.weight != 0
    assert relative_error(on_kept.weight[kept], reference.weight.grad[kept]) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "options", CONVOLUTIONS[:7], ids=lambda options: "-".join(map(str, options.values()))
)
def test_conv_passes_gradients_on(options: dict[str, object]) -> None:
    dense = pruned_conv(**options)
    sparse = SparseConv2d.from_dense(dense).requires_grad_()
    x = torch.randn(2, dense.in_channels, 11, 9, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    sparse(x).square().sum().backward()
    reference = copy.deepcopy(dense).double()
    reference(twin).square().sum().backward()
    assert relative_error(x.grad, twin.grad) <= 2 * TOLERANCE[torch.float32]
    if dense.bias is not None:
        assert relative_error(sparse.bias.grad, reference.bias.grad) <= 2 * TOLERANCE[torch.float32]
    on_kept = SparseConv2d.from_dense(dense)
    on_kept.values.data.copy_(sparse.values.grad)
    kept = dense.weight != 0
    assert relative_error(on_kept.weight[kept], reference.weight.grad[kept]) <= 2 * TOLERANCE[torch.float32]


def test_a_frozen_layer_records_no_graph() -> None:
    linear, x = compressed_layers()[0]
    assert linear(x).grad_fn is None
    with torch.no_grad():
        assert linear(x.clone().requires_grad_()).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(linear(x), linear(x))


def test_gradients_pass_through_autocast() -> None:
    linear, x = compressed_layers()[0]
    x = x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        linear(x).sum().backward()
    expected = linear.weight.sum(0).expand_as(x)
    assert x.grad.dtype == torch.float32
    assert relative_error(x.grad, expected) < 1e-2


def test_second_derivatives_are_refused() -> None:
    linear, x = compressed_layers()[0]
    x = x.requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---- SparseMultiheadAttention -----------------------------------------------------------------------

ATTENTIONS = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"kdim": 12, "vdim": 20},
    {"add_bias_kv": True},
    {"add_zero_attn": True, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True, "kdim": 12, "vdim": 20, "bias": False},
]
BATCH, TARGETS, SOURCES = 3, 5, 7


def attention_pair(**options: object) -> tuple[nn.MultiheadAttention, SparseMultiheadAttention]:
    dense = prune_layers(nn.MultiheadAttention(16, 4, **options)).eval()
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return dense, SparseMultiheadAttention.from_dense(dense)


def attention_inputs(dense: nn.MultiheadAttention) -> list[torch.Tensor]:
    lead = [(BATCH, TARGETS), (BATCH, SOURCES), (BATCH, SOURCES)]
    if not dense.batch_first:
        lead = [pair[::-1] for pair in lead]
    sizes = (dense.embed_dim, dense.kdim, dense.vdim)
    return [torch.randn(*pair, size) for pair, size in zip(lead, sizes, strict=True)]


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.arange(SOURCES) > torch.tensor([[6], [4], [2]])},
    "bool": {"attn_mask": torch.ones(TARGETS, SOURCES, dtype=torch.bool).triu(2)},
    "float": {"attn_mask": torch.linspace(-1, 1, TARGETS * SOURCES).view(TARGETS, SOURCES)},
    "per head": {
        "attn_mask": torch.linspace(-1, 1, BATCH * 4 * TARGETS * SOURCES).view(-1, TARGETS, SOURCES)
    },
    "both": {
        "key_padding_mask": torch.arange(SOURCES) > torch.tensor([[6], [4], [2]]),
        "attn_mask": torch.ones(TARGETS, SOURCES, dtype=torch.bool).triu(3),
    },
}


@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("options", ATTENTIONS, ids=lambda options: "-".join(options) or "default")
def test_attention_matches_the_dense_module(options: dict[str, object], mask: str) -> None:
    dense, sparse = attention_pair(**options)
    inputs = attention_inputs(dense)
    for flags in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        output, weights = sparse(*inputs, **MASKS[mask], **flags)
        expected, expected_weights = dense(*inputs, **MASKS[mask], **flags)
        assert_matches(output, expected)
        assert (weights is None) == (expected_weights is None)
        if weights is not None:
            assert_matches(weights, expected_weights)


@pytest.mark.parametrize("options", ATTENTIONS, ids=lambda options: "-".join(options) or "default")
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_takes_unbatched_inputs(options: dict[str, object], need_weights: bool) -> None:
    dense, sparse = attention_pair(**options)
    inputs = [x[0] if dense.batch_first else x[:, 0] for x in attention_inputs(dense)]
    padding = torch.arange(SOURCES) > 4
    output, weights = sparse(*inputs, key_padding_mask=padding, need_weights=need_weights)
    expected, expected_weights = dense(*inputs, key_padding_mask=padding, need_weights=need_weights)
    assert_matches(output, expected)
    assert weights is None or torch.allclose(weights, expected_weights, atol=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", ATTENTIONS[:3], ids=lambda options: "-".join(options) or "default")
def test_attention_is_causal_where_told(options: dict[str, object], need_weights: bool) -> None:
    dense, sparse = attention_pair(**options)
    x = attention_inputs(dense)[0]
    length = x.shape[1 if dense.batch_first else 0]
    causal = nn.Transformer.generate_square_subsequent_mask(length)
    output, _ = sparse(x, x, x, attn_mask=causal, is_causal=True, need_weights=need_weights)
    expected, _ = dense(x, x, x, attn_mask=causal, need_weights=need_weights)
    assert_matches(output, expected)


@pytest.mark.parametrize("options", ATTENTIONS, ids=lambda options: "-".join(options) or "default")
def test_attention_and_dense_convert_into_each_other_exactly(options: dict[str, object]) -> None:
    dense, sparse = attention_pair(**options)
    back = sparse.to_dense()
    assert type(back) is nn.MultiheadAttention
    assert not back.training
    assert_same_state(back, exact_state(dense))
    twin = SparseMultiheadAttention(16, 4, **options)
    twin.load_state_dict(sparse.state_dict())
    inputs = attention_inputs(dense)
    assert torch.equal(twin(*inputs)[0], sparse(*inputs)[0])


def test_attention_repr_names_its_shape() -> None:
    assert "embed_dim=16, num_heads=4, batch_first=True" in repr(attention_pair(batch_first=True)[1])


def test_attention_drops_out_in_training_only() -> None:
    dense = prune_layers(nn.MultiheadAttention(16, 4, dropout=0.5, batch_first=True))
    sparse = SparseMultiheadAttention.from_dense(dense)
    assert sparse.training
    x = torch.randn(2, 6, 16)
    assert not torch.equal(sparse(x, x, x)[0], sparse(x, x, x)[0])
    assert not torch.equal(sparse(x, x, x, need_weights=False)[0], sparse(x, x, x, need_weights=False)[0])
    assert torch.equal(sparse.eval()(x, x, x)[0], sparse(x, x, x)[0])


def test_attention_passes_gradients_on() -> None:
    dense, sparse = attention_pair(batch_first=True)
    x = torch.randn(2, 6, 16, requires_grad=True)
    twin = x.detach().requires_grad_()
    sparse(x, x, x)[0].square().sum().backward()
    dense(twin, twin, twin)[0].square().sum().backward()
    assert relative_error(x.grad, twin.grad) < 1e-5


def test_attention_names_the_projection_that_is_not_sparse() -> None:
    dense, _ = attention_pair()
    with torch.no_grad():
        dense.in_proj_weight[16 + 2, 4:8] = 1
    with pytest.raises(ValueError, match=r"k_proj, row 2, columns 4-7"):
        SparseMultiheadAttention.from_dense(dense)
    with pytest.raises(TypeError, match="MultiheadAttention, not Linear"):
        SparseMultiheadAttention.from_dense(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        SparseMultiheadAttention(10, 3)


def test_attention_refuses_inputs_that_do_not_fit() -> None:
    _, sparse = attention_pair(batch_first=True)
    x, y = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    with pytest.raises(ValueError, match=r"must end in \(16, 16, 16\)"):
        sparse(x, torch.randn(2, 5, 12), x)
    with pytest.raises(ValueError, match="all 2-D or all 3-D"):
        sparse(x, x[0], x[0])
    with pytest.raises(ValueError, match="one length"):
        sparse(x, x, y)
    with pytest.raises(ValueError, match="one batch size"):
        sparse(x, y[:1], y[:1])
    with pytest.raises(ValueError, match="give attn_mask too"):
        sparse(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match=r"attn_mask must be \(5, 7\) or \(8, 5, 7\), not \(5, 5\)"):
        sparse(x, y, y, attn_mask=torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"key_padding_mask must be \(2, 7\), not \(2, 5\)"):
        sparse(x, y, y, key_padding_mask=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"attn_mask must be bool or floating, not torch\.int64"):
        sparse(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.int64))


def test_masks_agree_that_the_layers_are_sparse() -> None:
    linear = SparseLinear.from_dense(pruned_linear(32, 8))
    assert masks.is_sparse24(linear.weight)
    assert F.linear(torch.ones(1, 32), linear.weight, linear.bias).shape == (1, 8)
