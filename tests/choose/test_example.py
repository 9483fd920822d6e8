"""Example inputs: which layers they call, with what, and that running them leaves no trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from reference import assert_matches, prune_layers
from sparse24 import SparseMultiheadAttention
from sparse24.choose import measured, rules
from sparse24.nn.convert import Verdict

from .clocks import Noisy, mlp, set_clock

pytestmark = pytest.mark.usefixtures("seeded")

MS = 1e-3


def test_calls_with_positional_and_named_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    model, x = Noisy(), torch.ones(4, 32)
    sparse24.to_sparse(model, example_inputs=[(x,), {"x": x[:2], "scale": 2.0}])
    assert [shape for *_, shape, _ in clock.asked] == [(4, 32), (2, 32)]


def test_a_transposed_layer_has_figures_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils", reason="transformers brings Conv1D").Conv1D
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    model = prune_layers(nn.Sequential(conv1d(32, 32), nn.Linear(32, 32), conv1d(32, 32))).eval()
    report = sparse24.to_sparse(model, example_inputs=torch.ones(3, 32))
    assert [row.reason for row in report.done] == ["dense 2 s, sparse 1 s at 3 tokens"] * 3
    assert [dense for dense, *_ in clock.asked] == ["Conv1D", "Linear"]


def test_a_layer_that_no_example_calls_goes_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, lambda out, n: (2 * MS, MS))
    monkeypatch.setattr(rules, "verdict", lambda module, dtype=None: Verdict(False, "by rule"))
    report = {row.name: row for row in sparse24.to_sparse(Noisy(), example_inputs=torch.ones(4, 32))}
    assert report["layer"].reason == "dense 2 ms, sparse 1 ms at 4 tokens, 2 times"
    assert not report["unused"].done
    assert report["unused"].reason == "not called by example_inputs; by rule"


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_and_the_random_numbers_are_as_they_were(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, lambda out, n: (1.0, 2.0))
    monkeypatch.setattr(rules, "verdict", lambda module, dtype=None: Verdict(False, "by rule"))
    model = Noisy().train()
    model.drop.eval()
    model.broken = broken
    state, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    random, fused = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    if broken:
        with pytest.raises(ArithmeticError, match="the model has failed"):
            sparse24.to_sparse(model, example_inputs=torch.ones(4, 32))
    else:
        sparse24.to_sparse(model, example_inputs=torch.ones(4, 32))
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert dict(model.named_modules()) == modules
    assert all(
        torch.equal(now, then) for now, then in zip(model.state_dict().values(), state.values(), strict=True)
    )
    assert (model.training, model.norm.training, model.drop.training) == (True, True, False)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_attention_is_one_layer_and_sees_that_it_attends_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    seen: list[Any] = []
    measure = clock.measure

    def looking(chooser: measured.Chooser, dense: Any, sparse: Any, call: Any) -> Any:
        args, _ = call.arguments(torch.Generator())
        seen.append(len({id(x) for x in args[:3]}))
        return measure(chooser, dense, sparse, call)

    monkeypatch.setattr(clock, "measure", looking)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = prune_layers(nn.TransformerEncoder(layer, 1)).eval()
    x = torch.randn(2, 8, 32)
    expected = encoder(x)
    report = sparse24.to_sparse(encoder, example_inputs=x)
    assert [row.name for row in report.done] == ["layers.0.self_attn", "layers.0.linear1", "layers.0.linear2"]
    assert report[0].reason == "dense 2 s, sparse 1 s at 16 tokens"
    assert seen[0] == 1
    assert isinstance(encoder.layers[0].self_attn, SparseMultiheadAttention)
    assert_matches(encoder(x), expected)


def test_autocast_inside_a_model_is_timed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = prune_layers(nn.Linear(32, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layer(x)

    monkeypatch.setattr(measured, "_SECONDS", 0.001)
    seen: list[torch.dtype] = []
    call = measured._called

    def listening(*given: Any) -> Any:
        output = call(*given)
        seen.append(output.dtype)  # type: ignore[attr-defined]
        return output

    monkeypatch.setattr(measured, "_called", listening)
    sparse24.to_sparse(Cast(), example_inputs=torch.ones(3, 32))
    assert set(seen) == {torch.bfloat16}


def test_inputs_of_any_strides_and_sizes() -> None:
    model = prune_layers(nn.Sequential(nn.Linear(32, 8))).eval()
    inputs = [torch.ones(1, 32).expand(5, 32), torch.ones(32, 4).t(), torch.ones(0, 32), torch.ones(32)]
    (row,) = sparse24.to_sparse(model, example_inputs=inputs)
    assert "at 5 tokens" in row.reason
    assert "over 4 calls" in row.reason


def test_hooks_of_the_user_are_not_called_by_the_timing() -> None:
    model, calls = mlp(), []
    model[0].register_forward_hook(lambda module, args, output: calls.append(type(module)))
    sparse24.to_sparse(model, example_inputs=torch.ones(3, 32))
    assert calls == [nn.Linear]  # the model itself, once
