"""Small networks to calibrate, and inputs whose channels depend on each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """A block that hands on a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down, self.norm = (
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, str]:
        return self.norm(x + scale * self.down(F.gelu(self.up(x)))), "a second output"


class Stack(nn.Module):
    """Keyword inputs, blocks with tuples, a layer that is used twice and one that never is."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.shared, self.unused = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, *, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(F.gelu(self.embed(x)))
        scale = torch.full((), 0.5)
        for block in self.blocks:
            x, _ = block(x, scale)
        return {"logits": self.head(self.shared(x))}


class Images(nn.Module):
    """Convolutions with groups and batch norms, a residual block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU()) for _ in range(2))
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Method(nn.Module):
    """A block that is entered by another name than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def attend(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.inner(x))


class Roundabout(nn.Module):
    """Blocks that are not called, and one that the first batch does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(16, 16)}), Method(), nn.Linear(16, 16)])
        self.late = nn.Linear(16, 16)

    def forward(self, x: Tensor, late: bool) -> Tensor:
        x = self.blocks[2](self.blocks[1].attend(self.blocks[0]["a"](x)))
        return self.late(x) if late else x


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def correlated(*shape: int) -> Tensor:
    """Inputs whose channels depend on each other, as those of networks do."""
    mixing = torch.randn(shape[-1] // 2, shape[-1], generator=torch.Generator().manual_seed(1))
    return torch.randn(*shape[:-1], shape[-1] // 2) @ mixing + 0.1 * torch.randn(*shape)


def images() -> Tensor:
    return correlated(2, 6, 6, 4).permute(0, 3, 1, 2)


NETWORKS: dict[str, tuple[Any, Any]] = {
    "stack": (Stack, lambda: {"x": correlated(4, 7, 16)}),
    "images": (Images, images),
    "encoder": (encoder, lambda: correlated(3, 5, 16)),
    "mlp": (mlp, lambda: (correlated(9, 16),)),
}


def run(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(batch, dict):
            output = model(**batch)
        else:
            output = model(*batch) if isinstance(batch, tuple) else model(batch)
    return output["logits"] if isinstance(output, dict) else output


def network(name: str) -> tuple[nn.Module, list[Any]]:
    make, batch = NETWORKS[name]
    return make(), [batch() for _ in range(12)]
