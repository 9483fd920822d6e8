"""Transformers of published shapes: BERT-Large, MiniLM-L6, ViT-B/16, and a stack of TinyLlama's blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEQUENCE = 128
VOCABULARY = 30522


def share_of(layers: int, depth: float) -> int:
    """So many of ``layers`` as ``depth`` (0 to 1) asks for, one at least."""
    return max(1, round(layers * depth))


class Attention(nn.Module):
    """Softmax attention of a sequence to itself; q, k and v are layers of their own, as in BERT."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        output: Tensor = self.out(attended.transpose(1, 2).reshape(batch, length, size))
        return output


class Block(nn.Module):
    """Attention and two layers with GELU; layer norm before (ViT) or after (BERT) each."""

    def __init__(self, size: int, heads: int, inner: int, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = Attention(size, heads)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token ids [N, L] to hidden states [N, L, size], as BERT."""

    def __init__(self, layers: int, size: int, heads: int, inner: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, size)
        self.positions = nn.Embedding(512, size)
        self.norm = nn.LayerNorm(size)
        self.blocks = nn.Sequential(*(Block(size, heads, inner, norm_first=False) for _ in range(layers)))

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        hidden: Tensor = self.blocks(self.norm(self.words(ids) + self.positions(positions)))
        return hidden


class VisionTransformer(nn.Module):
    """Images [N, 3, 224, 224] to 1000 logits, in patches of 16x16."""

    def __init__(self, layers: int, size: int, heads: int, inner: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, size, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, size))
        self.positions = nn.Parameter(torch.randn(1, 197, size) * 0.02)
        self.blocks = nn.Sequential(*(Block(size, heads, inner, norm_first=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


class LlamaBlock(nn.Module):
    """Grouped attention with rotary positions, and a gated layer: a block of Llama, without biases."""

    def __init__(self, size: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, size // heads
        self.norm1, self.norm2 = nn.RMSNorm(size), nn.RMSNorm(size)
        self.q = nn.Linear(size, size, bias=False)
        self.k, self.v = (nn.Linear(size, kv_heads * self.width, bias=False) for _ in range(2))
        self.out = nn.Linear(size, size, bias=False)
        self.gate, self.up = (nn.Linear(size, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor, angles: Tensor, past: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        y = self.norm1(x)
        q = _rotated(self.q(y).view(batch, length, self.heads, self.width).transpose(1, 2), angles)
        k = _rotated(self.k(y).view(batch, length, self.kv_heads, self.width).transpose(1, 2), angles)
        v = self.v(y).view(batch, length, self.kv_heads, self.width).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [N, heads, L, width], each pair of its halves turned by angles [L, width / 2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Llama(nn.Module):
    """Hidden states [N, L, size] through the blocks; ``past`` [layers, 2, N, kv heads, P, width]."""

    def __init__(self, layers: int, size: int, heads: int, kv_heads: int, inner: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(LlamaBlock(size, heads, kv_heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(size)
        self.width = size // heads

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        before = 0 if past is None else past.shape[-2]
        positions = torch.arange(before, before + x.shape[1], device=x.device)
        powers = torch.arange(0, self.width, 2, device=x.device) / self.width
        angles = positions[:, None] / 10000.0**powers
        for index, block in enumerate(self.blocks):
            x = block(x, angles, None if past is None else past[index])
        normed: Tensor = self.norm(x)
        return normed


def bert_large(depth: float = 1.0) -> nn.Module:
    """24 layers of 1024, inner 4096, 16 heads."""
    return Encoder(share_of(24, depth), 1024, 16, 4096).eval()


def minilm(depth: float = 1.0) -> nn.Module:
    """6 layers of 384, inner 1536, 12 heads: all-MiniLM-L6."""
    return Encoder(share_of(6, depth), 384, 12, 1536).eval()


def vit_b_16(depth: float = 1.0) -> nn.Module:
    """12 layers of 768, inner 3072, 12 heads."""
    return VisionTransformer(share_of(12, depth), 768, 12, 3072).eval()


def llama(depth: float = 1.0) -> nn.Module:
    """8 of TinyLlama-1.1B's blocks, nothing else: 2048, inner 5632, 32 heads, 4 of keys and values."""
    return Llama(share_of(8, depth), 2048, 32, 4, 5632).eval()


def token_ids(batch: int, model: nn.Module) -> tuple[Tensor, ...]:
    """[batch, 128] of BERT's vocabulary."""
    return (torch.randint(VOCABULARY, (batch, SEQUENCE)),)


def prefill(batch: int, model: nn.Module) -> tuple[Tensor, ...]:
    """Hidden states [batch, 128, 2048]."""
    dtype = next(model.parameters()).dtype
    return (torch.randn(batch, SEQUENCE, 2048).to(dtype),)


def decode(batch: int, model: nn.Module) -> tuple[Tensor, ...]:
    """One token each, [batch, 1, 2048], and the keys and values of 128 before it."""
    assert isinstance(model, Llama)
    dtype = next(model.parameters()).dtype
    past = torch.randn(len(model.blocks), 2, batch, 4, SEQUENCE, model.width)
    return torch.randn(batch, 1, 2048).to(dtype), past.to(dtype)
