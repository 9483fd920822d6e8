"""Exported networks: programs of torch.export on another CPU, ONNX in its runtime, traces; every layer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from reference import relative_error
from sparse24 import SparseLinear

from .layers import pruned_linear

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    # What torch's exporters say of themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Everything(nn.Module):
    """Layers that are replaced, and layers whose weights are compressed in their places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.linear = nn.Linear(16, 32)
        self.one = nn.Conv1d(32, 24, 3, padding=1)
        self.lstm = nn.LSTM(24, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.conv(x)).flatten(2).transpose(1, 2)
        tokens = self.linear(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        found: Tensor = self.lstm(self.one(tokens.transpose(1, 2)).transpose(1, 2))[0]
        return found


X = torch.linspace(-1, 1, 2 * 8 * 3 * 3).view(2, 8, 3, 3)


def sparse(how: str = "modules") -> nn.Module:
    model = Everything().eval()
    sparse24.Sparsifier(model, select=["*weight*"]).prune()
    report = sparse24.to_sparse(model, when="always", how=how)
    assert not report.left
    return model


def calls(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


PROGRAM = """
import sys, torch, sparse24
print(sparse24.backend("cpu"))
program, input = torch.export.load(sys.argv[1]), torch.load(sys.argv[2])
torch.save(program.module()(input), sys.argv[3])
"""


def test_a_program_runs_on_another_cpu(tmp_path: Path) -> None:
    """Its weights are in the canonical form: nothing in it belongs to the CPU that exported it."""
    model = sparse()
    program = torch.export.export(model, (X,))
    assert (
        sum("sparse24.linear" in name for name in calls(program)) == 5 + 1 + X[0, 0].numel()
    )  # LSTM's steps
    assert sum("sparse24.conv2d" in name for name in calls(program)) == 2
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save(X, tmp_path / "x.pt")
    paths = [str(tmp_path / name) for name in ("program.pt2", "x.pt", "y.pt")]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths],
        env={**os.environ, "SPARSE24_CPU_ISA": "scalar"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout.strip() == "scalar", ran.stderr
    with torch.no_grad():
        assert relative_error(torch.load(tmp_path / "y.pt"), model(X)) < 1e-5


@pytest.mark.parametrize(("how", "dynamo"), [("modules", True), ("modules", False), ("tensors", True)])
def test_onnx_computes_the_same(how: str, dynamo: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = sparse(how)
    with torch.no_grad():
        expected = model(X)
    torch.onnx.export(model, (X,), str(tmp_path / "m.onnx"), dynamo=dynamo)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert relative_error(torch.from_numpy(found), expected) < 1e-5


def size_of(model: nn.Module, path: Path) -> int:
    torch.onnx.export(model, (torch.randn(2, 1024),), str(path), dynamo=True, external_data=False)
    return path.stat().st_size


@pytest.mark.parametrize("storage", ["floating", "int8"])
def test_an_onnx_file_is_as_small_as_the_compressed_weight(storage: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    dense = nn.Sequential(pruned_linear(1024, 768), nn.ReLU()).eval()
    model = nn.Sequential(SparseLinear.from_dense(dense[0]), nn.ReLU()).eval()
    share = 0.57
    if storage == "int8":
        model[0].to_int8()
        share = 0.2
    assert size_of(model, tmp_path / "s.onnx") < share * size_of(dense, tmp_path / "d.onnx")
    session = runtime.InferenceSession(str(tmp_path / "s.onnx"))
    x = torch.randn(2, 1024)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative_error(torch.from_numpy(found), model(x)) < 1e-5


def test_onnx_refuses_int8_activations(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = nn.Sequential(SparseLinear.from_dense(pruned_linear(16, 8)).to_int8("dynamic")).eval()
    with pytest.raises(
        ValueError, match="takes int8 activations, which are not exported: export the network"
    ):
        torch.onnx.export(model, (torch.randn(2, 16),), str(tmp_path / "m.onnx"), dynamo=False)


@pytest.mark.parametrize("how", ["modules", "tensors"])
def test_traces_and_graphs(how: str) -> None:
    model = sparse(how)
    with torch.no_grad():
        expected = model(X)
        traced: Any = torch.jit.trace(model, X)
        assert relative_error(traced(X), expected) < 1e-5
        recorded = torch.fx.symbolic_trace(model)
        assert torch.equal(recorded(X), expected)
        program = torch.export.export(model, (X,))
        assert relative_error(program.module()(X), expected) < 1e-5


@pytest.mark.parametrize("storage", ["floating", "int8"])
def test_openvino_takes_the_file_and_its_setting_for_sparse_weights(storage: str, tmp_path: Path) -> None:
    """It folds the operators when it compiles; what it decompresses itself are int8 weights, on AMX alone."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = nn.Sequential(SparseLinear.from_dense(pruned_linear(256, 128)), nn.ReLU()).eval()
    if storage == "int8":
        model[0].to_int8()
    x = torch.randn(4, 256)
    torch.onnx.export(model, (x,), str(tmp_path / "m.onnx"), dynamo=True)
    core = openvino.Core()
    rate = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
    settings = {rate: 0.5, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(tmp_path / "m.onnx"), "CPU", settings)
    assert compiled.get_property(rate) == 0.5
    with torch.no_grad():
        assert relative_error(torch.from_numpy(compiled(x.numpy())[0]), model(x)) < 1e-5
