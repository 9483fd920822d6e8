"""A small language model over bytes, trained on the documentation of Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....files import FileError
from .trained import trained

SOURCES = Path("/usr/share/doc/python3.11/html/_sources")
_CONTEXT, _BATCH = 128, 32
_JUDGED = 16  #: one file of so many is judged by, the next one calibrated on


class Block(nn.Module):
    """Attention and a feed-forward pair, each normalised before and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(attended.transpose(1, 2).flatten(2))
        output: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return output


class Gpt(nn.Module):
    """bytes [N, L] to logits [N, L, 256]."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, width), nn.Embedding(_CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Here:
    """Loss in nats a byte on files of their own."""

    score_name = "nats a byte"
    higher_is_better = False

    def __init__(self, quick: bool) -> None:
        if not SOURCES.is_dir():
            raise FileError(f"{SOURCES}: No such file or directory: apt-get install python3.11-doc")
        files = sorted(SOURCES.rglob("*.rst.txt"))
        texts = [path.read_bytes() for path in files]
        self._judge = joined(texts[0::_JUDGED])
        self._calibrate = joined(texts[1::_JUDGED])
        self._train = joined([text for i, text in enumerate(texts) if i % _JUDGED > 1])
        self._steps, self._windows = (20, 16) if quick else (1500, 512)

    def dense(self) -> nn.Module:
        torch.manual_seed(24)
        return trained(f"tasks/bytes-{self._steps}", Gpt(192, 4, 6), self._fit)

    def calibration(self, seed: int) -> Sequence[Any]:
        count = max(self._windows // 4, 8)
        return list(_windows(self._calibrate, count, seed)[:, :-1].split(8))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        parts = _windows(self._judge, self._windows, 24).split(_BATCH)  # type: ignore[no-untyped-call]
        return sum(float(nats(model, part)) * len(part) for part in parts) / self._windows

    def _fit(self, model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.1, fused=True)
        warm = self._steps // 20 + 1
        for step in range(self._steps):
            progress = min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / self._steps))
            optimizer.param_groups[0]["lr"] = 2e-3 * progress
            loss = nats(model, _windows(self._train, _BATCH, step))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def joined(texts: Sequence[bytes]) -> Tensor:
    """Files as one text, int64 [bytes]."""
    return torch.frombuffer(bytearray(b"\n".join(texts)), dtype=torch.uint8).long()


def windows(text: Tensor, count: int, draw: torch.Generator, context: int = _CONTEXT) -> Tensor:
    """[count, context + 1] at places that ``draw`` chooses."""
    starts = torch.randint(0, len(text) - context - 1, (count, 1), generator=draw)
    return text[starts + torch.arange(context + 1)]


def _windows(text: Tensor, count: int, seed: int) -> Tensor:
    return windows(text, count, torch.Generator().manual_seed(seed))


def nats(model: nn.Module, windows: Tensor) -> Tensor:
    """The mean loss [] of the next byte, over windows [N, context + 1]."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
