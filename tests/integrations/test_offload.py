"""Accelerate's dispatching and offloading around compressed layers: the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24

accelerate = pytest.importorskip("accelerate", reason="the extra dev brings it")
pytestmark = pytest.mark.filterwarnings("ignore")


def network(int8: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, 64), nn.ReLU(), nn.Linear(64, 8),
    ).eval()  # fmt: skip
    sparse24.Sparsifier(model, select=["*"]).prune()
    sparse24.to_sparse(model, when="always")
    if int8:
        sparse24.quantize(model, when="always")
    return model


def inputs() -> Tensor:
    return torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def to_cpu_memory(model: nn.Module, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def to_disk(model: nn.Module, folder: Path) -> Any:
    return accelerate.disk_offload(model, str(folder / "disk"), execution_device=torch.device("cpu"))


def dispatched(model: nn.Module, folder: Path) -> Any:
    devices = {name: "cpu" if name == "0" else "disk" for name, _ in model.named_children()}
    return accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=str(folder / "parts"))


@pytest.mark.parametrize("way", [to_cpu_memory, to_disk, dispatched])
@pytest.mark.parametrize("int8", [False, True])
def test_what_is_offloaded_computes_the_same(way: Any, int8: bool, tmp_path: Path) -> None:
    model = network(int8)
    with torch.inference_mode():
        expected = model(inputs())
        moved = way(model, tmp_path)
        for _ in range(2):  # what was fetched for a call is let go after it
            assert torch.equal(moved(inputs()), expected)
    values: Any = moved[3]._buffers.get("values", moved[3]._parameters.get("values"))
    assert values.device.type == "meta"
    accelerate.hooks.remove_hook_from_submodules(moved)


def test_a_checkpoint_is_loaded_and_dispatched(tmp_path: Path) -> None:
    model = network()
    accelerate.Accelerator(cpu=True).save_model(model, str(tmp_path))
    twin = network()
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            if tensor.is_floating_point():
                tensor.zero_()
    loaded = accelerate.load_checkpoint_and_dispatch(twin, str(tmp_path), device_map={"": "cpu"})
    with torch.inference_mode():
        assert torch.equal(loaded(inputs()), model(inputs()))
