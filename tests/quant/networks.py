"""Small pruned networks with batch norms, layer norms, attention and residuals, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24


class Images(nn.Module):
    """Convolutions with batch norms in all the places where one folds, and where it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.read_twice, self.kept = nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)
        self.plain = nn.BatchNorm2d(32, affine=False)
        self.last = nn.Conv2d(32, 32, 1, groups=2)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.norm(self.conv(x)))
        y = self.read_twice(x)
        x = self.kept(y) + y
        return self.head(F.relu(self.plain(self.last(x))).mean((2, 3)))


class Volumes(nn.Module):
    """Three-dimensional convolutions of the kinds that run in different ways, a batch norm after one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(8, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.along = nn.Conv3d(16, 16, (3, 1, 1), padding=(1, 0, 0))
        self.across = nn.Conv3d(16, 16, (1, 3, 3), stride=(1, 2, 2))
        self.grouped = nn.Conv3d(16, 16, (3, 2, 2), groups=2, padding=1)
        self.around = nn.Conv3d(16, 16, 3, padding=1, padding_mode="replicate")
        self.head = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.along(self.stem(x)))
        x = F.gelu(self.grouped(self.across(x)))
        return self.head(F.relu(self.around(x)).mean((2, 3, 4)))


class Encoder(nn.Module):
    """Pre-norm blocks with attention, whose channels have outliers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.post = nn.LayerNorm(32)
        self.out = nn.Linear(32, 32)
        with torch.no_grad():
            self.norm2.weight[3] *= 40

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.post(x)
        return x + self.out(x)


def images() -> tuple[nn.Module, list[Any]]:
    """Pruned, in eval mode; batches."""
    return with_statistics(Images()), [torch.randn(4, 8, 8, 8) for _ in range(3)]


def volumes() -> tuple[nn.Module, list[Any]]:
    """The same."""
    return with_statistics(Volumes()), [torch.randn(2, 8, 5, 7, 6) for _ in range(3)]


def with_statistics(model: nn.Module) -> nn.Module:
    """Pruned, in eval mode, its batch norms doing something."""
    for norm in (m for m in model.eval().modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return pruned(model)


def encoder() -> tuple[nn.Module, list[Any]]:
    """The same."""
    return pruned(Encoder().eval()), [torch.randn(4, 9, 32) for _ in range(3)]


def pruned(model: nn.Module) -> nn.Module:
    sparse24.Sparsifier(model, select=["*"]).prune()
    return model


NETWORKS = {"images": images, "encoder": encoder, "volumes": volumes}


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a failure must leave: tensors by name with their numbers, and modules by name."""
    found: dict[str, Any] = {n: (id(m), type(m), m.training) for n, m in model.named_modules()}
    return found | {
        f"{n}()": (id(t), t.detach().clone()) for n, t in model.state_dict(keep_vars=True).items()
    }


def same(before: dict[str, Any], model: nn.Module) -> bool:
    after = state(model)
    if before.keys() != after.keys():
        return False
    for name, (key, what, *rest) in before.items():
        own_key, own, *own_rest = after[name]
        numbers = isinstance(what, Tensor)
        if key != own_key or rest != own_rest or (not torch.equal(what, own) if numbers else what != own):
            return False
    return True
