"""One-shot pruning of models in shards, for ``torchrun --nproc-per-node 2 sharded_program.py FOLDER``.

Every case of :data:`CASES` runs in turn; each process calibrates on every second batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import sparse24


class Block(nn.Module):
    """Of features that do not depend on each other: else weights rest on rounding, in one process, too."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(20, 16), nn.Linear(16, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.down(torch.relu(self.up(torch.tanh(x))))
        return output


class Net(nn.Module):
    """Blocks that follow each other, behind a convolution and perhaps an attention.

    An attention hands on means, which hardly differ: its out_proj rests on rounding, as in one process.
    """

    def __init__(self, attends: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv1d(8, 20, 3, padding=1)
        self.attention = nn.MultiheadAttention(20, 2, batch_first=True) if attends else None
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).transpose(1, 2)
        if self.attention is not None:
            x = x + self.attention(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.head(x)
        return output


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(96, 8, 6 + i, generator=generator) + 0.2 * i for i in range(4)]


def by_blocks(model: Net) -> None:
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model.head, reshard_after_forward=False)
    fully_shard(model)


SHARDINGS: dict[str, Callable[[Any], Any]] = {
    "blocks": by_blocks,
    "root": fully_shard,
    "attention": by_blocks,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "sparsegpt": {},
    "wanda": {},
    "magnitude": {"refit": 0},
    "ria": {"bias": False, "refit": 2, "skip": ["blocks.1.*"]},
    "admm": {"refit": 0},
}
CASES = [("blocks", method) for method in OPTIONS] + [("root", "sparsegpt"), ("attention", "sparsegpt")]


def pruned(model: nn.Module, method: str, given: list[Tensor]) -> sparse24.report.Report:
    return sparse24.oneshot(model, given, method=method, reconstruct=None, select=None, **OPTIONS[method])


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


def refusals(given: list[Tensor]) -> dict[str, str]:
    """What is refused in every process, and leaves the model as it was."""
    rank, model = dist.get_rank(), Net()
    by_blocks(model)
    before = whole(model)
    nan = [each * float("nan") if rank else each for each in given]
    found = {
        "reconstruct": error_of(lambda: sparse24.oneshot(model, given)),
        "folder": error_of(lambda: sparse24.oneshot(model, given, reconstruct=None, folder="x")),
        "budget": error_of(lambda: sparse24.oneshot(model, given, reconstruct=None, skip=0.5)),
        "batches": error_of(lambda: sparse24.oneshot(model, given[rank:], reconstruct=None)),
        "inputs": error_of(lambda: sparse24.oneshot(model, nan, reconstruct=None)),
    }
    assert all(torch.equal(before[name], value) for name, value in whole(model).items())
    parallel = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    parallelize_module(parallel, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel()})
    x = [torch.randn(4, 8)]
    found["tensor"] = error_of(lambda: sparse24.oneshot(parallel, x, reconstruct=None))
    weights = Net()
    if rank:
        weights.blocks[0].up.weight.data[-1] = float("inf")
    by_blocks(weights)
    found["weights"] = error_of(lambda: sparse24.oneshot(weights, given, reconstruct=None))
    return found


def lower_precision(given: list[Tensor]) -> dict[str, Tensor]:
    """Forwards in bfloat16, weights in float32; then a step of training under the masks."""
    model = Net()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    pruned(model, "sparsegpt", given)
    sparsifier = sparse24.Sparsifier(model)
    sparsifier.prune(from_zeros=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    model(given[0]).float().square().mean().backward()
    optimizer.step()
    sparsifier.verify()
    return whole(model)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    given = batches()[dist.get_rank() :: 2]
    found: dict[str, Any] = {}
    for sharding, method in CASES:
        model = Net(sharding == "attention")
        SHARDINGS[sharding](model)
        report = pruned(model, method, given)
        found[f"{sharding} {method}"] = (whole(model), [(row.name, row.done) for row in report])
    found["refusals"] = refusals(given)
    found["lower precision"] = lower_precision(given)
    torch.save(found, folder / f"found{dist.get_rank()}")
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)
