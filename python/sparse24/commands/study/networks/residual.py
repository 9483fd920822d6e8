"""ResNet and its relatives: wider, grouped, dilated.

He et al. 2016 (basic and bottleneck blocks), Xie et al. 2017 (ResNeXt), Zagoruyko and Komodakis 2016 (wide),
Yu et al. 2017 (dilated residual networks).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def unit(
    inputs: int,
    outputs: int,
    size: int | tuple[int, int] = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """A convolution that keeps the size of its maps, but for the stride; a batch norm; perhaps a ReLU."""
    height, width = (size, size) if isinstance(size, int) else size
    padding = (dilation * (height // 2), dilation * (width // 2))
    convolution = nn.Conv2d(
        inputs, outputs, (height, width), stride, padding, dilation, groups=groups, bias=False
    )
    parts: list[nn.Module] = [convolution, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([nn.ReLU()] if relu else []))


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.outputs = width
        self.first = unit(inputs, width, 3, stride, dilation=dilation)
        self.second = unit(width, width, 3, dilation=dilation, relu=False)
        same = stride == 1 and inputs == width
        self.shortcut = nn.Identity() if same else unit(inputs, width, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (perhaps in groups), and 1x1 to four times the width, beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, *, inner: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.outputs = 4 * width
        self.reduce = unit(inputs, inner * width, 1)
        self.spatial = unit(inner * width, inner * width, 3, stride, groups=groups)
        self.expand = unit(inner * width, self.outputs, 1, relu=False)
        same = stride == 1 and inputs == self.outputs
        self.shortcut = nn.Identity() if same else unit(inputs, self.outputs, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.spatial(self.reduce(x))) + self.shortcut(x))


class Classifier(nn.Module):
    """A stem, stages whose maps get smaller, the mean over pixels, a linear layer.

    Args:
        stem: [N, 1, H, W] to the first maps.
        stages: each [N, C, H, W] to [N, C', H', W'].
        channels: of the last maps.
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], channels: int, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.head = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps after every stage."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x)[-1].mean((2, 3)))
        return logits


def _stages(
    kind: str, inputs: int, widths: Sequence[int], depth: int, **options: int
) -> tuple[list[nn.Module], int]:
    stages: list[nn.Module] = []
    for number, width in enumerate(widths):
        blocks: list[nn.Module] = []
        for index in range(depth):
            stride = 2 if number and not index else 1
            block = (
                Basic(inputs, width, stride)
                if kind == "basic"
                else Bottleneck(inputs, width, stride, **options)
            )
            blocks.append(block)
            inputs = block.outputs
        stages.append(nn.Sequential(*blocks))
    return stages, inputs


def resnet34(stride: int = 2, *, depth: int = 2, width: int = 16) -> Classifier:
    """Basic blocks; ``stride`` of the stem."""
    stages, channels = _stages("basic", width, (width, 2 * width, 4 * width), depth)
    return Classifier(unit(1, width, 3, stride), stages, channels)


def resnet50(stride: int = 2) -> Classifier:
    """Bottlenecks."""
    stages, channels = _stages("bottleneck", 16, (16, 32, 64), 2)
    return Classifier(unit(1, 16, 3, stride), stages, channels)


def resnext50(stride: int = 2) -> Classifier:
    """Bottlenecks of twice the width, whose 3x3 is in four groups."""
    stages, channels = _stages("bottleneck", 16, (16, 32, 64), 2, inner=2, groups=4)
    return Classifier(unit(1, 16, 3, stride), stages, channels)


def wide_resnet50(stride: int = 2) -> Classifier:
    """Bottlenecks of twice the width."""
    stages, channels = _stages("bottleneck", 16, (16, 32, 64), 2, inner=2)
    return Classifier(unit(1, 16, 3, stride), stages, channels)


def drn(stride: int = 2) -> Classifier:
    """Type C: the last two stages are dilated, not strided; plain convolutions of dilation 2 and 1 end it."""
    blocks: list[nn.Module] = []
    inputs = 16
    for width, step, dilation in ((16, 1, 1), (32, 2, 1), (32, 1, 2), (48, 1, 4)):
        blocks.append(Basic(inputs, width, step, dilation))
        inputs = width
    ends = [unit(inputs, inputs, 3, dilation=2), unit(inputs, inputs, 3)]
    return Classifier(unit(1, 16, 3, stride), [*blocks, nn.Sequential(*ends)], inputs)
