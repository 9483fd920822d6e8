"""Errors of single layers, and what may stay dense for them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from sparse24.calibrated import Sensitivity, oneshot
from sparse24.timing import Pair

from .networks import NETWORKS, mlp, network

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("name", NETWORKS)
def test_errors_are_those_of_each_layer_alone(name: str) -> None:
    model, batches = network(name)
    model.eval()
    twin, seen = copy.deepcopy(model), {}
    report = sparse24.sensitivity(model, batches, times=False)
    assert all(torch.equal(p, twin.get_parameter(n)) for n, p in model.named_parameters())
    pruned = copy.deepcopy(model)
    sparse24.Sparsifier(pruned).prune()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for layer in report.errors:
            lost = size = 0.0

            def compare(module: nn.Module, args: Any, kwargs: Any, output: Any, layer: str = layer) -> None:
                nonlocal lost, size
                other = pruned.get_submodule(layer).forward(*args, **kwargs)
                one, two = (x[0] if isinstance(x, tuple) else x for x in (output, other))
                lost += float((one - two).double().square().sum())
                size += float(one.double().square().sum())

            handle = twin.get_submodule(layer).register_forward_hook(compare, with_kwargs=True)
            with torch.no_grad():
                for batch in batches:
                    twin(**batch) if isinstance(batch, dict) else twin(
                        *batch if isinstance(batch, tuple) else [batch]
                    )
            handle.remove()
            seen[layer] = lost / size
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert seen
    assert report.errors == pytest.approx(seen, rel=1e-4)
    assert "pruned" not in str(report).splitlines()[0]  # nothing was


def made(errors: dict[str, float], times: dict[str, Pair], whole: float = math.nan) -> Sensitivity:
    costs = {name: times[name].dense - times[name].sparse if times else 1.0 for name in errors}
    return Sensitivity((), "measured", errors, times, whole, costs)


def test_a_budget_goes_to_what_costs_most_accuracy_for_least_time() -> None:
    errors = {"bad": 0.5, "good": 0.1, "slow": 0.2, "big": 0.4}
    times = {"bad": Pair(2.0, 1.0), "good": Pair(3.0, 2.0), "slow": Pair(1.0, 1.5), "big": Pair(9.0, 1.0)}
    report = made(errors, times, 20.0)
    assert report.skip(0) == ["slow"]
    assert report.skip(0.1) == ["slow", "bad"]  # of 10 s saved, 1
    assert report.skip(0.2) == ["slow", "bad", "good"]
    assert set(report.skip(1)) == set(errors)
    first, *_, last = report.trade_off()
    assert first.error == pytest.approx(0.3)
    assert first.speed == pytest.approx(20 / (20 - 9.5))
    assert last == (("slow", "bad", "good", "big"), 0.0, 1.0)


@pytest.mark.parametrize("budget", [-0.1, 1.5, math.nan])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        made({"a": 0.1}, {}).skip(budget)


def test_times_are_measured_and_the_report_shows_the_trade(tmp_path: Path) -> None:
    model, batches = network("mlp")
    said: list[str] = []
    report = sparse24.sensitivity(model, batches[:2], progress=said.append)
    assert set(report.times) == {"0", "2"}
    assert all(pair.dense > 0 and pair.sparse > 0 for pair in report.times.values())
    assert report.whole > 0
    text = str(report)
    assert "predicted speed" in text
    assert "output error" in text
    assert "2 of 2" in text
    assert any("batch 2 of 2" in line for line in said)
    report.plot(tmp_path / "trade.png")
    assert (tmp_path / "trade.png").stat().st_size > 1000


def test_a_budget_for_oneshot_leaves_layers_dense() -> None:
    model, batches = network("stack")
    names = sparse24.sensitivity(copy.deepcopy(model), batches, times=False)
    worst = names.skip(0.3)
    report = oneshot(model, batches, reconstruct=None, skip=worst)
    left = {row.name for row in report.left if row.reason == "kept dense by skip"}
    assert left == {f"{name}.weight" for name in worst}
    assert left
    twin, batches = network("mlp")
    assert not oneshot(twin, batches, reconstruct=None, skip=1.0).done
    with pytest.raises(ValueError, match="from 0 to 1"):
        oneshot(twin, batches, skip=7.0)


def test_bad_input_is_refused_and_the_model_unchanged() -> None:
    model = mlp()
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, not int"):
        sparse24.sensitivity(3, [torch.randn(2, 16)])
    with pytest.raises(ValueError, match="at least one batch"):
        sparse24.sensitivity(model, [])
    with pytest.raises(ValueError, match="without labels"):
        sparse24.sensitivity(model, [torch.randn(2, 5)])
    hurt = torch.randn(2, 16)
    hurt[0, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="outputs of 0 hold NaN or Inf"):
        sparse24.sensitivity(model, [hurt], times=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
