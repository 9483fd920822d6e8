"""Language models: Transformer-XL over bytes, BERT over pieces of words.

Dai et al. 2019 (memory of the segment before, relative positions), Devlin et al. 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _RelativeAttention(nn.Module):
    """Attention over memory and segment: a term of content and one of the distance, each with its bias."""

    def __init__(self, width: int, heads: int, longest: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.both = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.distances = nn.Parameter(torch.randn(heads, longest, width // heads) * 0.02)
        self.content, self.place = (nn.Parameter(torch.zeros(heads, 1, width // heads)) for _ in range(2))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        def split(part: Tensor) -> Tensor:
            return part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)

        q = split(self.query(x))
        k, v = (split(part) for part in self.both(torch.cat([memory, x], 1)).chunk(2, -1))
        now, all_ = q.shape[2], k.shape[2]
        # How far back each of the keys is for each query; those after it are hidden.
        back = torch.arange(now)[:, None] + (all_ - now) - torch.arange(all_)
        by_distance = (q + self.place) @ self.distances[:, :all_].transpose(1, 2)  # [N, heads, now, all_]
        index = back.clamp(0, all_ - 1).expand(*by_distance.shape[:2], -1, -1)
        match = (q + self.content) @ k.transpose(2, 3) + by_distance.gather(3, index)
        match = (match * q.shape[-1] ** -0.5).masked_fill(back < 0, -1e4)
        output: Tensor = self.merge((match.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return output


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, longest: int) -> None:
        super().__init__()
        self.attention = _RelativeAttention(width, heads, longest)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), self.norm1(memory))
        output: Tensor = x + self.down(F.relu(self.up(self.norm2(x))))
        return output


class TransformerXl(nn.Module):
    """bytes [N, S * L] to logits [N, S * L, 256], in segments of L; layers remember the one before."""

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, segment: int = 64) -> None:
        super().__init__()
        self.segment = segment
        self.bytes = nn.Embedding(256, width)
        self.layers = nn.ModuleList(_Layer(width, heads, 2 * segment) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        memories = [self.bytes(tokens[:, :0]) for _ in self.layers]
        found = []
        for part in torch.split(tokens, self.segment, 1):
            x = self.bytes(part)
            for i, layer in enumerate(self.layers):
                memory, memories[i] = memories[i], x.detach()  # no gradient into the segment before
                x = layer(x, memory)
            found.append(self.head(self.norm(x)))
        return torch.cat(found, 1)


class Bert(nn.Module):
    """An encoder normalised after, as BERT's; ``forward`` classifies by the first token."""

    def __init__(self, tokens: int, classes: int, width: int = 128, longest: int = 40) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width, 0), nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, F.gelu, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, classes)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def states(self, x: Tensor) -> Tensor:
        """[N, L, width]."""
        found: Tensor = self.encoder(
            self.norm(self.tokens(x) + self.places.weight[: x.shape[1]]), src_key_padding_mask=x == 0
        )
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.pooler(self.states(x)[:, 0])))
        return logits


class MaskedModel(nn.Module):
    """A BERT in its pretraining: a token for every place."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self.bert = bert
        width = bert.pooler.in_features
        self.transform, self.head = nn.Linear(width, width), nn.Linear(width, bert.tokens.num_embeddings)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.gelu(self.transform(self.bert.states(x))))
        return logits
