"""Conversion of torch's transformer modules and of those of the package transformers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import sparse24
from reference import assert_matches, prune_layers, relative_error
from sparse24 import SparseMultiheadAttention

from .conversions import converted, count, reasons

pytestmark = pytest.mark.usefixtures("seeded")


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(32, 4, 56, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options.get("norm_first", False)).eval()


FAST = [{}, {"activation": "gelu"}, {"norm_first": True}]


@pytest.mark.parametrize("options", FAST, ids=lambda options: "-".join(map(str, options)) or "default")
def test_an_encoder_runs_sparse_where_torch_would_fuse(options: dict[str, Any]) -> None:
    dense, sparse, report = converted(encoder(**options))
    assert not report.left
    assert len(report.done) == 6
    x = torch.randn(3, 9, 32)
    assert count(dense, x)["aten::_transformer_encoder_layer_fwd"] == 2
    calls = count(sparse, x)
    assert calls["sparse24::linear"] == 2 * (4 + 2)
    assert (
        not calls["aten::_transformer_encoder_layer_fwd"]
        + calls["sparse24::decompress"]
        + calls["aten::addmm"]
    )
    with torch.no_grad():
        assert relative_error(sparse(x), copy.deepcopy(dense).double()(x.double())) < 5e-6


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_masks_padding() -> None:
    dense, sparse, _ = converted(encoder())
    x = torch.randn(3, 9, 32)
    padding = torch.arange(9) >= torch.tensor([[9], [6], [4]])
    with torch.no_grad():
        expected = dense(x, src_key_padding_mask=padding)
        output = sparse(x, src_key_padding_mask=padding)
        causal = nn.Transformer.generate_square_subsequent_mask(9)
        expected_causal = dense(x, mask=causal, is_causal=True)
        output_causal = sparse(x, mask=causal, is_causal=True)
    assert relative_error(output[~padding], expected[~padding]) < 5e-6
    assert relative_error(output_causal, expected_causal) < 5e-6
    assert count(sparse, x, src_key_padding_mask=padding)["sparse24::linear"] == 12


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("part", ["layers.0.linear1", "layers.1.self_attn", "layers.1.linear2"])
def test_an_encoder_with_one_sparse_layer_is_right(part: str) -> None:
    dense, sparse, report = converted(encoder(), filter_fn=lambda name, module: name == part)
    assert [row.name for row in report.done] == [part]
    x = torch.randn(3, 9, 32)
    padding = torch.arange(9) >= torch.tensor([[9], [6], [4]])
    calls = count(sparse, x, src_key_padding_mask=padding)
    assert calls["sparse24::linear"] == (4 if "attn" in part else 1)
    assert not calls["sparse24::decompress"]
    with torch.no_grad():
        output = sparse(x, src_key_padding_mask=padding)
        expected = dense(x, src_key_padding_mask=padding)
    assert relative_error(output[~padding], expected[~padding]) < 5e-6


def test_to_dense_gives_torch_its_fused_path_back() -> None:
    dense, sparse, _ = converted(encoder())
    sparse24.to_dense(sparse)
    x = torch.randn(3, 9, 32)
    assert count(sparse, x)["aten::_transformer_encoder_layer_fwd"] == 2
    assert torch.equal(sparse(x), dense(x))
    assert sparse.use_nested_tensor
    assert vars(sparse.layers[0]).keys() == vars(dense.layers[0]).keys()


def test_an_encoder_decoder_is_converted_whole() -> None:
    model = nn.Transformer(32, 4, 1, 2, 48, batch_first=True)
    dense, sparse, report = converted(model)
    assert not report.left
    assert len(report.done) == 3 + 2 * 4
    source, target = torch.randn(2, 7, 32), torch.randn(2, 5, 32)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    with torch.no_grad():
        expected = copy.deepcopy(dense).double()(source.double(), target.double(), tgt_mask=mask.double())
        assert relative_error(sparse(source, target, tgt_mask=mask), expected) < 5e-6


@pytest.mark.parametrize("part", ["in_proj_weight", "out_proj.weight"])
def test_an_attention_is_converted_whole_or_not_at_all(part: str) -> None:
    model = prune_layers(nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)}))
    with torch.no_grad():
        model["attention"].get_parameter(part).fill_(1)
    report = sparse24.to_sparse(model, when="always")
    assert [row.name for row in report] == ["attention"]
    assert report[0].reason.startswith(f"not 2:4: {'q_proj' if 'in' in part else 'out_proj'}, row 0")
    assert type(model["attention"]) is nn.MultiheadAttention


def test_an_attention_with_a_parametrized_projection_stays() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)})
    parametrizations.weight_norm(model["attention"].out_proj)
    assert reasons(sparse24.to_sparse(model, when="always"))["attention"].startswith("parametrized (weight)")


def test_an_attention_keeps_every_option_through_conversion() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, kdim=12, vdim=20, add_bias_kv=True)})
    dense, sparse, report = converted(model)
    assert type(sparse["attention"]) is SparseMultiheadAttention
    assert report[0].bytes_before == sum(4 * p.numel() for p in dense.parameters())
    inputs = (torch.randn(5, 2, 16), torch.randn(7, 2, 12), torch.randn(7, 2, 20))
    assert_matches(sparse["attention"](*inputs)[0], dense["attention"](*inputs)[0])


def test_a_bert_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=52
    )
    dense, sparse, report = converted(transformers.BertModel(config))
    assert not report.left
    assert len(report.done) == 2 * 6 + 1
    tokens = torch.randint(0, 120, (3, 11))
    mask = torch.arange(11) < torch.tensor([[11], [8], [5]])
    with torch.no_grad():
        expected = dense(tokens, attention_mask=mask.long())
        output = sparse(tokens, attention_mask=mask.long())
    assert relative_error(output.last_hidden_state, expected.last_hidden_state) < 5e-6
    assert relative_error(output.pooler_output, expected.pooler_output) < 5e-6
    assert count(sparse, tokens)["sparse24::linear"] == 13


def test_a_gpt2_of_transformers_with_transposed_weights() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=24, n_layer=2, n_head=2)
    dense, sparse, report = converted(transformers.GPT2LMHeadModel(config))
    assert {row.kind for row in report.done} == {"Conv1D"}
    assert len(report.done) == 2 * 4
    assert reasons(report) == {
        "lm_head": "weight is shared with transformer.wte.weight: untie it first",
    }
    attention = next(row for row in report if row.name == "transformer.h.0.attn.c_attn")
    assert attention.shape == (24, 72)
    assert sparse.transformer.h[0].attn.c_attn.nf == 72
    tokens = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        assert relative_error(sparse(tokens).logits, dense(tokens).logits) < 5e-6
        state = torch.get_rng_state()
        sparse24.to_dense(sparse)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(sparse(tokens).logits, dense(tokens).logits)
    restored = sparse.transformer.h[0].attn.c_attn
    assert type(restored) is type(dense.transformer.h[0].attn.c_attn)
    assert (restored.nx, restored.nf) == (24, 72)
    assert repr(restored) == repr(dense.transformer.h[0].attn.c_attn)
    fresh = transformers.GPT2LMHeadModel(config)
    fresh.load_state_dict(sparse.state_dict())
    assert torch.equal(fresh.transformer.h[1].mlp.c_fc.weight, dense.transformer.h[1].mlp.c_fc.weight)
    with pytest.raises(ValueError, match="itself a Conv1D"):
        sparse24.to_sparse(dense.transformer.h[0].attn.c_attn)


def test_a_gpt2_that_is_not_pruned_stays() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=24, n_layer=1, n_head=2)
    report = sparse24.to_sparse(transformers.GPT2Model(config), when="always")
    assert not report.done
    assert all(row.reason.startswith("not 2:4: row 0, columns 0-3") for row in report)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_a_wavlm_of_transformers_hands_weights_to_torchs_attention() -> None:
    """It calls ``F.multi_head_attention_forward`` with ``layer.weight``: no weight is decompressed for it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.WavLMConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(32, 32),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    dense, sparse, report = converted(transformers.WavLMModel(config))
    assert {row.kind for row in report.left} <= {"Conv1d", "ParametrizedConv1d"}  # some of them
    sound = torch.randn(1, 800)
    with torch.no_grad():
        expected = dense(sound).last_hidden_state
        assert relative_error(sparse(sound).last_hidden_state, expected) < 5e-6
    calls = count(sparse, sound)
    assert calls["sparse24::linear"] >= 2 * 2 + 1
    assert not calls["sparse24::decompress"]
