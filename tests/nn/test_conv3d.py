"""SparseConv3d against the dense layer that it stands in for."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse24
from reference import ACTIVATIONS, TOLERANCE, assert_matches, prune_layers, relative_error
from sparse24 import SparseConv3d

from .layers import DTYPES, INT8_WAYS, assert_same_state, exact_state, saved

pytestmark = pytest.mark.usefixtures("seeded")


def conv(in_channels: int, out_channels: int, kernel_size: Any, **options: Any) -> dict[str, Any]:
    return {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size} | options


CONVOLUTIONS = [
    conv(8, 6, 3),
    conv(8, 6, 1, bias=False),
    conv(7, 5, 3, padding=1),
    conv(7, 5, (1, 3, 3), padding=(0, 1, 1)),
    conv(6, 5, (3, 1, 1), padding=(1, 0, 0)),
    conv(12, 9, (2, 3, 5), stride=(2, 1, 3), padding=(1, 0, 2)),
    conv(12, 8, 3, groups=2, dilation=(2, 1, 2), padding=2),
    conv(10, 4, 3, groups=2, padding="valid"),
    conv(6, 6, 3, groups=6, padding=1),
    conv(9, 4, (3, 5, 3), padding="same", dilation=(1, 1, 2)),
    conv(9, 4, (2, 4, 3), padding="same"),
    conv(9, 4, 3, padding=(1, 2, 0), padding_mode="reflect"),
    conv(9, 4, 3, padding=1, padding_mode="circular"),
]


def pruned(**options: Any) -> nn.Conv3d:
    return prune_layers(nn.Conv3d(**options))


def small(**options: Any) -> nn.Conv3d:
    return pruned(in_channels=8, out_channels=12, kernel_size=3, padding=1, **options)


def ids(options: dict[str, Any]) -> str:
    return "-".join(map(str, options.values()))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=ids)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_it_matches_the_dense_module(options: dict[str, Any], layout: torch.memory_format) -> None:
    dense = pruned(**options)
    sparse = SparseConv3d.from_dense(dense)
    x = torch.randn(2, dense.in_channels, 7, 8, 9).contiguous(memory_format=layout)
    with torch.no_grad():
        output = sparse(x)
        expected = copy.deepcopy(dense).double()(x.double())
    assert_matches(output, expected)
    assert output.is_contiguous(memory_format=layout)
    assert torch.equal(sparse.weight, dense.weight)
    back = sparse.to_dense()
    assert_same_state(back, exact_state(dense))
    assert repr(back) == repr(dense)
    assert repr(sparse).replace("'", "") == repr(dense).replace("Conv3d", "SparseConv3d")
    if options.get("padding") != "same" and dense.padding_mode == "zeros":
        geometry = (dense.stride, dense.padding, dense.dilation, dense.groups)
        assert_matches(F.conv3d(x, sparse.weight, dense.bias, *geometry), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "is_flat"),
    [
        (1, 1, 0, True),
        ((3, 1, 1), (2, 1, 1), (1, 0, 0), True),
        ((1, 3, 1), 1, 0, False),
        (1, 2, 0, False),
        (1, 1, 1, False),
    ],
)
def test_kernels_of_one_pixel_copy_nothing(kernel: Any, stride: Any, padding: Any, is_flat: bool) -> None:
    dense = prune_layers(nn.Conv3d(9, 12, kernel, stride, padding))
    sparse = SparseConv3d.from_dense(dense)
    assert sparse._is_flat == is_flat
    x = torch.randn(2, 9, 4, 5, 6)
    assert_matches(sparse(x), copy.deepcopy(dense).double()(x.double()))


def test_unbatched_and_empty_inputs() -> None:
    dense = small()
    sparse = SparseConv3d.from_dense(dense)
    x = torch.randn(8, 3, 5, 6)
    assert_matches(sparse(x), dense.double()(x.double()))
    assert sparse(torch.randn(0, 8, 3, 5, 6)).shape == (0, 12, 3, 5, 6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_dtypes_and_activations(dtype: torch.dtype, activation: str) -> None:
    dense = small(dtype=dtype)
    sparse = SparseConv3d(8, 12, 3, padding=1, dtype=dtype, activation=activation)
    sparse.load_state_dict(SparseConv3d.from_dense(dense).state_dict())
    x = torch.randn(2, 8, 4, 5, 6).to(dtype)
    assert_matches(sparse(x), ACTIVATIONS[activation](copy.deepcopy(dense).double()(x.double())))
    if activation == "relu":
        with pytest.raises(ValueError, match="fuses activation='relu'"):
            sparse.to_dense()


def test_autocast_and_gradients() -> None:
    dense = small()
    sparse = SparseConv3d.from_dense(dense).requires_grad_()
    x = torch.randn(2, 8, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse(x).dtype == torch.bfloat16
    gradients = []
    for layer in (sparse, copy.deepcopy(dense).double()):
        each = x.to(layer.bias.dtype, copy=True).requires_grad_()
        layer(each).square().sum().backward()
        gradients.append((each.grad, layer.bias.grad))
    for ours, theirs in zip(*gradients, strict=True):
        assert relative_error(ours, theirs) <= 4 * TOLERANCE[torch.float32]


def test_what_it_refuses() -> None:
    sparse = SparseConv3d.from_dense(small())
    with pytest.raises(ValueError, match=r"input must be \[N, 8, D, H, W\] .* not \(2, 7, 4, 5, 6\)"):
        sparse(torch.randn(2, 7, 4, 5, 6))
    with pytest.raises(ValueError, match=r"an input of 2 planes, padding included, .* window of 3"):
        SparseConv3d(8, 8, 3)(torch.randn(1, 8, 2, 5, 5))
    with pytest.raises(ValueError, match=r"row 0, tap \(0, 0, 0\), channels 0-3"):
        SparseConv3d.from_dense(nn.Conv3d(8, 8, 3))
    with pytest.raises(TypeError, match=r"from_dense needs an nn\.Conv3d, not Conv2d"):
        SparseConv3d.from_dense(nn.Conv2d(8, 8, 3))


@pytest.mark.parametrize("way", INT8_WAYS)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1)])
def test_int8(way: str, kernel: tuple[int, int, int]) -> None:
    dense = pruned(in_channels=8, out_channels=12, kernel_size=kernel, padding=tuple(k // 2 for k in kernel))
    sparse = SparseConv3d.from_dense(dense).to_int8(**INT8_WAYS[way])
    x = torch.randn(2, 8, 4, 5, 6).clamp(-3, 3)
    assert relative_error(sparse(x), dense(x)) < 0.03
    again = SparseConv3d(8, 12, kernel, padding=tuple(k // 2 for k in kernel))
    again.load_state_dict(saved(sparse))
    assert torch.equal(again(x), sparse(x))
    own = x.clone().requires_grad_()
    sparse(own).sum().backward()
    expected = torch.autograd.grad(dense(own).sum(), own)[0]
    assert relative_error(own.grad, expected) < 0.03


class Video(nn.Module):
    """A small network of the kind, whose subclass of Conv3d pads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv3d(16, 24, 3, padding=1), nn.ReLU(), PaddedConv3d(24, 16, 3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.body(self.stem(x)).mean((2, 3, 4)))


class PaddedConv3d(nn.Conv3d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.conv3d(F.pad(input, (1,) * 6), self.weight, self.bias, self.stride)


NAMES = ["body.0", "body.2"]


def network() -> Video:
    model = Video().eval()
    report = sparse24.Sparsifier(model).prune()
    assert [row.name for row in report.done] == NAMES
    return model


@pytest.mark.parametrize("how", ["modules", "tensors"])
def test_networks_are_pruned_converted_saved_and_loaded(how: Any, tmp_path: Path) -> None:
    model, x = network(), torch.randn(2, 3, 4, 6, 6)
    expected = copy.deepcopy(model).double()(x.double())
    sparse = copy.deepcopy(model)
    report = sparse24.to_sparse(sparse, when="always", how=how)
    assert [row.name for row in report.done] == NAMES
    assert type(sparse.body[0]).__name__ == ("SparseConv3d" if how == "modules" else "Conv3d")
    assert_matches(sparse(x), expected)
    sparse24.save(sparse, tmp_path / "sparse.safetensors")
    for target in (Video().eval(), copy.deepcopy(sparse)):
        sparse24.load(target, tmp_path / "sparse.safetensors")
        assert torch.equal(target(x), sparse(x))
    with torch.device("meta"):
        shell = Video().eval()
    sparse24.load(shell, tmp_path / "sparse.safetensors")
    assert torch.equal(shell(x), sparse(x))
    dense = Video().eval()
    sparse24.to_dense(dense)  # which lets it load
    dense.load_state_dict(sparse.state_dict())
    assert torch.equal(dense.body[0].weight, model.body[0].weight)
    sparse24.to_dense(sparse)
    assert torch.equal(sparse(x), model(x))


def test_faster_times_it_and_the_rule_knows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path))
    model = network()
    report = sparse24.to_sparse(copy.deepcopy(model), example_inputs=torch.randn(2, 3, 4, 6, 6))
    row = next(row for row in report if row.name == "body.0")
    assert "at 2x16x4x6x6" in row.reason
    by_rule = {row.name: row.reason for row in sparse24.to_sparse(model)}
    assert "3 input channels a group, below 8" in by_rule["stem"] or not by_rule["stem"].startswith("by rule")
    assert by_rule["body.0"].startswith("by rule")


def test_oneshot_calibrates_it() -> None:
    model = Video().eval()
    x = [torch.randn(4, 3, 4, 6, 6)]
    model = model.double().float()
    by_magnitude = copy.deepcopy(model)
    with torch.no_grad():
        target = model(x[0])
    way: dict[str, Any] = {"reconstruct": None, "select": ["body.0"]}
    sparse24.oneshot(by_magnitude, x, method="magnitude", refit=0, bias=False, **way)
    sparse24.oneshot(model, x, method="sparsegpt", **way)
    assert sparse24.is_sparse24(model.body[0].weight)
    assert relative_error(model(x[0]), target) < relative_error(by_magnitude(x[0]), target)
    window = ((2, 3, 3), (2, 1, 1), (1, 0, 1), (2, 1, 1))
    padded = nn.Sequential(nn.Conv3d(12, 8, *window, groups=2, padding_mode="circular"))
    report = sparse24.oneshot(padded, [torch.randn(2, 12, 5, 7, 7)], reconstruct=None, select=["0"])
    assert report.done


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_computes_the_same(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    x = torch.randn(2, 8, 4, 5, 6)
    for options in ({"padding": 1}, {"padding": (1, 2, 0), "padding_mode": "circular"}):
        layer = SparseConv3d.from_dense(
            pruned(in_channels=8, out_channels=12, kernel_size=3, **options)
        ).eval()
        torch.onnx.export(layer, (x,), str(tmp_path / "m.onnx"), dynamo=True)
        session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert relative_error(torch.from_numpy(found), layer(x)) < 1e-5


def test_quantize_makes_it_int8() -> None:
    model, x = network(), torch.randn(4, 3, 4, 6, 6)
    sparse24.to_sparse(model, when="always")
    expected = model(x)
    for activations in ("static", "dynamic"):
        quantized = copy.deepcopy(model)
        report = sparse24.quantize(quantized, [x], activations=activations, when="always")
        assert "body.0" in [row.name for row in report.done]
        assert quantized.body[0].is_int8
        assert relative_error(quantized(x), expected) < 0.05


def test_copies_traces_compiles_and_exports() -> None:
    sparse = SparseConv3d.from_dense(small()).eval()
    x = torch.randn(2, 8, 4, 5, 6)
    with torch.no_grad():
        expected = sparse(x)
        file = io.BytesIO()
        torch.save(sparse, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
        assert torch.equal(copy.deepcopy(sparse)(x), expected)
        model = nn.Sequential(sparse, nn.ReLU())
        assert torch.equal(torch.fx.symbolic_trace(model)(x), expected.relu())
        torch.testing.assert_close(torch.fx.symbolic_trace(sparse)(x), expected)
        compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        program = torch.export.export(sparse, (x,))
        torch.testing.assert_close(program.module()(x), expected)
        names = {str(node.target) for node in program.graph.nodes}
        assert any("sparse24.conv2d" in name for name in names)
