"""The file of figures: what is believed, and homes that cannot be written to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import sparse24
from sparse24.choose import kept
from sparse24.ops import figures
from sparse24.timing import Pair

from .clocks import mlp, set_clock


def stored() -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = json.loads(figures.path("layers.json").read_text())["machines"]
    return found


def plant(machines: object, format: int = 1) -> None:
    file = figures.path("layers.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"format": format, "machines": machines}))


def test_figures_come_back_and_add_up() -> None:
    assert kept.load() == {}
    assert kept.keep({"a": Pair(2.0, 1.0)}) == ""
    assert kept.keep({"b": Pair(3.0, 1.0)}) == ""
    assert kept.load() == {"a": Pair(2.0, 1.0), "b": Pair(3.0, 1.0)}
    assert stored() == {kept.identity(): {"a": [2.0, 1.0], "b": [3.0, 1.0]}}
    assert [each.name for each in figures.path("layers.json").parent.iterdir()] == ["layers.json"]


def test_figures_are_those_of_a_cpu_its_threads_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    kept.keep({"a": Pair(2.0, 1.0)})
    here = kept.identity()
    assert torch.__version__ in here
    assert f"{torch.get_num_threads()} threads" in here
    assert sparse24.backend("cpu") in here
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert "77 threads" in kept.identity()
    assert kept.load() == {}
    kept.keep({"c": Pair(1.0, 1.0)})
    assert list(stored()) == [here, kept.identity()]


@pytest.mark.parametrize(
    "entry",
    ["fast", [1.0], [1.0, 2.0, 3.0], [1.0, -2.0], [0, 1.0], [True, 1.0], [1.0, "2"], None, [1.0, 1e999]],
)
def test_an_entry_that_is_no_pair_of_times_is_told_and_left_out(entry: object) -> None:
    plant({kept.identity(): {"good": [2.0, 1.0], "bad": entry}})
    with pytest.warns(UserWarning, match=r"no two times in seconds under 'bad'.*delete it"):
        assert kept.load() == {"good": Pair(2.0, 1.0)}


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "machines": {}}', '{"format": 1, "machines": 3}'])
def test_a_damaged_file_is_told_and_replaced(text: str) -> None:
    plant({})
    figures.path("layers.json").write_text(text)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert kept.load() == {}
    with pytest.warns(UserWarning, match="cannot be read"):
        assert kept.keep({"a": Pair(2.0, 1.0)}) == ""
    assert kept.load() == {"a": Pair(2.0, 1.0)}


def test_figures_that_are_no_table_are_told() -> None:
    plant({kept.identity(): [1, 2]})
    with pytest.warns(UserWarning, match="no two times in seconds"):
        assert kept.load() == {}


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "file" / "cache"))
    assert kept.keep({"a": Pair(2.0, 1.0)}).startswith("not kept: ")
    assert kept.load() == {}
    clock = set_clock(monkeypatch, lambda out, n: (2.0, 1.0))
    for _ in range(2):
        assert len(sparse24.to_sparse(mlp(), example_inputs=torch.ones(3, 32)).done) == 2
    assert len(clock.asked) == 4


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPARSE24_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert kept.load() == {}
    assert kept.keep({"a": Pair(2.0, 1.0)}) == "not kept: Could not determine home directory."


def test_the_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSE24_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert figures.path("x.json") == Path("/somewhere/sparse24/x.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard says: to be ignored
    monkeypatch.setenv("HOME", "/of/me")
    assert figures.path("x.json") == Path("/of/me/.cache/sparse24/x.json")


def test_a_draft_that_fails_leaves_the_old_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept.keep({"a": Pair(2.0, 1.0)})

    def fail(*given: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert kept.keep({"b": Pair(2.0, 1.0)}) == "not kept: disk full"
    assert kept.load() == {"a": Pair(2.0, 1.0)}
    assert [each.name for each in figures.path("layers.json").parent.iterdir()] == ["layers.json"]
