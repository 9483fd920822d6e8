"""The search for the fastest algorithms, on the emulator, and the file of its figures."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import sparse24
from emulated import FLOAT, HALF, EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, linear_reference
from sparse24 import SparseConv2d, SparseLinear, masks
from sparse24.choose import gpu
from sparse24.ops import figures
from sparse24.ops.cuda import cusparselt, launch, route, tuned
from sparse24.ops.cuda import products as cuda


def run_tuning(layer: torch.nn.Module, tokens: tuple[int, ...] = (16, 100), **options: Any) -> gpu.Tuning:
    given = {"launches": 2, "by_library": False, "again": False, **options}
    seconds, progress = given.pop("seconds", 60.0), given.pop("progress", lambda line: None)
    run = gpu.TuningRun(EmulatedStream(), **given)
    return run.run([layer for _, layer in gpu._layers(layer)], tokens, seconds, progress)


def model_to_tune() -> torch.nn.Sequential:
    conv = torch.nn.Conv2d(16, 32, 3, dtype=HALF)
    masks.prune_(conv.weight.data)
    return torch.nn.Sequential(
        SparseLinear.from_weight(sparse_weight(288, 64, HALF)),
        SparseLinear.from_weight(sparse_weight(288, 64, HALF, seed=9)),  # the same product
        SparseConv2d.from_dense(conv),
    )


def test_tuning_measures_every_product_and_remembers(emulator: Emulator, stream: EmulatedStream) -> None:
    model, lines = model_to_tune(), []
    before = torch.get_rng_state()
    rows = run_tuning(model, progress=lines.append)
    assert [(row.m, row.k, row.tokens) for row in rows] == [
        (288, 64, 16), (288, 64, 100), (32, 144, 16), (32, 144, 100)
    ]  # fmt: skip
    assert [(row.trials, row.wrong) for row in rows] == [(61, 0)] * 4, str(rows)
    assert len(lines) == 4
    assert "288 x 64" in str(rows)
    assert torch.equal(torch.get_rng_state(), before)
    stored = json.loads(figures.path("tuned.json").read_text())
    (found,) = stored["gpus"].values()
    assert sorted(found) == [
        "float16 float16 288 64 128", "float16 float16 288 64 16",
        "float16 float16 32 144 128 3 3 1 1 0 0 1 1 1", "float16 float16 32 144 16 3 3 1 1 0 0 1 1 1",
    ]  # fmt: skip
    # Another process reads the figures at its first call.
    route.measured.clear()
    launch.forget()
    weight = sparse_weight(288, 64, HALF)
    output = cuda.linear(randn(100, 64), *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(randn(100, 64), weight))
    assert len(route.measured) == 4


def test_tuning_goes_on_where_it_was_interrupted(emulator: Emulator) -> None:
    model = model_to_tune()

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tuning(model, progress=interrupt)
    assert len(route.measured) == 1
    rows = run_tuning(model)
    assert [row.remark for row in rows] == ["measured before", "", "", ""]
    assert [row.remark for row in run_tuning(model, seconds=0)] == ["measured before"] * 4
    assert [row.remark for row in run_tuning(model, seconds=0, again=True)] == ["the budget is spent"] * 4


def test_the_librarys_own_search(emulator: Emulator) -> None:
    (row,) = run_tuning(model_to_tune()[0], tokens=(16,), by_library=True)
    assert row.trials == 2  # the default and the library's choice
    assert row.measured is not None
    assert row.measured.algorithm.id in (0, 3)  # the emulator's rule for a blob of algorithm 0


def test_what_crashes_is_named_in_its_row(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE24_EMULATOR_FATES", "1=abort")
    model = model_to_tune()
    (row,) = run_tuning(model[0], tokens=(16,))
    assert row.measured is not None
    assert (row.measured.algorithm.id != 1, row.wrong) == (True, 1)
    assert row.remark == "algorithm 1 denied from now on: killed by signal 6"
    assert "1 refused" in str(gpu.Tuning([row]))
    monkeypatch.setenv("SPARSE24_EMULATOR_FATES", "0=abort")
    (row,) = run_tuning(model[2], tokens=(16,))
    assert row.measured is None
    assert "the default algorithm: denied from now on" in row.remark


def test_tuning_says_what_cannot_run(emulator: Emulator) -> None:
    (row,) = run_tuning(SparseLinear.from_weight(sparse_weight(32, 64, FLOAT)), tokens=(16,))
    assert row.measured is None
    assert "float32 runs as TF32" in row.remark


@pytest.mark.parametrize("text", ["{", '{"format": 7, "gpus": {}}', "[]", '{"format": 1, "gpus": 3}'])
def test_a_damaged_file_of_figures_is_told_and_not_used(text: str, emulator: Emulator) -> None:
    figures.path("tuned.json").parent.mkdir()
    figures.path("tuned.json").write_text(text)
    with pytest.warns(UserWarning, match="delete it and tune again"):
        assert tuned.load(0, cusparselt.gpu(0)) == 0


def test_figures_of_another_library_are_not_used(emulator: Emulator) -> None:
    run_tuning(model_to_tune()[0], tokens=(16,))
    assert tuned.load(0, cusparselt.gpu(0)) == 1
    assert tuned.load(0, cusparselt.gpu(0)._replace(version=1000)) == 0


def test_tune_refuses() -> None:
    with pytest.raises(ValueError, match="has no compressed layer"):
        sparse24.tune(torch.nn.Linear(4, 4))
    layer = SparseLinear(8, 8)
    with pytest.raises(ValueError, match="must be positive"):
        sparse24.tune(layer, tokens=(0,))
    with pytest.raises(ValueError, match="must be positive"):
        sparse24.tune(layer, launches=0)
    with pytest.raises(sparse24.Error, match="on a CPU or a GPU, and the model is on meta"):
        sparse24.tune(SparseLinear(8, 8, device="meta"))
