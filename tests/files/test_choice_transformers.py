"""The command on files agrees with the Sparsifier on models of transformers, or is more careful."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from sparse24 import Sparsifier
from sparse24 import files as io

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def built(kind: str) -> nn.Module:
    package = pytest.importorskip("transformers", reason="transformers is not installed")
    names: dict[str, tuple[str, str, dict[str, Any]]] = {
        "bert": ("BertForSequenceClassification", "BertConfig", {"vocab_size": 50, **SIZES}),
        "llama": ("LlamaForCausalLM", "LlamaConfig", {"vocab_size": 50, "num_key_value_heads": 2, **SIZES}),
        "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 50, "n_embd": 24, "n_layer": 2}),
        "t5": (
            "T5ForConditionalGeneration", "T5Config",
            {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
        ),
        "clip": (
            "CLIPModel", "CLIPConfig",
            {"text_config": {"vocab_size": 50, **SIZES}, "projection_dim": 32,
             "vision_config": {"image_size": 32, "patch_size": 8, **SIZES}},
        ),
    }  # fmt: skip
    model, config, options = names[kind]
    network: nn.Module = getattr(package, model)(getattr(package, config)(**options))
    return network


class Task(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5", "clip"])
def test_the_same_is_pruned_in_a_file_in_a_model_and_in_a_wrapped_one(kind: str) -> None:
    model = built(kind)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    of_file = [row.name for row in io.prune(io.StateFile(state))[1].done]
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    assert of_file == ([] if kind == "gpt2" else list(sparsifier.masks))  # gpt2: its biases tell of [in, out]
    wrapped = Sparsifier(Task(model))
    wrapped.prune()
    assert [name.removeprefix("network.") for name in wrapped.masks] == list(sparsifier.masks)
