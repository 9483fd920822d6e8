"""Residual networks of published shapes: ResNet-50, ResNeXt-101 32x16d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformers import share_of


class Bottleneck(nn.Module):
    """1x1, 3x3 in groups, 1x1, each with batch norm, around which the input is added."""

    def __init__(self, channels: int, width: int, out: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3, self.norm3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.skip = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.skip(x))


class ResNet(nn.Module):
    """Images [N, 3, H, W] to 1000 logits; ``width`` channels a group in the first stage, doubled in each."""

    def __init__(self, depths: tuple[int, ...], groups: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(64)
        channels, blocks = 64, []
        for stage, depth in enumerate(depths):
            out, inner = 256 << stage, (groups * width) << stage
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Bottleneck(channels, inner, out, groups, stride))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(images))), 3, 2, 1)
        logits: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return logits


def resnet_50(depth: float = 1.0) -> nn.Module:
    """Stages of 3, 4, 6, 3 blocks."""
    return _in_order(ResNet(_depths((3, 4, 6, 3), depth), 1, 64))


def resnext_101(depth: float = 1.0) -> nn.Module:
    """Stages of 3, 4, 23, 3 blocks, 32 groups of 16 channels."""
    return _in_order(ResNet(_depths((3, 4, 23, 3), depth), 32, 16))


def _depths(blocks: tuple[int, ...], depth: float) -> tuple[int, ...]:
    return tuple(share_of(each, depth) for each in blocks)


def _in_order(model: nn.Module) -> nn.Module:
    """In eval mode and channels_last, which every kind of convolution here likes best or no less."""
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def images(batch: int, model: nn.Module) -> tuple[Tensor, ...]:
    """[batch, 3, 224, 224], channels_last."""
    dtype = next(model.parameters()).dtype
    return (torch.randn(batch, 3, 224, 224).to(dtype).contiguous(memory_format=torch.channels_last),)
