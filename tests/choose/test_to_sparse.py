"""``to_sparse(when="faster")``: what is decided, by which figures, and what the report says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from reference import assert_matches
from sparse24 import SparseLinear
from sparse24.choose import convert, measured, rules
from sparse24.nn.convert import Verdict

from .clocks import mlp, set_clock

pytestmark = pytest.mark.usefixtures("seeded")

MS = 1e-3


def test_the_faster_of_the_two_runs_and_the_report_has_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (1.9 * MS, 2.3 * MS) if out == 64 else (2 * MS, MS))
    model = mlp()
    report = sparse24.to_sparse(model, example_inputs=torch.ones(128, 32))
    assert [row.done for row in report] == [False, True]
    assert report[0].reason == "dense 1.9 ms, sparse 2.3 ms at 128 tokens: stays dense"
    assert report[1].reason == "dense 2 ms, sparse 1 ms at 128 tokens"
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, SparseLinear]
    assert clock.asked == [
        ("Linear", "SparseLinear", (128, 32), False), ("Linear", "SparseLinear", (128, 64), False)
    ]  # fmt: skip
    assert report[0].bytes_after == report[0].bytes_before


@pytest.mark.parametrize(
    ("sparse", "done", "end"),
    [(1.03, True, "at 1 token: a tie"), (1.031, False, "at 1 token: stays dense"), (1.0, True, "at 1 token")],
)
def test_ties_within_three_percent_are_sparse(
    sparse: float, done: bool, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, lambda out, n: (1.0, sparse))
    (row, *_) = sparse24.to_sparse(mlp(), example_inputs=torch.ones(1, 32))
    assert row.done == done
    assert row.reason.endswith(end)


def test_the_sum_over_all_calls_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {128: (2 * MS, 3 * MS), 1: (1.5 * MS, 0.4 * MS)}
    set_clock(monkeypatch, lambda out, n: times[n])
    prefill, decode = torch.ones(128, 32), torch.ones(1, 32)
    (row, *_) = sparse24.to_sparse(mlp(), example_inputs=[prefill, decode])
    assert row.done  # 3.5 ms against 3.4
    assert row.reason == "dense 2 ms, sparse 3 ms at 128 tokens; dense 1.5 ms, sparse 400 us at 1 token"
    (row, *_) = sparse24.to_sparse(mlp(), example_inputs=[prefill, prefill, decode])
    assert not row.done  # 5.5 against 6.4
    assert row.reason == (
        "dense 2 ms, sparse 3 ms at 128 tokens, 2 times; dense 1.5 ms, sparse 400 us at 1 token: stays dense"
    )


def test_many_calls_are_summed_up_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, lambda out, n: (n * MS, n * MS / 2))
    (row, *_) = sparse24.to_sparse(mlp(), example_inputs=[torch.ones(n, 32) for n in (1, 2, 3, 4)])
    assert row.reason == (
        "dense 1 ms, sparse 500 us at 1 token; dense 2 ms, sparse 1 ms at 2 tokens; "
        "in all dense 10 ms, sparse 5 ms over 4 calls"
    )


def test_what_passes_through_the_caches_is_bounded() -> None:
    assert measured.Chooser(1000)._cold == 0
    assert measured.Chooser(1 << 20)._cold == 1 << 20
    assert measured.Chooser(1 << 40)._cold in [1 << shift for shift in range(20, 28)]


def test_figures_are_kept_and_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    for _ in range(2):
        assert len(sparse24.to_sparse(mlp(), example_inputs=torch.ones(3, 32)).done) == 2
        assert len(clock.asked) == 2
    sparse24.to_sparse(mlp(torch.bfloat16), example_inputs=torch.ones(3, 32, dtype=torch.bfloat16))
    assert len(clock.asked) == 4
    with torch.autocast("cpu", torch.bfloat16):
        sparse24.to_sparse(mlp(), example_inputs=torch.ones(3, 32))
    assert len(clock.asked) == 6


def test_figures_that_were_measured_before_an_interruption_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(out: int, n: int) -> tuple[float, float]:
        if out == 16:
            raise KeyboardInterrupt
        return 2.0, 1.0

    set_clock(monkeypatch, times)
    model = mlp()
    with pytest.raises(KeyboardInterrupt):
        sparse24.to_sparse(model, example_inputs=torch.ones(3, 32))
    assert type(model[0]) is nn.Linear
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    sparse24.to_sparse(model, example_inputs=torch.ones(3, 32))
    assert [shape for *_, shape, _ in clock.asked] == [(3, 64)]


def test_the_import_does_not_load_the_compiler() -> None:
    said = "import sys, sparse24; print(any(name.startswith('torch._dynamo') for name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    alone = said.replace("sparse24", "torch")
    torch_alone = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    assert ran.stdout == torch_alone.stdout


@pytest.mark.parametrize("how", ["torch.compile", "model.compile"])
def test_a_compiled_model_has_its_layers_compared_compiled(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    inner = mlp()
    x = torch.randn(3, 32)
    expected = inner(x)
    if how == "torch.compile":
        model = torch.compile(inner, backend="eager")
        model(x)
    else:
        model = inner
        model.compile(backend="eager")
    report = sparse24.to_sparse(model, example_inputs=x)
    assert [row.name for row in report.done] == ["0", "2"]
    assert [compiled for *_, compiled in clock.asked] == [True, True]
    assert type(inner[0]) is SparseLinear
    assert_matches(model(x), expected)  # compiled before: what was replaced is not run any more


def test_a_layer_that_is_cast_is_compared_in_the_dtype_that_it_will_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dtypes: list[Any] = []

    def measure(self: measured.Chooser, dense: Any, sparse: Any, call: Any) -> Any:
        (x,), _ = call.arguments(torch.Generator(), self._dtype)
        dtypes.append((dense.weight.dtype, sparse.values.dtype, x.dtype, dense(x).dtype, sparse(x).dtype))
        return sparse24.timing.Pair(2.0, 1.0)

    monkeypatch.setattr(measured.Chooser, "measure", measure)
    sparse24.to_sparse(mlp(), torch.bfloat16, example_inputs=torch.ones(3, 32))
    assert dtypes == [(torch.bfloat16,) * 5] * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Inductor's own imports
@pytest.mark.parametrize("is_compiled", [False, True])
def test_real_layers_are_really_timed(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_SECONDS", 0.01)
    model: Callable[..., Any] = mlp()
    if is_compiled:
        model = torch.compile(model)
    report = sparse24.to_sparse(model, example_inputs=[torch.ones(3, 32)])  # type: ignore[arg-type]
    assert len(report) == 2
    for row in report:
        assert row.reason.startswith("dense ")
        assert "at 3 tokens" in row.reason
        assert row.done != row.reason.endswith(": stays dense")


def test_always_converts_what_can_run_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = set_clock(monkeypatch, lambda out, n: (1.0, 9.0))
    monkeypatch.setattr(rules, "verdict", lambda module, dtype=None: Verdict(False, "by rule"))
    report = sparse24.to_sparse(mlp(), when="always")
    assert [row.reason for row in report.done] == ["", ""]
    assert not clock.asked


def test_a_device_without_sparse_kernels_is_not_decided_by_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"cuda": "", "xpu": "no sparse kernel on xpu"}
    monkeypatch.setattr(convert, "why_device_dense", lambda device: told[device.type])
    layer = nn.Linear(8, 8)
    for device, verdict in (("cuda", (True, "")), ("xpu", (False, "no sparse kernel on xpu: stays dense"))):
        monkeypatch.setattr(convert, "_device_of", lambda module, d=device: torch.device(d))
        assert convert._on_another_device(layer) == verdict


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"when": "sometimes"}, ValueError, 'when must be "faster" or "always", not \'sometimes\''),
        (
            {"when": "always", "example_inputs": torch.ones(1, 32)},
            ValueError,
            'example_inputs decide nothing with when="always"',
        ),
        ({"example_inputs": []}, ValueError, "example_inputs is an empty list: give at least one call"),
        ({"example_inputs": 3}, TypeError, "mapping of named ones .several calls: a list of them., not int"),
        ({"example_inputs": [torch.ones(1, 32), None]}, TypeError, "not NoneType"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = mlp()
    with pytest.raises(error, match=message):
        sparse24.to_sparse(model, **options)
    assert type(model[0]) is nn.Linear
