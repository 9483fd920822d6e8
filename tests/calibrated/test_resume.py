"""Interrupted runs go on where they were, and disks that fail change nothing."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparse24.calibrated import oneshot, walk
from sparse24.calibrated.shelf import Shelf
from sparse24.files import FileError

from .networks import NETWORKS, network

pytestmark = pytest.mark.usefixtures("seeded")
OPTIONS: dict[str, Any] = {"method": "magnitude", "refit": 2, "steps": 4}


class Stop:
    """Interrupts at its n-th word of progress."""

    def __init__(self, at: int) -> None:
        self.at, self.said = at, []  # type: int, list[str]

    def __call__(self, text: str) -> None:
        self.said.append(text)
        if len(self.said) == self.at:
            raise KeyboardInterrupt


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize(
    ("name", "at"), [*(("stack", n) for n in (1, 2, 3, 4, 5)), ("images", 1), ("images", 2), ("encoder", 1)]
)
def test_a_run_goes_on_bit_for_bit(name: str, at: int, tmp_path: Path) -> None:
    model, batches = network(name)
    dense, whole = weights(model), copy.deepcopy(model)
    report = oneshot(whole, batches, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        oneshot(model, batches, folder=tmp_path, progress=Stop(at), **OPTIONS)
    assert same(weights(model), dense)
    said: list[str] = []
    again = oneshot(model, batches, folder=tmp_path, progress=said.append, **OPTIONS)
    assert same(weights(model), weights(whole))
    assert again == report
    assert [text.endswith("done before") for text in said] == [i < at for i in range(len(said))]


def test_a_finished_run_is_taken_over_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = network("stack")
    twin = copy.deepcopy(model)
    oneshot(model, batches, folder=tmp_path, **OPTIONS)
    monkeypatch.setattr(walk, "prune_matrix", None)
    oneshot(twin, batches, folder=tmp_path, **OPTIONS)
    assert same(weights(twin), weights(model))


@pytest.mark.parametrize("change", ["weights", "buffers", "batches", "method", "skip", "masks"])
def test_progress_of_another_run_is_refused(change: str, tmp_path: Path) -> None:
    model, batches = network("images")
    oneshot(copy.deepcopy(model), batches, folder=tmp_path, **OPTIONS)
    options: dict[str, Any] = dict(OPTIONS)
    if change == "weights":
        model.head.weight.data[0, 0] += 1
    elif change == "buffers":
        model.stem[1].running_mean += 1
    elif change == "batches":
        batches[3][0, 0, 0, 0] += 1
    elif change == "method":
        options["refit"] = 3
    elif change == "skip":
        options["skip"] = ["body.0.0"]
    else:
        options["masks"] = {"body.0.0.weight": torch.zeros(16, 8, 3, 3, dtype=torch.bool)}
    before = weights(model)
    with pytest.raises(FileError, match="holds the progress of another run"):
        oneshot(model, batches, folder=tmp_path, **options)
    assert same(weights(model), before)


@pytest.mark.parametrize("damage", ["index", "block", "missing"])
def test_damaged_progress_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    model, batches = network("stack")
    oneshot(copy.deepcopy(model), batches, folder=tmp_path, **OPTIONS)
    block = tmp_path / "block-0001.pt"
    if damage == "index":
        (tmp_path / "oneshot.json").write_text("{")
    elif damage == "block":
        block.write_bytes(block.read_bytes()[:50])
    else:
        block.unlink()
    before = weights(model)
    with pytest.raises(FileError, match="cannot be read"):
        oneshot(model, batches, folder=tmp_path, **OPTIONS)
    assert same(weights(model), before)


def test_a_half_written_block_is_done_again(tmp_path: Path) -> None:
    model, batches = network("stack")
    whole = copy.deepcopy(model)
    oneshot(whole, batches, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        oneshot(model, batches, folder=tmp_path, progress=Stop(3), **OPTIONS)
    index = json.loads((tmp_path / "oneshot.json").read_text())
    index["done"].pop()  # killed between the file of a block and the index
    (tmp_path / "oneshot.json").write_text(json.dumps(index))
    oneshot(model, batches, folder=tmp_path, **OPTIONS)
    assert same(weights(model), weights(whole))


@pytest.mark.parametrize("option", ["folder", "offload"])
def test_a_folder_that_cannot_be_made_is_refused(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, batches = network("mlp")
    before = weights(model)
    with pytest.raises(FileError, match="file"):
        oneshot(model, batches, **{option: tmp_path / "file" / "below"})
    assert same(weights(model), before)


@pytest.mark.parametrize("option", ["folder", "offload"])
def test_a_full_disk_changes_nothing(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = network("stack")
    before = weights(model)
    real, calls = torch.save, []

    def full(tree: object, path: Path) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        real(tree, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match="could not be written"):
        oneshot(model, batches, **{option: tmp_path / "made"}, **OPTIONS)
    monkeypatch.undo()
    assert same(weights(model), before)
    assert option == "folder" or not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize("name", NETWORKS)
def test_offloading_changes_no_bit(name: str, tmp_path: Path) -> None:
    model, batches = network(name)
    twin = copy.deepcopy(model)
    report = oneshot(model, batches, **OPTIONS)
    assert oneshot(twin, batches, offload=tmp_path, **OPTIONS) == report
    assert same(weights(twin), weights(model))
    assert not list(tmp_path.iterdir())


def test_a_shelf_keeps_files_only_while_they_are_wanted(tmp_path: Path) -> None:
    with Shelf(tmp_path) as shelf:
        kept = shelf.keep({"x": torch.arange(3)})
        odd = shelf.keep(lambda: 24)  # no pickle knows it
        with pytest.raises((AttributeError, pickle.PicklingError)):
            pickle.dumps(odd())
        assert odd()() == 24
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 1
        assert torch.equal(kept()["x"], torch.arange(3))
        several = shelf.keep_all([1, 2, 3])
        assert [*several] == [1, 2, 3]
        assert [*several[1:]] == [2, 3]
        assert several[-1] == 3
        del kept, several
        assert not list(folder.iterdir())
    assert not list(tmp_path.iterdir())
