"""Two processes over gloo: DDP and fully_shard end where one process does."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import sparse24
from sparse24 import Sparsifier, is_sparse24, magnitude_mask
from sparse24.pruning.asp import ASP

WORLD = 2
DEADLINE_S = 120


class Net(nn.Module):
    """Layers whose rows do not divide evenly; ``in_first`` is [in, out] as transformers' Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(6, 9, 3)
        self.linear = nn.Linear(18, 10)
        self.in_first = IN_FIRST(10, 8)
        self.last = nn.Linear(8, 16)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.linear(torch.relu(self.conv(x)).flatten(1)))
        return self.last(torch.relu(self.in_first(x)))


class InFirst(nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


IN_FIRST = type("Conv1D", (InFirst,), {"__module__": "transformers.pytorch_utils"})
SELECT = ["conv", "linear", "last"]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 16, generator=generator, dtype=torch.float64)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, part: slice, steps: range = range(4)) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[part]), y[part]).backward()
        optimizer.step()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def single_process() -> dict[str, Tensor]:
    model = Net()
    sparsifier = Sparsifier(model, select=SELECT)
    sparsifier.prune()
    optimizer = adamw(model)
    sparsifier.attach(optimizer)
    train(model, optimizer, slice(None))
    sparsifier.verify()
    return model.state_dict()


# ---- what the two processes run ---------------------------------------------------------------------


def ddp(part: slice, around: bool) -> dict[str, Tensor]:
    base = Net()
    model = nn.parallel.DistributedDataParallel(base)
    sparsifier = Sparsifier(model if around else base, select=SELECT)
    sparsifier.prune()
    optimizer = adamw(model)
    sparsifier.attach(optimizer)
    train(model, optimizer, part)
    sparsifier.verify()
    return base.state_dict()


def fsdp(part: slice, pruned: str) -> dict[str, Tensor]:
    """Pruned before or after sharding, or after a forward pass that has left weights gathered."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    model = Net()
    sparsifier = Sparsifier(model, select=SELECT)
    if pruned == "before":
        sparsifier.prune()
    fully_shard(model.conv)
    fully_shard(model)
    if pruned == "after a forward pass":
        model(batch(0)[0])
        assert not hasattr(model.linear.weight, "to_local")
    if pruned != "before":
        sparsifier.prune()
    optimizer = adamw(model)
    sparsifier.attach(optimizer)
    train(model, optimizer, part)
    sparsifier.verify()
    return {name: value.full_tensor() for name, value in model.state_dict().items()}


def fsdp_states() -> None:
    """Masks of a sharded model are DTensors; whole ones and sharded ones load."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    whole = Sparsifier(Net(), select=SELECT)
    whole.prune()
    model = fully_shard(Net())
    sparsifier = Sparsifier(model, select=SELECT)
    for state in (whole.state_dict(), None):
        sparsifier.load_state_dict(state or sparsifier.state_dict())
        for name, mask in sparsifier.state_dict()["masks"].items():
            assert mask.placements == model.get_parameter(name).placements
            assert torch.equal(mask.full_tensor(), whole.masks[name])
    sparsifier.prune()
    for name, mask in sparsifier.masks.items():
        assert torch.equal(mask.full_tensor(), whole.masks[name])


def fsdp_obstacles() -> None:
    """Groups that would span two processes are refused: 10 rows are sharded every 5."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    model = fully_shard(Net())
    reasons = {row.name: row.reason for row in Sparsifier(model, select=["*"]).report()}
    assert reasons["in_first"] == "sharded along dim 0 every 5: groups of 4 would span two processes"
    assert reasons["linear"].startswith("not pruned yet")
    square = fully_shard(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 16)))
    sparsifier = Sparsifier(square, "transposable")
    assert "dim 0 every 6" in next(iter(sparsifier.report())).reason
    assert [row.name for row in sparsifier.prune().done] == ["1"]


def refusals() -> None:
    """What works on whole weights says so, and leaves the shards as they were."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    model = fully_shard(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)))
    before = {name: value.full_tensor().clone() for name, value in model.state_dict().items()}
    batches = [torch.randn(4, 16)]
    calls: dict[str, Callable[[], object]] = {
        "sensitivity": lambda: sparse24.sensitivity(model, batches),
        "permute": lambda: sparse24.permute(model, batches[0]),
        "quantize": lambda: sparse24.quantize(model, batches),
        "prepare_qat": lambda: sparse24.quant.prepare_qat(model),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"^{name} needs whole weights, and 0\.weight \(32, 16\) is sharded"
        ):
            call()
    assert [row.done for row in sparse24.to_sparse(model, when="always")] == [False, False]
    for name, value in model.state_dict().items():
        assert torch.equal(value.full_tensor(), before[name])


def asp_over_fsdp(recompute_sharded: bool) -> None:
    """ASP puts back and prunes again what was pruned before or after sharding."""
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 24))
    dense = [layer.weight.detach().clone() for layer in model]
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    if not recompute_sharded:
        ASP.compute_sparse_masks()
    fully_shard(model)
    ASP.compute_sparse_masks()
    for layer, weight in zip(model, dense, strict=True):
        assert torch.equal(layer.weight.full_tensor() != 0, magnitude_mask(weight))
    state = ASP.state_dict(model)
    ASP.restore_pruned_weights()
    for layer, weight in zip(model, dense, strict=True):
        assert torch.equal(layer.weight.full_tensor(), weight)
    ASP.load_state_dict(model, state)
    assert all(is_sparse24(layer.weight.full_tensor()) for layer in model)
    ASP.release(model)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=DEADLINE_S // 2),
    )
    part = slice(4 * rank, 4 * rank + 4)
    results = {
        "ddp": ddp(part, around=False),
        "sparsifier around ddp": ddp(part, around=True),
        "fsdp": fsdp(part, "after"),
        "fsdp, pruned before": fsdp(part, "before"),
        "fsdp, pruned after a forward pass": fsdp(part, "after a forward pass"),
    }
    fsdp_states()
    fsdp_obstacles()
    asp_over_fsdp(recompute_sharded=True)
    asp_over_fsdp(recompute_sharded=False)
    torch.save(results, f"{folder}/results{rank}")
    dist.destroy_process_group()


def run_processes(folder: Path) -> list[dict[str, Any]]:
    processes = mp.spawn(work, (str(folder),), nprocs=WORLD, join=False)
    end = time.monotonic() + DEADLINE_S
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < end, f"the processes did not end within {DEADLINE_S} s"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"results{rank}") for rank in range(WORLD)]


def test_a_mesh_of_one_process_behaves_like_none(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        expected = single_process()
        for pruned in ("before", "after", "after a forward pass"):
            state = fsdp(slice(None), pruned)
            for name, value in expected.items():
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12)
        fsdp_states()
        refusals()
        asp_over_fsdp(recompute_sharded=True)
    finally:
        dist.destroy_process_group()


def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    expected = single_process()
    for results in run_processes(tmp_path):
        assert len(results) == 5
        for state in results.values():
            assert state.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12)
