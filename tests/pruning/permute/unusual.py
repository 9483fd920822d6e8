"""Convolutional networks of the zoo whose channels take other ways than from layer to layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutional import conv
from .zoo import enter, images


class Pyramid(nn.Module):
    """Three outputs in a dictionary, from two sizes, by one head that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = conv(3, 16), conv(16, 32, 3, 2)
        self.side, self.lateral = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, object]:
        high = F.relu(self.high(image))
        low = self.side(F.relu(self.low(high)))
        joined = self.lateral(high) + F.interpolate(low, scale_factor=2, mode="nearest")
        return {"boxes": [self.head(low), (self.head(joined) * scale,)], "size": joined.shape[-1]}


enter(
    lambda batch: {"image": torch.randn(batch, 3, 8, 8), "scale": torch.tensor(2.0)},
    moved=("low.0.weight", "side.weight", "lateral.weight", "head.0.weight"),
)(Pyramid)


class Auxiliary(nn.Module):
    """A second head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.aux, self.head = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        out = self.head(F.relu(self.body(x)).mean((2, 3)))
        return (out, self.aux(x.mean((2, 3)))) if self.training else out


enter(images(), moved=("body.weight",))(Auxiliary)


class FrozenNorm(nn.Module):
    """A batch norm of buffers, as detectors have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


@enter(images(), moved=("2.weight", "5.weight"))
def frozen_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), FrozenNorm(16), nn.Conv2d(16, 32, 3), FrozenNorm(32), nn.ReLU(),
        nn.Conv2d(32, 8, 1), nn.Flatten(2),
    )  # fmt: skip


class Remembering(nn.Module):
    """Keeps what it has computed from a parameter, in eval mode, for the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.slopes = nn.Parameter(torch.randn(16))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training or "slopes" not in self.cache:
            self.cache["slopes"] = self.slopes.exp()[:, None, None]
        return self.last(F.relu(self.first(x) * self.cache["slopes"])).mean((2, 3))


enter(images(), moved=("last.weight",))(Remembering)


class Hypernetwork(nn.Module):
    """Kernels that a layer computes. torch.export refuses the name of a parameter; torch.fx does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.kernel = nn.Linear(8, 16 * 16)
        self.code = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel(self.code).view(16, 16, 1, 1)
        return F.relu(self.last(F.relu(F.conv2d(F.relu(self.first(x)), kernel)))).mean((2, 3))


enter(
    images(), moved=("kernel.weight",), kept=(("last.weight", "convolution meets them in the order of what"),)
)(Hypernetwork)


class Flipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + x.flip(1))


enter(images(), stays="in the order of what aten::flip gives")(Flipped)


class Rolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.roll(F.relu(self.first(x)), 1, 1))


enter(images(), stays="in the order of what aten::roll gives")(Rolled)


class EndsInSum(nn.Module):
    """x + f(x) to the end: the stream is the output, the inside of f is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.up, self.down = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.down(F.relu(self.up(x)))


enter(images(), moved=("down.weight",), kept=(("up.weight", "an output of the network"),))(EndsInSum)


class Pooled(nn.Module):
    """A pool over channels reads them in order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        return self.last(
            F.max_pool1d(x.permute(0, 2, 3, 1).reshape(-1, 1, c), 2).view(n, h, w, 8).permute(0, 3, 1, 2)
        )


enter(images(), stays="in the order of what aten::max_pool1d gives")(Pooled)
