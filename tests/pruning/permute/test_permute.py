"""``sparse24.permute`` itself: what it refuses, what it leaves as it was, and what its report says."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from sparse24.pruning.permute import network as permutation
from sparse24.pruning.permute.reordered import Reordered
from sparse24.pruning.permute.rules import RULES
from sparse24.pruning.permute.walk import Axis

from .networks import mlp, reasons, same, state

pytestmark = pytest.mark.usefixtures("seeded")


# ---- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 1}, TypeError, "permute needs a torch.nn.Module, not int"),
        ({"example_inputs": None}, ValueError, "permute needs example_inputs: a tensor"),
        ({"example_inputs": ()}, ValueError, "positional arguments or a mapping of named ones, not none"),
        ({"example_inputs": torch.randn(2, 9)}, ValueError, "does not run on example_inputs: RuntimeError"),
        (
            {"example_inputs": {"y": torch.randn(2, 8)}},
            ValueError,
            "does not run on example_inputs: TypeError",
        ),
        ({"score": "ria"}, ValueError, "score 'ria' is not one of magnitude, wanda, hessian"),
        ({"score": 3}, TypeError, "score must be a name, a mapping or a function, not int"),
        ({"score": "wanda"}, ValueError, "score 'wanda' needs batches to calibrate on"),
        ({"batches": [torch.randn(2, 8)]}, ValueError, "score 'magnitude' takes no batches"),
        ({"score": {}, "batches": [1]}, ValueError, "a score that is given takes no batches"),
        ({"score": {}}, ValueError, "score has no entry for 0.weight; it has none"),
        ({"score": lambda w, n: 3}, TypeError, "the score of 0.weight must be a tensor, not int"),
        ({"score": lambda w, n: w[:1].abs()}, ValueError, "must be (32, 8), as the weight is, not (1, 8)"),
        ({"score": lambda w, n: w}, ValueError, "the score of 0.weight must be finite and not negative"),
        ({"score": lambda w, n: w.abs() * torch.inf}, ValueError, "must be finite and not negative"),
        ({"score": lambda w, n: w.long()}, TypeError, "must be floating, not torch.int64"),
        ({"select": ["head"]}, ValueError, "select 'head' matches no layer"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = mlp()
    before = state(model)
    given = {"model": model, "example_inputs": torch.randn(2, 8), **arguments}
    with pytest.raises(error, match=re.escape(message)):
        sparse24.permute(given.pop("model"), given.pop("example_inputs"), **given)
    assert same(model, before)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(number: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 4] = number
    before = state(model)
    with pytest.raises(ValueError, match=r"2\.weight holds NaN or Inf"):
        sparse24.permute(model, torch.randn(2, 8))
    assert same(model, before)


def test_a_parameter_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"no parameter called 'head\.weight'"):
        permutation.permute_network(mlp(), torch.randn(2, 8), names={"head.weight": 1})


def test_unknown_scores_by_name() -> None:
    with pytest.raises(ValueError, match='must be "magnitude", a mapping or a function here'):
        permutation.permute_network(mlp(), torch.randn(2, 8), score="wanda")


# ---- left as it was ---------------------------------------------------------------------------------


def test_other_outputs_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that were wrong: the order of one parameter is forgotten."""
    model = mlp()
    before = state(model)
    honest = permutation.moved

    def forgets(axis: Axis, *rest: Any) -> Any:
        return honest(axis, *rest) if axis.tensor is not model[2].bias else honest(axis, rest[0], {})

    monkeypatch.setattr(permutation, "moved", forgets)
    report = sparse24.permute(model, torch.randn(2, 8))
    assert same(model, before)
    assert not report.done
    assert re.search(
        r"the outputs differed by .* of their size, more than 1e-09: all is as it was", report.remark
    )
    assert "the outputs differed" in str(report)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("after", range(4))
def test_an_interruption_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], after: int
) -> None:
    model = mlp()
    before = state(model)
    honest, calls = Reordered.reorder, 0

    def breaks(self: Reordered, axis: Axis, order: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            self._begun = (axis.tensor.detach(), axis.tensor.detach().clone(), len(self._done))
            axis.tensor.detach().zero_()  # half written
            raise error
        honest(self, axis, order)

    monkeypatch.setattr(Reordered, "reorder", breaks)
    with pytest.raises(error):
        sparse24.permute(model, torch.randn(2, 8))
    assert same(model, before)


def test_a_failing_comparison_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    before = state(model)

    def fails(*_: object) -> float:
        raise RuntimeError("no")

    monkeypatch.setattr(permutation, "difference", fails)
    with pytest.raises(RuntimeError, match="no"):
        sparse24.permute(model, torch.randn(2, 8))
    assert same(model, before)


class Remembers(nn.Module):
    """Sets attributes and a buffer while it runs, draws random numbers, and asks for its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("calls", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.calls += 1
        return self.net(F.dropout(x, 0.5, self.training)) + 0 * torch.randn(8)


def test_attributes_buffers_modes_and_random_states_stay() -> None:
    model = Remembers()
    model.net[2].eval()
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    report = sparse24.permute(model, torch.randn(2, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.randn(3), expected)
    assert report.done
    assert model.last is None or type(model.last) is Tensor
    assert float(model.calls) == 0
    assert model.training
    assert not model.net[2].training
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


class WritesItsInput(nn.Module):
    """``torch.export`` refuses the list in its output; ``make_fx`` runs it on real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.register_buffer("calls", torch.zeros(()))
        self.code = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x.mul_(2) + self.code)


def test_inputs_and_buffers_that_a_pass_writes_stay() -> None:
    model, x = WritesItsInput(), torch.randn(2, 8)
    expected = x.clone()
    report = sparse24.permute(model, x)
    assert report.done
    assert torch.equal(x, expected)
    assert float(model.calls) == 0


class Hidden:
    """A result that nobody can look into."""

    def __init__(self, found: Tensor) -> None:
        self.found = found


class Wraps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Hidden:
        return Hidden(self.net(x))


def test_outputs_that_cannot_be_looked_into() -> None:
    model = Wraps()
    before = state(model)
    report = sparse24.permute(model, torch.randn(2, 8))
    assert "an output of type Hidden, into which it does not look" in report.remark
    assert same(model, before)


def test_a_rule_that_does_not_know_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an operator whose schema another torch has changed: it counts as unknown."""

    def breaks(*_: object) -> None:
        raise KeyError("input")

    monkeypatch.setitem(RULES, "aten::relu", breaks)
    found = reasons(mlp(), torch.randn(2, 8))
    assert "what aten::relu gives, which has no rule" in found["2.weight"]


def test_the_same_seed_gives_the_same_order() -> None:
    model = mlp()
    twin = copy.deepcopy(model)
    sparse24.permute(model, torch.randn(2, 8), seed=3)
    sparse24.permute(twin, torch.randn(5, 8), seed=3)
    assert same(model, state(twin))


def test_once_more_gains_little() -> None:
    model = mlp(64)
    first = sparse24.permute(model, torch.randn(2, 8))
    second = sparse24.permute(model, torch.randn(2, 8), seed=1)
    assert second.score_before == pytest.approx(first.score_after)
    assert 0 <= second.gain < first.gain / 2


# ---- scores -----------------------------------------------------------------------------------------


def test_a_score_of_the_callers() -> None:
    """Large where the weight is small: the score is what counts."""
    model = mlp()
    given = {name: 1 / (1 + p.detach().abs()) for name, p in model.named_parameters() if p.dim() == 2}
    twin = copy.deepcopy(model)
    by_mapping = sparse24.permute(model, torch.randn(2, 8), given)
    by_function = sparse24.permute(twin, torch.randn(2, 8), lambda weight, name: 1 / (1 + weight.abs()))
    assert by_mapping.gain == pytest.approx(by_function.gain)
    assert by_mapping.gain > 0
    assert same(model, state(twin))


def test_a_score_of_zeros_gains_nothing() -> None:
    model = mlp()
    before = state(model)
    report = sparse24.permute(model, torch.randn(2, 8), lambda weight, name: torch.zeros_like(weight))
    assert not report.done
    assert report.gain == 0
    assert same(model, before)


def test_the_report_reads_as_a_table() -> None:
    text = str(sparse24.permute(mlp(), torch.randn(2, 8)))
    assert re.search(r"2\.weight +Linear +32x32 +yes +\d\d\.\d\d% +\d\d\.\d\d%", text)
    assert re.search(r"2 of 3 weights permuted; 2:4 keeps \d\d\.\d\d% -> \d\d\.\d\d% of the score", text)
    assert "in a fixed order" in text or "its input channels stay" in text
    assert re.search(r"outputs differ by .* of their size \(float64\)", text)
