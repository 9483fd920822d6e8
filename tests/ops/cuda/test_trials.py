"""Algorithms are tried in a process of their own, and what kills it is never tried again. On the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sparse24
from emulated import HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, linear_reference
from sparse24.ops import figures
from sparse24.ops.cuda import cusparselt, denied, launch, route, search, trials, tuned
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.cusparselt import GPU, Algorithm
from sparse24.ops.cuda.route import Call, Measured
from sparse24.ops.cuda.trials import Trials

CPU = torch.device("cpu")
CALL = Call(HALF, HALF, 288, 64, 64)


@pytest.fixture
def on(emulator: Emulator) -> GPU:
    return cusparselt.gpu(0)


@pytest.fixture
def asked(on: GPU) -> Iterator[Trials]:
    with Trials(CPU, on) as found:
        yield found


def stored() -> dict[str, list[list[object]]]:
    (of_gpu,) = json.loads(figures.path("denied.json").read_text())["gpus"].values()
    return dict(of_gpu)


def journals() -> list[Path]:
    return list(figures.path("denied.json").parent.glob("*.journal"))


def test_every_algorithm_is_tried_in_another_process(asked: Trials, emulator: Emulator) -> None:
    found = asked.algorithms(CALL)
    assert found[:4] == [Algorithm(0), Algorithm(1), Algorithm(2), Algorithm(3)]
    assert {algorithm.split_k for algorithm in found} == {0, 2, 3, 4, 5, 6, 7, 8}
    before = emulator.calls()
    for algorithm in found[:6]:
        trial = asked.try_out(algorithm, 2)
        assert (trial.algorithm, trial.refused) == (algorithm, "")
        assert trial.microseconds > 0
        assert trial.error <= 2e-3
    assert emulator.calls() == before  # this process has called nothing
    assert asked.figures(Algorithm(1), 2)[0] > 0
    assert len(journals()) == 1


@pytest.mark.parametrize(
    ("fate", "reason"),
    [("illegal", "illegal instruction"), ("abort", "killed by signal 6"), ("hang", "no answer for 5 s")],
)
def test_what_kills_the_process_is_denied_for_good(
    fate: str, reason: str, on: GPU, monkeypatch: pytest.MonkeyPatch, stream: EmulatedStream
) -> None:
    monkeypatch.setenv("SPARSE24_EMULATOR_FATES", f"2={fate}")
    if fate == "hang":
        monkeypatch.setattr(trials, "SECONDS_TO_TRY", 5.0)
    # The library's own search tries everything, and goes with it.
    with Trials(CPU, on) as asked:
        found, tried = search.measure(CALL, asked, launches=1, by_library=False, seconds=60)
    refused = {trial.algorithm: trial.refused for trial in tried if trial.refused}
    assert list(refused) == [Algorithm(2)]
    assert reason in refused[Algorithm(2)]
    assert found.algorithm.id != 2
    assert 2 not in {algorithm.id for algorithm, _ in found.others}
    assert {trial.algorithm.id for trial in tried} == {0, 1, 2, 3}  # it went on after the death
    numbers = [entry[0] for entry in stored()["float16 float16"]]
    assert numbers == [[denied.LIBRARY_SEARCH, 0, 0, -1], [2, 0, 0, -1]]
    assert journals() == []
    # Nothing of it is tried again, by a process that has just begun, whatever the shape.
    monkeypatch.delenv("SPARSE24_EMULATOR_FATES")
    route.denied.clear()
    with Trials(CPU, on) as again:
        assert {algorithm.id for algorithm in again.algorithms(CALL._replace(m=64))} == {0, 1, 3}
        assert again.choice_of_library(1) is None
        assert again.try_out(Algorithm(2, 3, 1), 1).refused.startswith("algorithm 2 is denied: ")
    # A figure from before is not run by.
    route.measured[route.measured_key(CALL, on)] = Measured(Algorithm(2), 1.0, 0.0, 0.0)
    route.forget()
    assert route.choose(CALL, on, False).algorithm == Algorithm()
    weight, x = sparse_weight(288, 64, HALF), randn(64, 64)
    assert_matches(cuda.linear(x, *compressed(weight), None, "none", stream), linear_reference(x, weight))


def test_a_deadly_default_leaves_the_products_dense(
    on: GPU, monkeypatch: pytest.MonkeyPatch, emulator: Emulator, stream: EmulatedStream
) -> None:
    monkeypatch.setenv("SPARSE24_EMULATOR_FATES", "0=abort")
    with (
        Trials(CPU, on) as asked,
        pytest.raises(sparse24.Error, match="default algorithm: denied from now on"),
    ):
        search.measure(CALL, asked, launches=1, by_library=True, seconds=60)
    assert "algorithm 0 is denied: killed by signal 6" in route.choose(CALL, on, False).reason
    weight, x = sparse_weight(288, 64, HALF), randn(64, 64)
    assert_matches(cuda.linear(x, *compressed(weight), None, "none", stream), linear_reference(x, weight))
    assert emulator.launches() == 0
    # Another process knows, too: the file is read when the device is first used.
    route.denied.clear()
    launch.forget()
    assert not route.choose(CALL, launch.ready(0), False).sparse


def test_the_librarys_choice_is_a_candidate_with_its_workspace(
    asked: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, tried = search.measure(CALL, asked, launches=1, by_library=True, seconds=60)
    assert {trial.algorithm for trial in tried} == {Algorithm(0), Algorithm(3, 1, 1)}
    assert found.algorithm in {Algorithm(0), Algorithm(3, 1, 1)}


def test_a_spent_budget_leaves_the_default_and_the_librarys_choice(asked: Trials) -> None:
    _, tried = search.measure(CALL, asked, launches=1, by_library=False, seconds=0)
    assert {trial.algorithm.id for trial in tried} == {0, 3}


@pytest.mark.parametrize(
    ("sm", "tokens", "ids", "splits"),
    [
        (90, 64, 51, {0}),
        (90, 512, 51, {0, -1}),
        (100, 64, 108, {0, 2, 3, 4, 5, 6, 7, 8, 16, 32}),
        (120, 64, 2, {0, 2, 3, 4, 5, 6, 7, 8, 16, 32}),
        (80, 64, 4, {0, 2, 3, 4, 5, 6, 7, 8}),
    ],
)
def test_candidates_follow_the_architecture(
    sm: int, tokens: int, ids: int, splits: set[int], emulator: Emulator
) -> None:
    stream = EmulatedStream()
    emulator.set_sm(sm)
    launch.forget()
    found = search.algorithms(CALL._replace(n=tokens), stream)
    assert len({algorithm.id for algorithm in found}) == ids
    assert {algorithm.split_k for algorithm in found} == splits
    assert (36 in {algorithm.id for algorithm in found}) == (sm == 100)  # float16 on sm_90: kills the context


def test_the_deadly_id_of_an_h100_is_refused_by_rule(emulator: Emulator) -> None:
    form = route.product(CALL, "none", Algorithm(36))
    h100 = cusparselt._C.cusparselt_why_illegal(form, 90, 801)
    assert "leaves an illegal instruction" in h100
    assert "nearest: 35 and 37" in h100
    bf16 = route.product(CALL._replace(dtype=torch.bfloat16, out_dtype=torch.bfloat16), "none", Algorithm(36))
    for other, sm, version in ((bf16, 90, 801), (form, 100, 801), (form, 90, 1000)):
        assert cusparselt._C.cusparselt_why_illegal(other, sm, version) == ""


def test_what_was_in_flight_when_everything_went_down_is_denied(on: GPU) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = figures.path("denied.json").parent
    folder.mkdir(parents=True)
    lines = {"begin": [3, 0, 0, -1], "dtypes": "float16 float16", "identity": tuned.identity(0, on)}
    (folder / f"trials-{ended.pid}-0.journal").write_text('{"end": true}\n' + json.dumps(lines) + "\n")
    (folder / f"trials-{ended.pid}-1.journal").write_text('{"end": true}\n')  # went down between two trials
    alive = folder / f"trials-{os.getppid()}-0.journal"
    alive.write_text(json.dumps(lines) + "\n")
    with Trials(CPU, on) as asked:
        assert 3 not in {algorithm.id for algorithm in asked.algorithms(CALL)}
    assert stored() == {"float16 float16": [[[3, 0, 0, -1], "in flight when its process went down"]]}
    assert journals() == [alive]


def test_an_interruption_denies_nothing(on: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with Trials(CPU, on) as asked:
        asked.algorithms(CALL)
        monkeypatch.setattr(trials.select, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            asked.try_out(Algorithm(1), 1)
    assert route.denied == {}
    assert not figures.path("denied.json").exists()
    assert journals() == []


def test_a_call_that_cannot_be_set_up_says_why(asked: Trials) -> None:
    with pytest.raises(sparse24.Error, match="float8_e4m3fn needs an sm_89 GPU"):
        asked.algorithms(CALL._replace(dtype=torch.float8_e4m3fn))
    assert len(asked.algorithms(CALL)) > 4  # the same child goes on


def test_one_algorithm_serves_every_count_of_tokens(on: GPU) -> None:
    a, b, c = Algorithm(1), Algorithm(2), Algorithm(3)
    times = {16: ((a, 1.0), (b, 1.1), (Algorithm(), 3.0)), 256: ((c, 1.0), (b, 1.2), (Algorithm(), 2.0))}
    for tokens, others in times.items():
        key = route.measured_key(CALL._replace(n=tokens), on)
        route.measured[key] = Measured(others[0][0], others[0][1], 9.0, 9.0, others)
    route.forget()
    # b loses 10 and 20 %; a and c are best once, and at least twice as slow the other time.
    for tokens in (16, 64, 256, 4096):
        assert route.choose(CALL._replace(n=tokens), on, False).algorithm == b
    assert route.choose(CALL._replace(m=64), on, False).algorithm == Algorithm()


def test_an_algorithm_that_is_refused_when_it_runs_is_replaced(
    on: GPU, stream: EmulatedStream, emulator: Emulator
) -> None:
    weight, x = sparse_weight(288, 64, HALF), randn(64, 64)
    operands = compressed(weight)
    route.measured[route.measured_key(CALL, on)] = Measured(Algorithm(9), 1.0, 0.0, 0.0)  # there are four
    route.forget()
    with pytest.warns(UserWarning, match="algorithm 9, tuned for 288 x 64, was refused: .* below 4"):
        output = cuda.linear(x, *operands, None, "none", stream)
    assert_matches(output, linear_reference(x, weight))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        cuda.linear(x, *operands, None, "none", stream)
    chosen = route.choose(CALL, on, False)
    assert chosen.algorithm == Algorithm()
    assert any("algorithm 9, tuned for 288 x 64, was refused" in note for note in chosen.notes)


def test_figures_with_their_runners_up_survive_a_file(on: GPU) -> None:
    key = route.measured_key(CALL, on)
    others = ((Algorithm(2, 3, 1), 1.5), (Algorithm(), 2.5))
    route.measured[key] = Measured(Algorithm(2, 3, 1), 4.0, 5.0, 6.0, others)
    tuned.save(0, on)
    route.measured.clear()
    assert tuned.load(0, on) == 1
    assert route.measured[key] == Measured(Algorithm(2, 3, 1), 4.0, 5.0, 6.0, others)
