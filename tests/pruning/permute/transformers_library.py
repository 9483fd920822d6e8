"""Networks of the library transformers in the zoo, with small configurations and random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from .zoo import enter

transformers = pytest.importorskip("transformers", reason="the extra dev brings it")

#: RMS norms, softmax and rotary angles are computed in float32 there, whatever the network's dtype.
CASTS = 2e-6


def ids(length: int = 6, vocabulary: int = 64) -> Callable[[int], dict[str, Any]]:
    return lambda batch: {"input_ids": torch.randint(3, vocabulary, (batch, length))}


def pixels(side: int = 16) -> Callable[[int], dict[str, Any]]:
    return lambda batch: {"pixel_values": torch.randn(batch, 3, side, side)}


@enter(
    ids(),
    moved=("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.output.dense.weight"),
)
def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


@enter(
    ids(),
    moved=(
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.0.attn.c_proj.weight",
        "transformer.h.1.mlp.c_proj.weight",
    ),
)
def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    )


def _llama(kind: str, **more: Any) -> Any:
    return getattr(transformers, kind)(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, **more,
    )  # fmt: skip


@enter(
    ids(),
    tolerance=CASTS,
    moved=(
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ),
)
def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(_llama("LlamaConfig"))


@enter(
    ids(),
    tolerance=CASTS,
    moved=("model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"),
)
def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(_llama("Qwen3Config", head_dim=16, tie_word_embeddings=True))


@enter(ids(), dtype=torch.float32, tolerance=1e-5)
def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(_llama("MixtralConfig", num_local_experts=4))


@enter(
    lambda batch: {
        "input_ids": torch.randint(3, 64, (batch, 6)),
        "decoder_input_ids": torch.randint(3, 64, (batch, 4)),
    },
    tolerance=CASTS,
    moved=(
        "encoder.block.0.layer.0.SelfAttention.o.weight",
        "decoder.block.1.layer.2.DenseReluDense.wo.weight",
    ),
)
def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


@enter(
    pixels(),
    moved=(
        "vit.layers.0.attention.q_proj.weight",
        "vit.layers.1.attention.o_proj.weight",
    ),
)
def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=4, num_labels=4,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


@enter(
    lambda batch: {**ids()(batch), **pixels()(batch)},
    moved=(
        "text_model.encoder.layers.0.mlp.fc2.weight",
        "vision_model.encoder.layers.0.self_attn.out_proj.weight",
    ),
)
def clip() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    text = {**sizes, **special, "vocab_size": 64, "max_position_embeddings": 16}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    )


@enter(
    lambda batch: {
        "input_features": torch.randn(batch, 8, 32),
        "decoder_input_ids": torch.randint(3, 64, (batch, 4)),
    },
    moved=("model.encoder.layers.0.fc2.weight", "model.decoder.layers.0.encoder_attn.out_proj.weight"),
)
def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=64, num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, decoder_layers=1,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, d_model=32,
        max_source_positions=16, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


@enter(pixels(32))
def swin() -> nn.Module:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4
    )
    return transformers.SwinForImageClassification(config)


@enter(pixels(32))
def convnext_v2() -> nn.Module:
    config = transformers.ConvNextV2Config(patch_size=2, hidden_sizes=[16, 32], depths=[1, 2], num_stages=2)
    return transformers.ConvNextV2ForImageClassification(config)


@enter(pixels(32))
def mobilenet_v2() -> nn.Module:
    return transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.5)
    )


@enter(pixels(32))
def segformer() -> nn.Module:
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 32],
        num_attention_heads=[1, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=32,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


@enter(
    lambda batch: {"input_values": torch.randn(batch, 400)},
    moved=("wav2vec2.encoder.layers.0.feed_forward.output_dense.weight",),
)
def wav2vec2() -> nn.Module:
    config = transformers.Wav2Vec2Config(
        vocab_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, mask_time_prob=0.0,
    )  # fmt: skip
    return transformers.Wav2Vec2ForCTC(config)
