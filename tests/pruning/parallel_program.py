"""A training script for ``torchrun --nproc-per-node N parallel_program.py WAY FOLDER STEPS``.

Every process computes its part of each batch, saves by torch.distributed.checkpoint after each step, and goes
on from the newest whole checkpoint. ``KILL=rank:step`` in the environment: that process kills itself there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from sparse24 import Sparsifier
from sparse24.pruning import recipes

BATCH = 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 8)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(torch.tanh(self.down(torch.relu(self.up(x)))))
        return output


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 16, generator=generator, dtype=torch.float64)
    return x, torch.randn(BATCH, 8, generator=generator, dtype=torch.float64)


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def make(way: str) -> tuple[nn.Module, Any, torch.optim.Optimizer, slice]:
    """The model, its Sparsifier or recipe, its optimizer, and what this process sees of a batch."""
    kind, _, optimizer = way.partition("-")
    model: nn.Module = Net()
    world, rank = dist.get_world_size(), dist.get_rank()
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    if kind in ("ddp", "recipe"):
        model = nn.parallel.DistributedDataParallel(model)
    elif kind == "fsdp":
        fully_shard(model)
    elif kind == "tensor":
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(model, init_device_mesh("cpu", (world,)), plan)
        part = slice(None)
    sparsifier = Sparsifier(model, select=["up", "down", "last"])
    stepped = optimizer_of(optimizer or "adamw", model)
    if kind == "recipe":
        recipe = recipes.DynamicSparsity(sparsifier, begin=2, refresh=2, freeze=7, decay=0.01)
        return model, recipe, stepped, part
    sparsifier.prune()
    return model, sparsifier, stepped, part


class First(nn.Module):
    """The first of two stages."""

    def __init__(self, whole: Net) -> None:
        super().__init__()
        self.up = whole.up

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.up(x))


class Second(nn.Module):
    """The second of two stages."""

    def __init__(self, whole: Net) -> None:
        super().__init__()
        self.down, self.last = whole.down, whole.last

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(torch.tanh(self.down(x)))
        return output


def pipeline(folder: Path, steps: int) -> None:
    """Each process has a stage, and a Sparsifier and an optimizer of its own for it."""
    rank = dist.get_rank()
    part: nn.Module = (First, Second)[rank](Net())
    stage = PipelineStage(part, rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=nn.functional.mse_loss)
    sparsifier = Sparsifier(part, select=["*"])
    sparsifier.prune()
    optimizer = optimizer_of("adamw", part)
    sparsifier.attach(optimizer)
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        schedule.step(x) if rank == 0 else schedule.step(target=y, losses=[])
        optimizer.step()
    sparsifier.verify()
    gathered: list[Any] = [None, None]
    dist.all_gather_object(gathered, part.state_dict())
    torch.save({**gathered[0], **gathered[1]}, folder / f"result{rank}")
    dist.barrier()


def states(model: nn.Module, enforced: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    own, moments = get_state_dict(model, optimizer)
    return {"model": own, "optimizer": moments, "masks": enforced.state_dict()}


def newest(folder: Path) -> int:
    """Steps of the newest checkpoint that is whole: DCP writes its metadata last."""
    whole = [int(path.parent.name) for path in folder.glob("*/.metadata")]
    return max(whole, default=0)


def main(way: str, folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if way == "pipeline":
        pipeline(folder, steps)
        return
    model, enforced, optimizer, part = make(way)
    begin = newest(folder)
    enforced.attach(optimizer)
    if begin:
        # A step with gradients of zero makes the optimizer's state, which is then loaded into.
        state = states(model, enforced, optimizer)
        saved = torch.load(folder / f"{begin}.masks{dist.get_rank()}", weights_only=False)
        del state["masks"]
        dcp.load(state, checkpoint_id=str(folder / str(begin)))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        enforced.load_state_dict(saved)
    fatal = os.environ.get("KILL", "-1:-1").split(":")
    for step in range(begin, steps):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[part]), y[part]).backward()
        if [str(dist.get_rank()), str(step)] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        state = states(model, enforced, optimizer)
        torch.save(state.pop("masks"), folder / f"{step + 1}.masks{dist.get_rank()}")
        dcp.save(state, checkpoint_id=str(folder / str(step + 1)))
    getattr(enforced, "sparsifier", enforced).verify()
    whole = {
        name.removeprefix("module."): value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
    torch.save(whole, folder / f"result{dist.get_rank()}")
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    # Not by way of destructors: DDP's holds the interpreter's lock while it waits for a thread that wants it.
    os._exit(0)
