"""int8 after training: outputs, scales, folding, and models that are left as they were."""

from __future__ import annotations

import copy
import functools
import io
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from sparse24.nn.kinds import ProductLayer
from sparse24.quant import quantize, watching
from sparse24.quant import quantize as entry

from .networks import NETWORKS, Encoder, encoder, images, pruned, same, state, volumes

pytestmark = pytest.mark.usefixtures("seeded")


def error(model: nn.Module, batches: list[Any], wanted: list[Tensor]) -> float:
    with torch.no_grad():
        lost = sum(float((model(x) - y).square().sum()) for x, y in zip(batches, wanted, strict=True))
    return math.sqrt(lost / sum(float(y.square().sum()) for y in wanted))


def outputs(model: nn.Module, batches: list[Any]) -> list[Tensor]:
    with torch.no_grad():
        return [model(x) for x in batches]


def sparse_layers(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, ProductLayer)}


@pytest.mark.parametrize("is_converted", [True, False])
@pytest.mark.parametrize("activations", ["dynamic", "static", None])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_near(name: str, activations: str | None, is_converted: bool) -> None:
    model, batches = NETWORKS[name]()
    wanted = outputs(model, batches)
    if is_converted:
        sparse24.to_sparse(model, when="always")
    report = quantize(model, batches, activations=activations, when="always")
    layers = sparse_layers(model)
    assert {row.name for row in report.done} == set(layers)
    assert all(layer.is_int8 for layer in layers.values())
    assert error(model, batches, wanted) < 0.03
    for layer in layers.values():
        assert sparse24.is_sparse24(layer.weight.to_dense())
        scale = layer._buffers.get("input_scale")
        assert (scale is None) == (activations is None)
        assert scale is None or bool(scale > 0) == (activations == "static")


@pytest.mark.parametrize("method", ["max", "percentile", "mse", "entropy"])
def test_static_scales_follow_the_method(method: str) -> None:
    model, batches = encoder()
    wanted = outputs(model, batches)
    seen: dict[str, float] = {}
    for name, layer in (("up", model.up), ("out", model.out)):
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(
                name, max(seen.get(name, 0), float(args[0].abs().max()))
            )
        )
    quantize(model, batches, method, activations="static", when="always", percentile=99.0)
    for name, largest in seen.items():
        scale = float(model.get_submodule(name).input_scale) * 127
        assert scale == pytest.approx(largest) if method == "max" else scale <= largest * 1.0001
    assert error(model, batches, wanted) < (0.5 if method == "entropy" else 0.1)


def test_without_batches_nothing_needs_them() -> None:
    model, batches = encoder()
    wanted = outputs(model, batches)
    report = quantize(model)
    assert len(report.done) == 7
    assert error(model, batches, wanted) < 0.03


def test_the_state_dict_loads_into_a_floating_network() -> None:
    model, batches = images()
    twin = copy.deepcopy(model)
    quantize(model, batches, activations="static", fold=False)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    sparse24.to_sparse(twin, when="always")
    twin.load_state_dict(torch.load(file))
    assert all(
        torch.equal(a, b) for a, b in zip(outputs(model, batches), outputs(twin, batches), strict=True)
    )


# ---- folding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_converted", [True, False])
@pytest.mark.parametrize(
    ("network", "gone", "left"),
    [(images, {"stem.1", "norm", "plain"}, {"kept"}), (volumes, {"stem.1"}, set())],  # "kept": read twice
)
def test_batch_norms_fold_where_outputs_stay(
    network: Any, gone: set[str], left: set[str], is_converted: bool
) -> None:
    model, batches = network()
    wanted = outputs(model, batches)
    if is_converted:
        sparse24.to_sparse(model, when="always")
    report = quantize(model, batches, activations=None, when="always")
    folded = {row.name: row.kind for row in report if row.reason.startswith("folded")}
    assert folded.keys() == gone
    assert set(folded.values()) == {"BatchNorm3d" if network is volumes else "BatchNorm2d"}
    assert {n for n, m in model.named_modules() if "BatchNorm" in type(m).__name__} == left
    assert error(model, batches, wanted) < 0.01


def test_folding_can_be_left_out() -> None:
    model, batches = images()
    quantize(model, batches, fold=False)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 4


def test_outliers_move_into_weights_where_only_they_are_read() -> None:
    model, batches = encoder()
    wanted = outputs(model, batches)
    plain, smooth = copy.deepcopy(model), copy.deepcopy(model)
    quantize(plain, batches, activations="static", when="always")
    quantize(smooth, batches, activations="static", when="always", smooth=0.5)
    assert not torch.equal(smooth.norm2.weight, model.norm2.weight)
    assert torch.equal(smooth.post.weight, model.post.weight)  # added to, too
    assert error(smooth, batches, wanted) < 0.7 * error(plain, batches, wanted)


# ---- what stays floating ------------------------------------------------------------------------------


def test_layers_stay_floating_by_name_by_noise_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = encoder()
    kept = quantize(copy.deepcopy(model), batches, skip=["attention.*"], when="always")
    report = {row.name: row for row in kept}
    assert report["attention.q_proj"].reason == "kept floating by skip"
    assert report["up"].done
    noisy = {row.name: row for row in quantize(copy.deepcopy(model), batches, when="always", min_sqnr=500)}
    assert not any(row.done for row in noisy.values())
    assert "below 500: stays floating" in noisy["up"].reason
    some = quantize(copy.deepcopy(model), batches, when="always", budget=0.3)
    spared = [row for row in some if "stays floating by budget" in row.reason]
    assert spared
    assert max(map(sqnr, spared)) <= min(sqnr(row) for row in some.done)
    monkeypatch.setattr(entry_module().Chooser, "measure", lambda *_: sparse24.timing.Pair(1.0, 1.04))
    slow = copy.deepcopy(model)
    report = {row.name: row for row in quantize(slow, batches)}
    assert "floating 1 s, int8 1.04 s: stays floating" in report["up"].reason
    assert not any(layer.is_int8 for layer in sparse_layers(slow).values())
    monkeypatch.setattr(entry_module().Chooser, "measure", lambda *_: sparse24.timing.Pair(1.0, 1.02))
    assert all(row.done for row in quantize(model, batches))


def sqnr(row: sparse24.Row) -> float:
    return float(row.reason.split("SQNR ")[1].split()[0])


def entry_module() -> Any:
    return sys.modules["sparse24.quant.quantize"]


def called(model: Any, x: Tensor) -> Tensor:
    return model["a"](x)


def test_what_no_batch_reaches_has_no_static_scale() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model.forward = functools.partial(called, model)  # type: ignore[method-assign]
    pruned(model)
    done = quantize(model, [torch.randn(3, 16)], activations="static", when="always")
    report = {row.name: row for row in done}
    assert report["a"].done
    assert "no batch reached it" in report["b"].reason


def test_times_are_measured_on_a_cpu() -> None:
    model, batches = encoder()
    rows = [row for row in quantize(model, batches) if row.name == "up"]
    assert "SQNR" in rows[0].reason
    assert "floating" in rows[0].reason
    assert ", int8 " in rows[0].reason


def test_an_input_of_zeros_gets_the_scale_one() -> None:
    model = pruned(nn.Sequential(nn.Linear(16, 16), nn.ReLU()))
    quantize(model, [torch.zeros(2, 16)], activations="static", when="always")
    assert float(model[0].input_scale) == 1.0


def test_16_bits_stay_16_bits() -> None:
    model, batches = encoder()
    model.bfloat16()
    batches = [x.bfloat16() for x in batches]
    wanted = outputs(model, batches)
    quantize(model, batches, when="always")
    assert outputs(model, batches)[0].dtype == torch.bfloat16
    assert error(model, batches, wanted) < 0.05


# ---- refusals, and failures ---------------------------------------------------------------------------


def hurt(model: nn.Module) -> nn.Module:
    model.up.weight.data[0, model.up.weight[0].nonzero()[0, 0]] = torch.inf
    return model


def refusals() -> dict[str, tuple[Any, dict[str, Any], type[Exception], str]]:
    model, batches = encoder()
    nan = [batches[0].clone().fill_(torch.nan)]
    done = copy.deepcopy(model)
    quantize(done)
    floats = copy.deepcopy(model)
    sparse24.to_sparse(floats, when="always")
    for layer in floats.modules():
        if isinstance(layer, sparse24.SparseLinear):
            layer.to_float8()
    return {
        "no module": (3, {}, TypeError, "needs a torch.nn.Module, not int"),
        "method": (model, {"method": "best"}, ValueError, "method 'best' is not one of max"),
        "activations": (model, {"activations": "int4"}, ValueError, "must be 'dynamic', 'static' or"),
        "zero point": (model, {"symmetric": False}, ValueError, "zero point a pruned weight would be"),
        "when": (model, {"when": "never"}, ValueError, "when must be 'faster' or 'always'"),
        "percentile": (model, {"percentile": 20}, ValueError, "above 50"),
        "smooth": (model, {"batches": batches, "smooth": 2}, ValueError, "from 0 to 1, not 2"),
        "static alone": (model, {"activations": "static"}, ValueError, "needs batches to"),
        "budget": (model, {"batches": batches, "budget": 1.5}, ValueError, "share of weights"),
        "budget alone": (model, {"budget": 0.1}, ValueError, "budget needs batches"),
        "smooth alone": (model, {"smooth": 0.5}, ValueError, "needs batches to"),
        "empty": (model, {"batches": []}, ValueError, "at least one batch"),
        "shape": (model, {"batches": [torch.randn(2, 3)]}, ValueError, "cannot be called with the first"),
        "NaN": (model, {"batches": nan, "activations": "static"}, ValueError, "hold.* NaN or Inf"),
        "Inf": (hurt(copy.deepcopy(model)), {}, ValueError, "up: only finite weights"),
        "dense": (Encoder(), {}, ValueError, "no 2:4 layer: prune it first"),
        "int8": (done, {}, ValueError, "is int8 already"),
        "float8": (floats, {}, ValueError, "is float8 already"),
        "skip": (model, {"skip": ["nothing"]}, ValueError, "matches no compressed layer"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_bad_input_is_refused_and_changes_nothing(case: str) -> None:
    model, options, failure, text = refusals()[case]
    before = state(model) if isinstance(model, nn.Module) else {}
    with pytest.raises(failure, match=text):
        quantize(model, **options)
    if isinstance(model, nn.Module):
        assert same(before, model)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("is_converted", [True, False])
def test_an_interruption_changes_nothing(
    network: str, is_converted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = NETWORKS[network]()
    if is_converted:
        sparse24.to_sparse(model, when="always")
    before, wanted = state(model), outputs(model, batches)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry_module(), "compare", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, batches, activations="static", smooth=0.5)
    assert same(before, model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, batches), wanted, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_is_int8_already_is_told_beside_the_rest() -> None:
    model, batches = encoder()
    sparse24.to_sparse(model, when="always")
    model.up.to_int8()
    report = {row.name: row for row in quantize(model, batches, when="always")}
    assert report["up"].reason == "int8 already"
    assert report["down"].done


def test_names_of_the_module() -> None:
    assert entry is sparse24.quantize
    assert watching.Noise(0.0, 0.0).sqnr == math.inf
    assert watching.Noise(0.0, 1.0).sqnr == -math.inf
    assert watching.Noise(100.0, 1.0).sqnr == pytest.approx(20)
