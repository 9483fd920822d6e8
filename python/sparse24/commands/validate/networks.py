"""BERT-Large and ResNeXt-101 32x16d with random weights, pruned: dense and sparse, outputs and speed.

The networks are those of the talk's table; accuracy is nothing that random weights could show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import masks
from ...nn import convert
from ..doctor import relative_error
from .ground import Ground
from .speed import _medians

HALF = torch.float16
#: Errors of fp16 layers add up over the depth; the outputs are of magnitude one.
DEEP_TOLERANCE = 0.05


class BertLayer(nn.Module):
    """One encoder layer: attention and feed-forward, each with a residual and a norm after it."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, hidden)
        x = self.norm1(x + self.out(attended))
        normed: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return normed


def bert(layers: int = 24, hidden: int = 1024, heads: int = 16) -> nn.Module:
    """The encoder of BERT (Devlin et al., 2018); the defaults are BERT-Large."""
    return nn.Sequential(*[BertLayer(hidden, heads) for _ in range(layers)])


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1, with a residual (Xie et al., 2017)."""

    def __init__(self, channels: int, width: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.spatial = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            project = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.reduce(x)))
        y = F.relu(self.norm2(self.spatial(y)))
        return F.relu(self.norm3(self.expand(y)) + self.shortcut(x))


def resnext(
    blocks: Sequence[int] = (3, 4, 23, 3), base: int = 64, groups: int = 32, width_per_group: int = 16
) -> nn.Module:
    """ResNeXt; the defaults are ResNeXt-101 32x16d."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, base, 7, 2, 3, bias=False), nn.BatchNorm2d(base), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    channels = base
    for stage, count in enumerate(blocks):
        planes = base << stage
        width, out = planes * width_per_group // 64 * groups, 4 * planes
        for block in range(count):
            stride = 2 if stage and block == 0 else 1
            layers.append(Bottleneck(channels, width, out, stride, groups))
            channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers)


def run(ground: Ground) -> None:
    """Both networks, at a few batch sizes."""
    if ground.emulated:
        networks: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
            "BERT": (lambda: bert(1, 64, 4), (1,), (16, 64)),
            "ResNeXt": (lambda: resnext((1, 1), 16, 2, 64), (1,), (3, 32, 32)),
        }
    else:
        networks = {
            "BERT-Large, 128 tokens": (bert, (1, 32, 256), (128, 1024)),
            "ResNeXt-101 32x16d, 1x1 sparse": (resnext, (1, 32, 128), (3, 224, 224)),
        }
    for name, (build, batches, shape) in list(networks.items())[: 1 if ground.quick else None]:
        with ground.attempt(name):
            _network(ground, name, build, batches, shape)


def _ungrouped(name: str, module: nn.Module) -> bool:
    """Groups of sixteen channels gain nothing: thirty-two small launches."""
    return not isinstance(module, nn.Conv2d) or module.groups == 1


@torch.no_grad()
def _network(
    ground: Ground, name: str, build: Callable[[], nn.Module], batches: Sequence[int], shape: Sequence[int]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(24)
        dense, sparse = build(), build()
    for module in dense.modules():
        if (
            isinstance(module, nn.Linear | nn.Conv2d)
            and _ungrouped("", module)
            and module.weight.shape[1] > 3
        ):
            masks.prune_(module.weight.data)
    sparse.load_state_dict(dense.state_dict())
    for net in (dense, sparse):
        net.eval().to(ground.device, HALF).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    report = convert.to_sparse(sparse, filter_fn=_ungrouped)
    for batch in batches:
        x = ground.tensor(batch, *shape, dtype=HALF)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with ground.layers_run_here():
            error = relative_error(sparse(x), dense(x))
            times = _medians(ground, {"dense": partial(dense, x), "sparse": partial(sparse, x)})
        ground.check(
            f"{name}, batch {batch}", error <= DEEP_TOLERANCE, error=error, converted=len(report.done),
            dense_us=times["dense"], sparse_us=times["sparse"], ratio=times["dense"] / times["sparse"],
            per_second=1e6 * batch / times["sparse"],
        )  # fmt: skip
