"""Every part of the demo shrunk to what a test has time for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from sparse24 import timing
from sparse24.choose import measured
from sparse24.commands.bench.tasks import minilm
from sparse24.commands.demo import oneshot, recipe, sentences, subjects, tables, transformer
from sparse24.commands.demo.recipe import Images, Plan


def small_images(quick: bool) -> tuple[Images, Plan]:
    """Noise with labels: for what does not depend on what is learned."""
    images, labels = torch.rand(192, 1, 8, 8), torch.arange(192) % 10
    return Images("noise", (images[:128], labels[:128]), (images[128:], labels[128:])), Plan(1, 1, 128, 64)


def small_checkpoint(folder: Path) -> Path:
    """A random encoder of two layers, 48 wide, under the names that BERT's files have."""
    texts = [text for pair in sentences.PAIRS for text in pair]
    words = ["[PAD]", "[UNK]", *sorted({word for text in texts for word in text.split()})]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    width, inner = 48, 96
    matrices = {
        "embeddings.word_embeddings": (len(words), width),
        "embeddings.position_embeddings": (32, width),
        "embeddings.token_type_embeddings": (2, width),
    }
    vectors = {"embeddings.LayerNorm": width}
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            matrices[f"{layer}.attention.{part}"] = (width, width)
            vectors[f"{layer}.attention.{part}"] = width
        matrices |= {
            f"{layer}.intermediate.dense": (inner, width),
            f"{layer}.output.dense": (width, inner),
        }
        vectors |= {f"{layer}.intermediate.dense": inner, f"{layer}.output.dense": width}
        vectors |= {f"{layer}.attention.output.LayerNorm": width, f"{layer}.output.LayerNorm": width}
    state = {f"{name}.weight": 0.1 * torch.randn(shape) for name, shape in matrices.items()}
    state |= {f"{name}.bias": torch.zeros(size) for name, size in vectors.items()}
    state |= {f"{name}.weight": torch.ones(size) for name, size in vectors.items() if "LayerNorm" in name}
    state |= {"pooler.dense.weight": torch.zeros(2, 2), "embeddings.position_ids": torch.arange(32)}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every part shrunk to what a test has time for."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    convs = (tables.Conv(32, 12, 16, 5, 1.6), tables.Conv(32, 2048, 4096, 7, 1.7))
    monkeypatch.setattr(recipe, "load_images", small_images)
    monkeypatch.setattr(transformer, "model_folder", lambda: small_checkpoint(folder))
    monkeypatch.setattr(minilm, "NOUNS", folder / "no such file")
    monkeypatch.setattr(subjects, "STEPS", (2, 4))
    monkeypatch.setattr(subjects, "JUDGED", 4)
    monkeypatch.setattr(subjects, "BATCH", 2)
    monkeypatch.setattr(tables, "GEMMS", (tables.Gemm(24, 64, 32, 1.5),))
    monkeypatch.setattr(tables, "CONVS", convs)
    monkeypatch.setattr(measured, "_SECONDS", 0.01)
    monkeypatch.setattr(timing, "interleaved_medians", few_rounds)
    for module in (oneshot, tables):
        monkeypatch.setattr(module, "interleaved_medians", few_rounds)


def few_rounds(calls: Any, seconds: float = 0) -> list[float]:
    return medians(calls, seconds=0, min_rounds=2)


medians = timing.interleaved_medians
