"""Compressed layers in several processes: shared memory, fork, mapped files, sharded parameters."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparse24 import SparseLinear, to_sparse

from .layers import pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")


def _double(layer: SparseLinear) -> None:
    with torch.no_grad():
        layer.values.mul_(2)
        layer.bias.mul_(2)


def test_shared_memory_is_written_by_another_process_and_read_here() -> None:
    layer = SparseLinear.from_dense(pruned_linear(64, 32))
    x = torch.randn(3, 64)
    expected = 2 * layer(x)
    layer.share_memory()
    assert layer.values.is_shared()
    child = multiprocessing.get_context("fork").Process(target=_double, args=(layer,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert torch.allclose(layer(x), expected, atol=1e-5)


def _call(layer: SparseLinear, x: torch.Tensor, answers: multiprocessing.SimpleQueue[list[float]]) -> None:
    answers.put(layer(x).flatten().tolist())


def test_a_forked_process_computes_the_same_after_calls_here() -> None:
    layer = SparseLinear.from_dense(pruned_linear(512, 256))
    x = torch.randn(300, 512)
    expected = layer(x)  # with all threads
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_call, args=(layer, x, answers))
    child.start()
    found = torch.tensor(answers.get()).view_as(expected)
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(found, expected)


def test_a_mapped_checkpoint_is_used_where_it_lies(tmp_path: Path) -> None:
    layer = SparseLinear.from_dense(pruned_linear(64, 32))
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    with torch.device("meta"):
        twin = SparseLinear(64, 32)
    twin.load_state_dict(torch.load(tmp_path / "layer.pt", mmap=True, weights_only=True), assign=True)
    x = torch.randn(3, 64)
    assert torch.equal(twin(x), layer(x))
    assert str(tmp_path) in Path("/proc/self/maps").read_text()


SHARDED = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
import sparse24
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(file, 2), rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 16))
for layer in (model[0], model[2]):
    sparse24.masks.prune_(layer.weight)
sparse24.to_sparse(model, when="always")
x = torch.randn(5, 64)
expected = model(x)
whole = {key: tensor.clone() for key, tensor in model.state_dict().items()}
mesh = init_device_mesh("cpu", (2,))
fully_shard(model[0], mesh=mesh)
fully_shard(model, mesh=mesh)
assert model[0].values.to_local().shape[0] < 33, "not sharded"
for _ in range(2):
    assert torch.equal(model(x), expected)
assert model[0].weight.shape == (33, 64)
state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
if rank == 0:
    assert all(torch.equal(state[key], tensor) for key, tensor in whole.items())
dist.barrier()
dist.destroy_process_group()
"""


def test_fully_shard_shards_the_values_and_computes_the_same(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(rank), str(tmp_path / "store")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def test_accelerates_way_of_offloading_is_followed() -> None:
    """Parameters are swapped in ``_parameters`` for meta ones and back, by name, around every call."""
    model = nn.Sequential(pruned_linear(32, 16), pruned_linear(16, 8))
    to_sparse(model, when="always")
    x = torch.randn(2, 32)
    expected = model(x)
    held = {
        (layer, name): tensor.detach().clone()
        for layer in model
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers())
    }

    def put(layer: nn.Module, name: str, tensor: torch.Tensor) -> None:
        if name in layer._buffers:
            layer._buffers[name] = tensor
        else:
            layer._parameters[name] = nn.Parameter(tensor, requires_grad=False)

    for (layer, name), tensor in held.items():
        put(layer, name, tensor.to("meta"))
    assert model[0].weight.device.type == "meta"

    def onload(layer: nn.Module, _: object) -> None:
        for (owner, name), tensor in held.items():
            if owner is layer:
                put(layer, name, tensor)

    def offload(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        for (owner, name), tensor in held.items():
            if owner is layer:
                put(layer, name, tensor.to("meta"))

    for layer in model:
        layer.register_forward_pre_hook(onload)
        layer.register_forward_hook(offload)
    for _ in range(2):
        assert torch.equal(model(x), expected)
    assert model[1].values.is_meta
