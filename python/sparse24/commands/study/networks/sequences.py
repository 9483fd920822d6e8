"""Sequence to sequence: LSTMs with attention, a Transformer, a Levenshtein Transformer.

Wu et al. 2016 (GNMT), Vaswani et al. 2017, Gu et al. 2019. Tokens are [N, L]; 0 is padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, BEGIN, END, HOLE = range(4)


class Gnmt(nn.Module):
    """A bidirectional LSTM, one over it, and two decoding ones that attend to its outputs."""

    def __init__(self, tokens: int, width: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width, PAD)
        self.both = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.over = nn.LSTM(width, width, batch_first=True)
        self.first = nn.LSTM(width, width, batch_first=True)
        self.second = nn.LSTM(2 * width, width, batch_first=True)
        self.query = nn.Linear(width, width, bias=False)
        self.drop = nn.Dropout(0.1)
        self.merge, self.head = nn.Linear(2 * width, width), nn.Linear(width, tokens)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        low = self.both(self.drop(self.tokens(source)))[0]
        memory = low + self.over(low)[0]
        state = self.first(self.drop(self.tokens(target)))[0]
        match = (self.query(state) @ memory.transpose(1, 2)) * memory.shape[-1] ** -0.5
        read = match.masked_fill((source == PAD).unsqueeze(1), -1e4).softmax(-1) @ memory
        state = state + self.second(self.drop(torch.cat([state, read], -1)))[0]
        logits: Tensor = self.head(self.drop(torch.tanh(self.merge(torch.cat([state, read], -1)))))
        return logits


class _Places(nn.Module):
    """Tokens and where they stand, both learned."""

    def __init__(self, tokens: int, width: int, longest: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(tokens, width, PAD), nn.Embedding(longest, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.tokens(x) + self.places.weight[: x.shape[1]]
        return found


class Transformer(nn.Module):
    """Encoder and decoder, each of two layers, normalised before."""

    def __init__(self, tokens: int, width: int = 128, longest: int = 48) -> None:
        super().__init__()
        self.source, self.target = _Places(tokens, width, longest), _Places(tokens, width, longest)
        options = {"dropout": 0.1, "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 4, 4 * width, **options),  # type: ignore[arg-type]
            2,
            nn.LayerNorm(width),
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, 4, 4 * width, **options),  # type: ignore[arg-type]
            2,
            nn.LayerNorm(width),
        )
        self.head = nn.Linear(width, tokens)

    def hidden(self, source: Tensor, target: Tensor, *, causal: bool) -> Tensor:
        """What the decoder makes of a target."""
        padding = source == PAD
        memory = self.encoder(self.source(source), src_key_padding_mask=padding)
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1) if causal else None
        found: Tensor = self.decoder(
            self.target(target), memory, tgt_mask=later, tgt_is_causal=causal,
            memory_key_padding_mask=padding, tgt_key_padding_mask=None if causal else target == PAD,
        )  # fmt: skip
        return found

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(source, target, causal=True))
        return logits


class Levenshtein(Transformer):
    """Edits a target, all places at once: which tokens go, how many are missing at each gap, which they are.

    ``forward`` gives the logits of the three: [N, L, 2], [N, L - 1, 5] and [N, L, tokens].
    """

    def __init__(self, tokens: int, width: int = 128, longest: int = 48) -> None:
        super().__init__(tokens, width, longest)
        self.remove, self.insert = nn.Linear(width, 2), nn.Linear(2 * width, 5)

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        hidden = self.hidden(source, target, causal=False)
        gaps = torch.cat([hidden[:, :-1], hidden[:, 1:]], -1)
        return self.remove(hidden), self.insert(gaps), self.head(hidden)


def greedy(model: nn.Module, source: Tensor, longest: int) -> Tensor:
    """[N, longest] of the likeliest next tokens, one by one; after the end, padding."""
    found = torch.full((len(source), 1), BEGIN)
    going = torch.ones(len(source), dtype=torch.bool)
    for _ in range(longest):
        token = model(source, found)[:, -1].argmax(-1)
        token = torch.where(going, token, PAD)
        found = torch.cat([found, token.unsqueeze(1)], 1)
        going &= token != END
        if not going.any():
            break
    return F.pad(found[:, 1:], (0, longest - found.shape[1] + 1))
