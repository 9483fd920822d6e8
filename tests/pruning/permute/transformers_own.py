"""Transformers of torch and of our own in the zoo."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zoo import enter, images, tokens, words


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.enter, self.head = nn.Linear(8, 32), nn.Linear(32, 4)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.enter(x)).mean(1))


enter(
    tokens(8),
    moved=(
        "encoder.layers.0.self_attn.in_proj_weight",
        "encoder.layers.0.self_attn.out_proj.weight",
        "encoder.layers.0.linear1.weight",
        "encoder.layers.1.linear2.weight",
    ),
)(Encoder)


class Translator(nn.Module):
    """Encoder and decoder, tokens first, with masks."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(32, 32), nn.Linear(32, 32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tokens first are slower
            self.net = nn.Transformer(32, 2, 1, 1, 64)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[0]).to(self.words.weight.dtype)
        source, target = self.words(source), self.words(target)
        return self.head(self.net(source, target, tgt_mask=mask, tgt_is_causal=True))


enter(
    lambda batch: (torch.randint(32, (5, batch)), torch.randint(32, (4, batch))),
    moved=("net.encoder.layers.0.linear2.weight", "net.decoder.layers.0.multihead_attn.out_proj.weight"),
)(Translator)


class FusedAttention(nn.Module):
    """Queries, keys and values from one layer, split by a view; masks added by hand."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class ImageTransformer(nn.Module):
    """As timm has it: patches, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 5, 32))
        self.norm, self.attention = nn.LayerNorm(32), FusedAttention()
        self.norm2, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        x = x + self.attention(self.norm(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


enter(
    images(),
    moved=("attention.qkv.weight", "attention.proj.weight", "up.weight", "down.weight"),
)(ImageTransformer)


class GroupedQueries(nn.Module):
    """Four heads of queries, two of keys and values, rotary positions, norms of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(32, 32), nn.RMSNorm(32)
        self.q, self.k, self.v, self.o = (
            nn.Linear(32, 64),
            nn.Linear(32, 32),
            nn.Linear(32, 32),
            nn.Linear(64, 32),
        )
        self.q_norm, self.k_norm = nn.RMSNorm(16), nn.RMSNorm(16)
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        self.head = nn.Linear(32, 8)
        self.register_buffer("rates", torch.exp(-torch.arange(8) / 4.0), persistent=False)

    def rotated(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2], device=x.device)[:, None] * self.rates
        angles = torch.cat([angles, angles], -1)
        low, high = x[..., :8], x[..., 8:]
        return x * angles.cos() + torch.cat([-high, low], -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        y = self.norm(x)
        b, t, _ = y.shape
        q = self.rotated(self.q_norm(self.q(y).view(b, t, 4, 16)).transpose(1, 2))
        k = self.rotated(self.k_norm(self.k(y).view(b, t, 2, 16)).transpose(1, 2)).repeat_interleave(2, 1)
        v = self.v(y).view(b, t, 2, 16).transpose(1, 2).repeat_interleave(2, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(out.transpose(1, 2).flatten(2))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(x[:, -1])


enter(
    words(),
    moved=("q.weight", "k.weight", "v.weight", "o.weight", "gate.weight", "down.weight", "head.weight"),
    select=["q", "k", "v", "o", "gate", "up", "down", "head"],
)(GroupedQueries)


class GroupedByTorch(nn.Module):
    """Grouped queries, repeated inside of torch's attention; queries and keys without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.o, self.head = (
            nn.Linear(8, 32),
            nn.Linear(32, 128),
            nn.Linear(64, 32),
            nn.Linear(32, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = self.qkv(x).split([64, 32, 32], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, 16)).movedim(-2, -3) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.head(x + self.o(out.movedim(-3, -2).flatten(-2))).mean(1)


enter(tokens(8), moved=("qkv.weight", "o.weight"))(GroupedByTorch)


class WindowAttention(nn.Module):
    """Shifted windows over an image, with a bias for every pair of places that is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 2, 2), nn.LayerNorm(32)
        self.qkv, self.proj, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 4)
        self.table = nn.Parameter(torch.randn(9, 2))
        places = torch.arange(4)
        apart = (places[:, None] // 2 - places // 2 + 1) * 3 + places[:, None] % 2 - places % 2 + 1
        self.register_buffer("apart", apart)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).view(-1, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        bias = self.table[self.apart.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        y = ((q @ k.transpose(-2, -1) + bias).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c)
        y = self.proj(y).view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return self.head((x + torch.roll(y, (1, 1), (1, 2))).mean((1, 2)))


enter(images(), moved=("qkv.weight", "proj.weight"))(WindowAttention)
