"""Output heads and adapters are judged by their place in their network, whatever wraps it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparse24 import Sparsifier
from sparse24.pruning.heads import output_heads
from sparse24.pruning.prunable import find_candidates


class Block(nn.Module):
    """Parts that are called like heads, in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"value": nn.Linear(16, 16), "out": nn.Linear(16, 16)})
        self.output = nn.Linear(16, 16)
        self.fc = nn.Linear(16, 16)


class Bare(nn.Module):
    """A network whose head is called ``name``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.add_module(name, nn.Linear(16, 1000))


class Task(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


NAMES = ["fc", "head", "score", "output"]
WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda net: net,
    "a task": lambda net: Task(model=net, loss=nn.CrossEntropyLoss()),
    "an averaged model": AveragedModel,
    "a task around an averaged model": lambda net: Task(ema=AveragedModel(net)),
    "behind a normalization": lambda net: nn.Sequential(nn.BatchNorm2d(3), net),
    "beside a frozen one": lambda net: Task(model=net, teacher=Bare("other")),
    "beside a projection": lambda net: Task(model=net, metric=nn.Linear(16, 16)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", list(WRAPPED))
def test_a_head_stays_one_whatever_wraps_its_network(how: str, name: str) -> None:
    model = WRAPPED[how](Bare(name))
    left = {row.name: row.reason for row in Sparsifier(model).prune().left}
    (head,) = left
    assert head.rpartition(".")[2] == name
    assert left[head].startswith(f"an output head by its name ({head}); select it by name")


def mlp_of(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


SEVERAL = {
    "a GAN": (
        lambda: Task(generator=mlp_of(16, 32), discriminator=mlp_of(32, 1)),
        ["discriminator.2"],
    ),
    "a GAN in a module for training": (
        lambda: Task(gan=Task(generator=mlp_of(16, 32), discriminator=Bare("out"))),
        ["gan.discriminator.out"],
    ),
    "two projections (CLIP)": (
        lambda: Task(
            text=Bare("x"), vision=Bare("x"), text_projection=nn.Linear(16, 16),
            visual_projection=nn.Linear(16, 16),
        ),
        ["text_projection", "visual_projection"],
    ),
    "boxes and classes (DETR)": (
        lambda: Task(
            body=Bare("x"), class_embed=nn.Linear(16, 96),
            bbox_embed=Task(layers=nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 4)])),
        ),
        ["class_embed", "bbox_embed.layers.1"],
    ),
    "a head for each decoder layer": (
        lambda: Task(body=Bare("x"), class_embed=nn.ModuleList([nn.Linear(16, 96), nn.Linear(16, 96)])),
        ["class_embed.0", "class_embed.1"],
    ),
    "heads by their ending": (
        lambda: Task(body=Bare("x"), policy_head=mlp_of(16, 64), value_head=nn.Linear(16, 1)),
        ["policy_head.2", "value_head"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(SEVERAL))
def test_every_network_in_a_module_has_its_heads(case: str) -> None:
    build, heads = SEVERAL[case]
    model = build()
    report = Sparsifier(model).prune()
    assert [row.name for row in report.left] == heads
    assert all("an output head" in row.reason for row in report.left)
    assert Sparsifier(model, select=heads).prune().done[0].name == heads[0]


def test_parts_of_blocks_that_are_called_like_heads_are_none() -> None:
    parts = ("attention.out", "output", "fc", "multi_head", "attn_head", "conv_head")
    names = [f"encoder.layer.{i}.{part}.weight" for i in range(2) for part in parts]
    assert output_heads(dict.fromkeys(names, (16, 16))) == {}


def test_a_single_weight_is_no_head() -> None:
    assert output_heads({"fc.weight": (10, 16)}) == {}


def test_a_layer_that_scores_a_vocabulary_is_told_in_any_network() -> None:
    shapes = {"lm.body.weight": (16, 16), "lm.decode.weight": (48, 16), "other.body.weight": (16, 16)}
    heads = output_heads(shapes, ["lm.embed.weight", "other.deep.0.weight"], [(48, 16)])
    assert heads == {
        "lm.decode.weight": "an output head: the last layer, with one output for each of 48 embeddings"
    }


class LoraLinear(nn.Module):
    """As peft's: the layer and its adapters side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(16, 16)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 8, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(8, 16, bias=False)})


class OwnLora(nn.Linear):
    """As loralib's: a Linear with parameters of its own and a forward of its own."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.lora_A = nn.Parameter(torch.randn(8, 16))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + (input @ self.lora_A.t()).sum()


def test_adapters_are_left_alone_with_a_reason() -> None:
    model = nn.ModuleDict(
        {"q": LoraLinear(), "own": OwnLora(), "down_adapter": nn.Linear(16, 8), "v": Block()}
    )
    reasons = {row.name: row.reason for row in Sparsifier(model).prune().left}
    assert reasons["q.lora_A.default"] == "an adapter by its name (lora_A); select it by name to prune it"
    assert reasons["q.lora_B.default"].startswith("an adapter by its name (lora_B)")
    assert reasons["down_adapter"].startswith("an adapter by its name (down_adapter)")
    assert "own" not in reasons  # its forward multiplies by the weight as it is
    assert "q.base_layer" not in reasons
    assert Sparsifier(model, select=["q.lora_A.*"]).prune().done[0].name == "q.lora_A.default"


def test_a_transposed_head_is_read_the_right_way_round() -> None:
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    last = conv1d()
    last.weight = nn.Parameter(torch.randn(16, 10))  # [in, out]: ten classes
    model = nn.ModuleDict({"body": nn.Linear(16, 16), "last": last})
    assert find_candidates(model)[1].skipped.startswith("an output head: the last layer, with 10 outputs")
