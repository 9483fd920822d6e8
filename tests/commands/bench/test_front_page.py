"""README's plots: drawn from what is kept, and nothing is measured."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sparse24.__main__ import main
from sparse24.commands import bench
from sparse24.commands.bench import front_page, papers
from sparse24.commands.bench.machine import MachineClass
from sparse24.commands.bench.table import Table
from sparse24.files import FileError

ZEN = MachineClass("AMD Zen 4, AVX-512 VNNI, 2 cores")
CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another checkout with this one's results, which the test is in."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "pyproject.toml").write_text('name = "sparse24"')
    (tmp_path / papers.RESULTS).write_text((CHECKOUT / papers.RESULTS).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "_benchmark", lambda *_: pytest.fail("measured"))
    return tmp_path


def words(file: Path) -> list[str]:
    return [
        element.text or ""
        for element in ET.fromstring(file.read_text()).iter()
        if element.tag.endswith("}text")
    ]


def results(seeds: int) -> str:
    """A network that gains and one that loses, whose dense seeds differ by one or so."""
    lines = []
    for row, loss in (("resnet34", -1.0), ("vgg16", 9.0)):
        for seed in range(seeds):
            for way, score in (("dense", 80.0 + seed), ("sparse", 80.0 + seed - loss)):
                unit = {"row": row, "seed": seed, "way": way, "score": score, "metric": "accuracy, %"}
                unit |= {"data": "digits", "parameters": 9, "higher_is_better": True, "quick": False}
                lines.append(json.dumps({"format": 1, "unit": f"{row}/{seed}/{way}", **unit}))
    return "\n".join([*lines, '{"cut sho'])


def test_three_plots_come_from_what_is_kept(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MachineClass, "here", lambda: ZEN)
    study = checkout / "results.jsonl"
    study.write_text(results(3))
    assert main(["bench", "--readme-plots", "--study", str(study)]) == 0
    images = checkout / front_page.IMAGES
    assert sorted(path.name for path in images.iterdir()) == ["accuracy.svg", "size.svg", "speed.svg"]
    assert all(path.stat().st_size < 60_000 for path in images.iterdir())
    speed = words(images / "speed.svg")
    assert {f"Speed in fp32: {ZEN.title}", "BERT-Large, batch 8", "Llama-shaped, decode, batch 8"} <= set(
        speed
    )
    assert {"over torch", "over the best dense"} <= set(speed)
    assert "mean difference of a row that fails" in words(images / "accuracy.svg")
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    front_page.write(study, ZEN, lambda line: None)
    assert before == {path.name: path.read_bytes() for path in images.iterdir()}


def test_rows_are_in_spreads_of_dense_seeds(tmp_path: Path) -> None:
    study = tmp_path / "results.jsonl"
    study.write_text(results(3))
    good, bad = front_page.accuracies(study)
    assert good[1:] == (pytest.approx(1.0), pytest.approx(2 / 3**0.5), True)
    assert bad[1:] == (pytest.approx(-9.0), pytest.approx(2 / 3**0.5), False)


def test_where_it_was_run_the_dense_network_is_trained_as_long(tmp_path: Path) -> None:
    study = tmp_path / "results.jsonl"
    again = results(3).replace('"sparse"', '"again"').replace('"unit": "', '"unit": "again of ')
    study.write_text(results(3) + again)
    assert [row[1] for row in front_page.accuracies(study, equal=True)] == [0, 0]
    study.write_text(results(3))
    assert front_page.accuracies(study, equal=True) == []


@pytest.mark.parametrize("seeds", [0, 1])
def test_without_two_seeds_accuracy_stays_as_it_is_and_that_is_told(checkout: Path, seeds: int) -> None:
    study = checkout / "results.jsonl"
    if seeds:
        study.write_text(results(seeds))
    old = checkout / front_page.IMAGES / "accuracy.svg"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    said: list[str] = []
    assert len(front_page.write(study, ZEN, said.append)) == 2
    assert f"accuracy.svg stays as it is: {study} has no row with two seeds" in said
    assert old.read_text() == "old"


def test_what_is_missing_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match=r"too few tables of this machine's class, Nobody's: none of linear"):
        front_page.write(checkout, MachineClass("Nobody's"), print)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with pytest.raises(FileError, match="plots need matplotlib"):
        front_page.write(checkout, ZEN, print)
    assert not (checkout / front_page.IMAGES).exists()


def test_sizes_are_those_of_the_benchmark_of_memory_where_it_is_kept() -> None:
    figures = importlib.import_module("sparse24.commands.bench.drawings.front_page")
    networks = ["network", "dtype", "mode", "batch", "x torch", "x best dense", "dense MB", "2:4 MB"]
    kept = [Table("networks-2", "", [networks, ["Net, 1 word", "fp32", "eager", "1", "1", "1", "123", "77"]])]
    assert ">123<" in figures.size(kept, "here")
    memory = Table("memory-1", "", [["network", "dtype", "dense MB", "2:4 MB"], ["Net", "fp32", "456", "78"]])
    assert ">123<" not in figures.size([*kept, memory], "here")
    assert ">456<" in figures.size([*kept, memory], "here")
    with pytest.raises(ValueError, match="neither memory nor networks is there"):
        figures.size([], "here")
