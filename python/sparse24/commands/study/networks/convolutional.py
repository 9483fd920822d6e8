"""VGG, DenseNet, Inception, Xception and SUNet.

Simonyan and Zisserman 2015, Huang et al. 2017, Szegedy et al. 2016, Chollet 2017, Shah et al. 2018.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .residual import Classifier, unit


class Vgg(nn.Module):
    """3x3 convolutions and pooling, then two hidden linear layers with dropout."""

    def __init__(self, depth: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [unit(1, 32, 3, stride)]
        inputs = 32
        for width in (32, 64, 128):
            for _ in range(depth):
                layers.append(unit(inputs, width))
                inputs = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.maps, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
        hidden = [
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
        ]
        self.hidden, self.head = nn.Sequential(*hidden), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.hidden(self.pool(self.maps(x)).flatten(1)))
        return logits


def vgg16(stride: int = 2) -> nn.Module:
    """Two convolutions a stage."""
    return Vgg(2, stride)


def vgg19(stride: int = 2) -> nn.Module:
    """Three convolutions a stage."""
    return Vgg(3, stride)


class _DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; its outputs stand beside its inputs."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.reduce = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.spatial = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.spatial(F.relu(self.norm2(self.reduce(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def densenet121(stride: int = 2, *, growth: int = 12, depth: int = 4) -> nn.Module:
    """Three dense blocks, with transitions that halve channels and maps."""
    stages: list[nn.Module] = []
    channels = 2 * growth
    for number in range(3):
        layers: list[nn.Module] = [_DenseLayer(channels + growth * i, growth) for i in range(depth)]
        channels += growth * depth
        if number < 2:
            half = channels // 2 // 4 * 4
            layers += [
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, half, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels = half
        else:
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        stages.append(nn.Sequential(*layers))
    return Classifier(unit(1, 2 * growth, 3, stride), stages, channels)


class _Inception(nn.Module):
    """Branches side by side, joined along channels; ``reduce``: the maps are halved."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _square(inputs: int, width: int) -> _Inception:
    """1x1; 1x1 and 5x5; 1x1 and two 3x3; pooling and 1x1."""
    return _Inception(
        [
            unit(inputs, width, 1),
            nn.Sequential(unit(inputs, width, 1), unit(width, width, 5)),
            nn.Sequential(unit(inputs, width, 1), unit(width, width), unit(width, width)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), unit(inputs, width, 1)),
        ]
    )


def _factorised(inputs: int, width: int) -> _Inception:
    """7x7 as 1x7 and 7x1, once and twice."""
    once = [unit(inputs, width, 1), unit(width, width, (1, 7)), unit(width, width, (7, 1))]
    twice = [*(unit(width, width, size) for size in ((7, 1), (1, 7)))]
    return _Inception(
        [
            unit(inputs, width, 1),
            nn.Sequential(*once),
            nn.Sequential(unit(inputs, width, 1), *twice, *(unit(width, width, s) for s in ((7, 1), (1, 7)))),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), unit(inputs, width, 1)),
        ]
    )


def _smaller(inputs: int, width: int) -> _Inception:
    """Maps halved by a strided 3x3, and by pooling."""
    return _Inception([unit(inputs, width, 3, 2), nn.MaxPool2d(3, 2, 1)])


def inception_v3(stride: int = 2) -> nn.Module:
    """Square branches on large maps, factorised ones on small maps."""
    stages = [_square(24, 16), nn.Sequential(_smaller(64, 32), _factorised(96, 24)), _factorised(96, 32)]
    return Classifier(nn.Sequential(unit(1, 16, 3, stride), unit(16, 24)), stages, 128)


class _Separable(nn.Module):
    """ReLU, depthwise 3x3 and 1x1, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()

        def separable(channels: int) -> list[nn.Module]:
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            return [
                nn.ReLU(),
                depthwise,
                nn.Conv2d(channels, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            ]

        pool = [nn.MaxPool2d(3, stride, 1)] if stride > 1 else []
        self.body = nn.Sequential(*separable(inputs), *separable(outputs), *pool)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else unit(inputs, outputs, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body(x) + self.shortcut(x)
        return output


def xception(stride: int = 2) -> nn.Module:
    """Entry, middle and exit of separable convolutions with shortcuts."""
    stages = [
        _Separable(32, 64, 1),
        nn.Sequential(_Separable(64, 96, 2), _Separable(96, 96, 1)),
        _Separable(96, 192, 2),
    ]
    return Classifier(nn.Sequential(unit(1, 32, 3, stride), unit(32, 32)), stages, 192)


class _UNet(nn.Module):
    """Down, and up again with a shortcut across, beside a shortcut over the whole."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.enter = unit(channels, inner, 1)
        self.down = unit(inner, inner, 3, 2)
        self.deep = unit(inner, inner, 3)
        self.up = nn.ConvTranspose2d(inner, inner, 2, 2)
        self.leave = unit(inner, channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        large = self.enter(x)
        up = self.up(self.deep(self.down(large)))[:, :, : large.shape[2], : large.shape[3]]
        return F.relu(x + self.leave(large + up))


def sunet7(stride: int = 2) -> nn.Module:
    """Stacked U-Nets: two on large maps, two on small ones."""
    stages: list[nn.Module] = [
        nn.Sequential(_UNet(64, 32), _UNet(64, 32)),
        nn.Sequential(unit(64, 96, 1), nn.AvgPool2d(2, ceil_mode=True), _UNet(96, 48), _UNet(96, 48)),
    ]
    return Classifier(nn.Sequential(unit(1, 32, 3, stride), unit(32, 64, 1)), stages, 96)
