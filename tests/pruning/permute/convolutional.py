"""Convolutional networks of the zoo. More than 300 lines: one network after the other, each small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .zoo import enter, images


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


def head(width: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


@enter(images(), moved=("2.weight", "4.weight"))
def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Hardswish(), nn.Conv2d(32, 16, 1), *head(16)
    )


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.two = conv(inputs, outputs, 3, stride), conv(outputs, outputs)
        self.short = conv(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu_(self.one(x)))
        y += self.short(x)
        return y.relu_()


@enter(images(), moved=("2.one.0.weight", "2.two.0.weight", "3.one.0.weight", "4.one.0.weight"))
def resnet() -> nn.Module:
    return nn.Sequential(
        conv(3, 16), nn.MaxPool2d(2), Basic(16, 16), Basic(16, 32, 2), Basic(32, 32), *head(32)
    )


class Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.down, self.mid, self.up = (
            conv(width, inner, 1),
            conv(inner, inner, 3, groups=groups),
            conv(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.up(F.relu(self.mid(F.relu(self.down(x))))))


@enter(images(), moved=("1.down.0.weight", "1.mid.0.weight", "1.up.0.weight"))
def resnext() -> nn.Module:
    return nn.Sequential(conv(3, 32), Bottleneck(32, 64, 4), Bottleneck(32, 64, 4), *head(32))


class Inverted(nn.Module):
    def __init__(self, width: int, times: int = 2) -> None:
        super().__init__()
        inner = width * times
        self.layers = nn.Sequential(
            conv(width, inner, 1),
            nn.ReLU6(),
            conv(inner, inner, 3, groups=inner),
            nn.ReLU6(),
            conv(inner, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


@enter(images(), moved=("2.layers.0.0.weight", "2.layers.4.0.weight"))
def mobilenet() -> nn.Module:
    return nn.Sequential(conv(3, 16), nn.SiLU(), Inverted(16), Inverted(16), conv(16, 32, 1), *head(32))


class DepthMultiplier(nn.Module):
    """Two outputs for every channel of a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth, self.last = conv(3, 16), nn.Conv2d(16, 32, 3, groups=16), nn.Conv2d(32, 8, 1)
        self.wide = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(self.depth(x)).mean((2, 3)) + self.wide(x).mean((2, 3))[:, :8]


enter(images(), moved=("wide.weight",))(DepthMultiplier)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


@enter(images(), moved=("1.conv.weight", "2.conv.weight", "4.weight"))
def densenet() -> nn.Module:
    return nn.Sequential(
        conv(3, 16), DenseLayer(16, 12), DenseLayer(28, 12), nn.BatchNorm2d(40), nn.Conv2d(40, 16, 1),
        nn.AvgPool2d(2), DenseLayer(16, 12), *head(28),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.deep = conv(3, 16), conv(16, 32, 3, 2), conv(32, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join, self.out = conv(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.enter(x))
        low = F.relu(self.deep(F.relu(self.down(high))))
        return self.out(F.relu(self.join(torch.cat([self.up(low), high], 1))))


enter(images(), moved=("down.0.weight", "deep.0.weight", "join.0.weight"))(UNet)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.branches = nn.ModuleList(
            [conv(16, 8, 1), nn.Sequential(conv(16, 8, 1), nn.ReLU(), conv(8, 12)), conv(16, 12, 5)]
        )
        self.last = nn.Conv2d(48, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        parts = [branch(x) for branch in self.branches]
        parts.append(F.max_pool2d(x, 3, 1, 1))
        return self.last(F.relu(torch.cat(parts, 1))).amax((2, 3))


enter(images(), moved=("branches.0.0.weight", "last.weight"))(Inception)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.squeeze, self.excite = conv(3, 32), nn.Linear(32, 16), nn.Linear(16, 32)
        self.after = conv(32, 16)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return self.head(F.relu(self.after(x * gate[:, :, None, None])))


enter(images(), moved=("squeeze.weight", "excite.weight", "after.0.weight"))(SqueezeExcite)


@enter(images(), moved=("3.weight", "9.weight"))
def vgg() -> nn.Module:
    """Channels times pixels in one dim: those of the convolution before move as blocks."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24 * 4, 32), nn.ReLU(), nn.Linear(32, 16),
        nn.Dropout(), nn.Linear(16, 4),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + self.scale * self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


@enter(images(), moved=("1.up.weight", "1.down.weight", "2.up.weight"))
def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 2, 2), ConvNeXtBlock(16), ConvNeXtBlock(16), *head(16))


@enter(images(side=5), moved=("2.weight", "5.weight"))
def super_resolution() -> nn.Module:
    """Channels become pixels: groups of four of them move together."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, padding=1), nn.PixelShuffle(2),
        nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.PixelUnshuffle(2), nn.Conv2d(64, 12, 1),
        nn.PixelShuffle(2),
    )  # fmt: skip


class ShuffleUnit(nn.Module):
    """Grouped convolutions with a channel shuffle by hand between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = conv(3, 32), nn.Conv2d(32, 32, 1, groups=2)
        self.depth, self.two = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1, groups=2)
        self.last = nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = F.relu(self.one(x))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(x + self.two(self.depth(y))).mean((2, 3))


enter(images(), moved=("one.weight", "last.weight"))(ShuffleUnit)


@enter(images(), moved=("1.weight", "4.weight"))
def slopes() -> nn.Module:
    """A slope for every channel, which apex's permutation leaves where it was."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.PReLU(32), nn.BatchNorm2d(32), nn.Conv2d(32, 8, 1),
        nn.PReLU(), *head(8),
    )  # fmt: skip


class GroupNormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.silu(self.norm(x)))


@enter(images(), moved=("1.conv.weight", "2.conv.weight"))
def group_norms() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), GroupNormBlock(32), GroupNormBlock(32), *head(32))


@enter(images(), moved=("3.weight", "8.weight"))
def style_transfer() -> nn.Module:
    return nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True),
        nn.Conv2d(16, 32, 3, 2, 1), nn.InstanceNorm2d(32, track_running_stats=True), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.ZeroPad2d(1),
        nn.Conv2d(32, 16, 3), nn.ELU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 3, 3),
    )  # fmt: skip


class CrossStage(nn.Module):
    """Half of the channels go round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = conv(3, 32), conv(16, 16), conv(32, 16)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        kept, through = F.leaky_relu(self.first(x)).chunk(2, 1)
        return self.head(self.last(torch.cat([F.mish(self.inner(through)), kept], dim=1)))


enter(images(), moved=("inner.0.weight", "last.0.weight"))(CrossStage)
