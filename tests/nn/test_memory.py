"""One form of a weight in memory, before and after a call; conversion peaks little above the dense model."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn

from sparse24 import SparseConv2d, SparseLinear, to_sparse
from sparse24.nn import convert

from .layers import pruned_conv, pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")

GOALS = {torch.float32: 0.60, torch.bfloat16: 0.65, torch.float16: 0.65}


def storages(model: nn.Module) -> int:
    """Bytes of every tensor that a model holds, anywhere in its modules: shared memory once."""
    found: dict[int, int] = {}
    for module in model.modules():
        for value in (*module.__dict__.values(), *module._parameters.values(), *module._buffers.values()):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("dtype", list(GOALS))
def test_a_layer_holds_one_form_after_a_call(dtype: torch.dtype) -> None:
    dense = nn.Sequential(pruned_linear(256, 512), nn.GELU(), pruned_linear(512, 256)).to(dtype)
    before = storages(dense)
    x = torch.randn(40, 256, dtype=dtype)
    to_sparse(dense, when="always")
    with torch.no_grad():
        for tokens in (1, 7, 40):
            dense(x[:tokens])
    assert storages(dense) <= GOALS[dtype] * before
    for layer in (dense[0], dense[2]):
        assert isinstance(layer, SparseLinear)
        assert set(layer._parameters) == {"values", "bias"}
        assert set(layer._buffers) == {"indices"}
        assert not [name for name, value in vars(layer).items() if isinstance(value, Tensor)]


def test_a_convolution_holds_one_form_after_a_call() -> None:
    conv = SparseConv2d.from_dense(pruned_conv(in_channels=64, out_channels=64, kernel_size=3))
    own = storages(conv)
    conv(torch.randn(1, 64, 9, 9))
    conv(torch.randn(1, 64, 9, 9).contiguous(memory_format=torch.channels_last))
    assert storages(conv) == own


PEAK = """
import json, resource, sys, threading, time
import torch
from torch import nn
import sparse24
torch.set_num_threads(1)
def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
sparse24.to_sparse(nn.Sequential(nn.Linear(8, 8)))  # what is loaded at first use
begin = resident()
model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(24)))
for layer in model:
    sparse24.masks.prune_(layer.weight.data)
dense = resident() - begin
peak, stop = 0, threading.Event()
def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, resident() - begin)
        time.sleep(0.0005)
watcher = threading.Thread(target=watch); watcher.start()
report = sparse24.to_sparse(model, when="always")
stop.set(); watcher.join()
with torch.no_grad():
    model(torch.randn(4, 1024))
print(json.dumps({"dense": dense, "peak": peak, "after": resident() - begin, "done": len(report.done)}))
"""


def test_conversion_peaks_little_above_the_dense_network_and_gives_the_memory_back() -> None:
    ran = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["done"] == 24
    assert found["dense"] > 24 * 4 * 1024**2 * 0.9
    assert found["peak"] <= 1.1 * found["dense"]
    assert found["after"] <= 0.60 * found["dense"]


def test_dense_weights_are_let_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(pruned_linear(64, 64) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    build = convert.build

    def counted(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
        alive.append(sum(ref() is not None for ref in weights))
        return build(module, dtype)

    monkeypatch.setattr(convert, "build", counted)
    gc.disable()
    try:
        to_sparse(model, when="always")
    finally:
        gc.enable()
    assert alive == [4, 3, 2, 1]


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, Interrupted])
def test_a_failure_in_the_middle_restores_the_model(
    error: type[BaseException], held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(
        pruned_linear(64, 48),
        pruned_conv(in_channels=8, out_channels=8, kernel_size=3),
        nn.TransformerEncoderLayer(16, 2, 32),
        pruned_linear(32, 16, dtype=torch.bfloat16),
        pruned_linear(16, 8),
    ).eval()
    for parameter in model[2].parameters():
        if parameter.dim() == 2:
            parameter.data[:, ::2] = 0
    model[0].weight.requires_grad_(False)
    model[0].weight.tag = "kept"
    model[1].note = "mine"
    calls: list[int] = []
    model[3].register_forward_hook(lambda *_: calls.append(1))
    before = {key: (tensor.clone(), tensor.dtype) for key, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    wants = {name: p.requires_grad for name, p in model.named_parameters()}
    owned = dict(model.named_parameters()) if held else {}
    x = torch.randn(2, 3, 16)
    expected = model[2](x)
    build = convert.build
    made: list[int] = []

    def failing(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
        made.append(1)
        if len(made) == 5:
            raise error("in the middle")
        return build(module, dtype)

    monkeypatch.setattr(convert, "build", failing)
    with pytest.raises(error, match="in the middle"):
        to_sparse(model, when="always")
    assert len(made) == 5
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert after.keys() == before.keys()
    for key, (old, dtype) in before.items():
        assert after[key].dtype is dtype
        assert torch.equal(after[key], old)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wants
    assert model[0].weight.tag == "kept"
    assert model[1].note == "mine"
    model[3](torch.randn(1, 32, dtype=torch.bfloat16))
    assert calls == [1]
    assert torch.equal(model[2](x), expected)
    for name, parameter in owned.items():
        # What an optimizer holds is the model's again.
        assert dict(model.named_parameters())[name] is parameter
    monkeypatch.undo()
    assert len(to_sparse(model, when="always").done) == 7


def test_a_cast_that_fails_in_the_middle_loses_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(pruned_linear(64, 64), pruned_linear(64, 64))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    build = convert.build

    def failing(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
        if module is model[1]:
            raise MemoryError
        return build(module, dtype)

    monkeypatch.setattr(convert, "build", failing)
    with pytest.raises(MemoryError):
        to_sparse(model, torch.bfloat16, when="always")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
