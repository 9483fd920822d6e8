"""Small networks of transformers with random weights, one of each family, and inputs for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

import sparse24

TOKENS = torch.arange(12).view(2, 6) + 5
IMAGE = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
SOUND = torch.linspace(-1, 1, 2 * 16 * 60).view(2, 16, 60)

Make = Callable[[], tuple[nn.Module, dict[str, Tensor]]]

_DECODER = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 120, "eos_token_id": None,
}  # fmt: skip
_ENCODER = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
_PAIR = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 120,
}  # fmt: skip
_IMAGES = _ENCODER | {"image_size": 32, "patch_size": 8}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}


def _text(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    return model, {"input_ids": TOKENS}


def _pair(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    return model, {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :4]}


def bert() -> Any:
    return _text(hf.BertForSequenceClassification(hf.BertConfig(**_ENCODER, vocab_size=120)))


def gpt2() -> Any:
    return _text(
        hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=120, eos_token_id=None))
    )


def llama() -> Any:
    return _text(hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)))


def qwen2() -> Any:
    return _text(hf.Qwen2ForCausalLM(hf.Qwen2Config(**_DECODER)))


def qwen3() -> Any:
    return _text(hf.Qwen3ForCausalLM(hf.Qwen3Config(**_DECODER, head_dim=16, tie_word_embeddings=True)))


def mixtral() -> Any:
    return _text(hf.MixtralForCausalLM(hf.MixtralConfig(**_DECODER, num_local_experts=4)))


def t5() -> Any:
    config = hf.T5Config(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=120, decoder_start_token_id=0
    )
    return _pair(hf.T5ForConditionalGeneration(config))


def bart() -> Any:
    return _pair(hf.BartForConditionalGeneration(hf.BartConfig(**_PAIR, max_position_embeddings=64)))


def whisper() -> Any:
    config = hf.WhisperConfig(
        **_PAIR, **_SPECIAL, num_mel_bins=16, max_source_positions=30, max_target_positions=30
    )
    return (
        hf.WhisperForConditionalGeneration(config),
        {"input_features": SOUND, "decoder_input_ids": TOKENS[:, :4]},
    )


def vit() -> Any:
    return hf.ViTForImageClassification(hf.ViTConfig(**_IMAGES)), {"pixel_values": IMAGE}


def clip() -> Any:
    text = _ENCODER | {"vocab_size": 120, "max_position_embeddings": 20}
    config = hf.CLIPConfig(text_config=text, vision_config=_IMAGES, projection_dim=32)
    return hf.CLIPModel(config), {"input_ids": TOKENS, "pixel_values": IMAGE}


def resnet() -> Any:
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1])
    return hf.ResNetForImageClassification(config), {"pixel_values": IMAGE}


FAMILIES: dict[str, Make] = {
    each.__name__: each
    for each in (bert, gpt2, llama, qwen2, qwen3, mixtral, t5, bart, whisper, vit, clip, resnet)
}


def sparse(family: str) -> tuple[Any, dict[str, Tensor]]:
    """A network of that family, pruned, with all layers compressed that can be, and inputs."""
    model, inputs = FAMILIES[family]()
    sparse24.Sparsifier(model.eval()).prune()
    assert sparse24.to_sparse(model, when="always").done
    return model, inputs


def saved(tmp_path: Path) -> Path:
    """A folder with a sparse BERT."""
    sparse("bert")[0].save_pretrained(tmp_path / "good")
    return tmp_path / "good"


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
