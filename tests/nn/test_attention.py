"""SparseMultiheadAttention against the dense module that it stands in for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference import assert_matches, prune_layers, relative_error
from sparse24 import SparseMultiheadAttention

from .layers import assert_same_state, exact_state

pytestmark = pytest.mark.usefixtures("seeded")


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
