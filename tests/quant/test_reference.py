"""int8 networks in others' operators, and others' int8 weights in our layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from reference import relative_error
from sparse24.nn.kinds import ProductLayer
from sparse24.quant import from_compressed_tensors, quantize, reference

from .networks import NETWORKS, pruned

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("activations", ["static", "dynamic", None, "floating"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_reference_computes_the_same(name: str, activations: str | None) -> None:
    model, batches = NETWORKS[name]()
    if activations == "floating":
        sparse24.to_sparse(model, when="always", fuse=True)
    else:
        quantize(model, batches, activations=activations, when="always")
    twin = reference(model)
    assert not any(
        "Sparse" in type(m).__name__ for m in twin.modules() if "Attention" not in type(m).__name__
    )
    with torch.no_grad():
        for x in batches:
            wanted = model(x)
            assert (
                twin(x) - wanted
            ).abs().max() < 2e-3 * wanted.abs().max()  # a rounding that falls otherwise


@pytest.mark.parametrize("name", NETWORKS)
def test_a_reference_of_float8_layers_computes_the_same(name: str) -> None:
    model, batches = NETWORKS[name]()
    sparse24.to_sparse(model, when="always")
    for module in model.modules():
        if isinstance(module, ProductLayer):
            module.to_float8()
    twin = reference(model)
    with torch.no_grad():
        for x in batches:
            assert relative_error(twin(x), model(x)) <= 1e-2  # a rounding that falls otherwise


def test_layers_are_left_alone_in_the_model_itself() -> None:
    model, batches = NETWORKS["images"]()
    quantize(model, batches, when="always")
    before = {n: id(m) for n, m in model.named_modules()}
    reference(model)
    assert {n: id(m) for n, m in model.named_modules()} == before
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, not int"):
        reference(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"put it into nn\.Sequential"):
        reference(sparse24.SparseLinear(8, 8))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's exporter, of its own
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_quantizes_and_dequantizes(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, batches = NETWORKS[name]()
    quantize(model, batches, activations="static", when="always")
    path = tmp_path / "model.onnx"
    torch.onnx.export(reference(model), (batches[0],), path, dynamo=True, verbose=False)
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    layers = sum(isinstance(m, ProductLayer) for m in model.modules())
    assert kinds.count("DequantizeLinear") >= 2 * layers - 2  # q, k and v share an input
    int8 = [
        each for each in graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
    ]
    assert len(int8) == layers
    for each in int8:
        assert sparse24.is_sparse24(torch.from_numpy(onnx.numpy_helper.to_array(each).copy()))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: batches[0].numpy()})
    wanted = model(batches[0]).detach()
    assert (torch.from_numpy(got) - wanted).abs().max() < 0.02 * wanted.abs().max()


def quantized_as_others_do(weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def bitmask(weight: Tensor) -> dict[str, Tensor]:
    mask = weight != 0
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    bits = (mask.view(len(weight), -1, 8) * weights).sum(-1).to(torch.uint8)
    return {
        "compressed": weight[mask].view(len(weight), -1),
        "bitmask": bits,
        "shape": torch.tensor(weight.shape),
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_int8_weights_of_others_load(static: bool, packed: bool) -> None:
    model = pruned(nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)))
    state: dict[str, Any] = {}
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        made = quantized_as_others_do(layer.weight.detach())
        if packed:
            dense = made.pop("weight")
            dense[layer.weight == 0] = 0
            made |= bitmask(torch.where((layer.weight != 0) & (dense == 0), 1, dense).to(torch.int8))
        state |= {f"{name}.{key}": value for key, value in made.items()}
        state[f"{name}.bias"] = layer.bias.detach()
        state[f"{name}.weight_zero_point"] = torch.zeros(len(layer.weight), 1, dtype=torch.int8)
        if static:
            state[f"{name}.input_scale"] = torch.tensor([0.05])
    wanted = copy.deepcopy(model)
    sparse24.to_sparse(model, when="always")
    model.load_state_dict(from_compressed_tensors(state))
    assert model[0].is_int8
    x = torch.randn(5, 32)
    lost = (model(x) - wanted(x)).detach().abs().max()
    assert lost < (0.1 if static or packed else 0.02)


def test_int8_weights_that_are_not_2_4_are_dequantized() -> None:
    weight = torch.randn(8, 16)
    state = {f"a.{key}": value for key, value in quantized_as_others_do(weight).items()}
    (found,) = from_compressed_tensors(state | {"b": 3}).keys() - {"b"}
    assert found == "a.weight"
    assert torch.allclose(from_compressed_tensors(state)["a.weight"], weight, atol=0.02)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"a.weight_zero_point": torch.ones(8)}, "a.weight_zero_point is not zero: .* pruned weights"),
        ({"a.weight_scale": torch.ones(8, 4)}, r"a.weight_scale is \(8, 4\): .* groups and blocks cannot"),
        ({"a.weight_scale": None}, "there is no a.weight_scale"),
        ({"c.compressed": torch.ones(2, 4)}, "has no c.bitmask"),
        (
            {
                "c.compressed": torch.ones(2, 4),
                "c.bitmask": torch.ones(2, 1, dtype=torch.uint8),
                "c.shape": [2, 8],
            },
            "c.bitmask keeps 2 weights of 2x8, and c.compressed holds 8",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_taken_over_is_named(change: dict[str, Any], text: str) -> None:
    state = {f"a.{key}": value for key, value in quantized_as_others_do(torch.randn(8, 16)).items()} | change
    with pytest.raises(ValueError, match=text):
        from_compressed_tensors({key: value for key, value in state.items() if value is not None})
