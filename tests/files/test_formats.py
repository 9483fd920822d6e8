"""Which files are read, and which refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sparse24 import files as io
from sparse24.__main__ import main

from .state_files import fails, network, saved

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.safetensors", b"", "not a safetensors file"),
        ("a.safetensors", b"\xff" * 100, "not a safetensors file"),
        ("a.pt", b"", "neither written by torch.save nor named .safetensors"),
        ("a.pt", b"hello", "neither written by torch.save nor named .safetensors"),
        ("a.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.rubbish", "refuses it"),
    ],
)
def test_files_that_are_no_state_dict_are_refused(
    name: str, content: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert why in fails(capsys, "report", tmp_path / name)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever a byte is changed to, the answer is a report or a FileError."""
    path, rng = tmp_path / "a.pt", torch.Generator().manual_seed(1)
    torch.save({"a.weight": torch.ones(4, 4)}, path, _use_new_zipfile_serialization=False)
    sound = path.read_bytes()
    refused = 0
    for _ in range(300):
        at, byte = (int(torch.randint(n, (), generator=rng)) for n in (len(sound), 256))
        path.write_bytes(sound[:at] + bytes([byte]) + sound[at + 1 :])
        try:
            io.report(io.read(path))
        except io.FileError:
            refused += 1
    assert refused > 30


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(network(), tmp_path / "model.pt")
    assert "weights_only=True) refuses it" in fails(capsys, "report", tmp_path / "model.pt")


def test_files_without_a_state_dict_are_refused_by_their_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"optimizer": network().state_dict(), "epoch": 3}, tmp_path / "a.pt")
    assert "there are no tensors in it, but optimizer, epoch" in fails(capsys, "report", tmp_path / "a.pt")
    torch.save([torch.ones(2)], tmp_path / "b.pt")
    assert "holds a list, not a state_dict" in fails(capsys, "report", tmp_path / "b.pt")
    torch.save({}, tmp_path / "c.pt")
    assert "but nothing" in fails(capsys, "report", tmp_path / "c.pt")
    assert "several files with weights and no index" in fails(capsys, "report", tmp_path)


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(4, 4)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert len(io.report(io.read(tmp_path / "a.pt"))) == 1


@pytest.mark.parametrize("command", ["report", "prune"])
def test_a_missing_safetensors_package_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "model.safetensors")
    monkeypatch.setattr(io.formats.importlib.util, "find_spec", lambda name: None)
    target = [tmp_path / "out.safetensors"] if command == "prune" else []
    assert "pip install safetensors" in fails(capsys, command, path, *target)


def test_safetensors_metadata_and_permissions_survive(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    assert main(["prune", str(source), str(target)]) == 0
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    (tmp_path / "any").touch()
    assert target.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_values_that_are_no_tensors_survive(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(8, 8), "_extra_state": {"step": 3}, 7: torch.ones(4, 4)}
    source, target = saved(tmp_path / "in.pt", state), tmp_path / "out.pt"
    assert main(["prune", str(source), str(target)]) == 0
    pruned = torch.load(target, weights_only=True)
    assert pruned["_extra_state"] == {"step": 3}
    assert torch.equal(pruned[7], torch.ones(4, 4))


def test_formats_do_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "in.pt")
    assert "must both end in .safetensors" in fails(capsys, "prune", source, tmp_path / "out.safetensors")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "none" / "out.pt"
    assert f"{target}: No such file" in fails(capsys, "prune", saved(tmp_path / "in.pt"), target)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(tmp_path / "in.pt"), tmp_path / "out.pt"
    target.write_bytes(b"old")

    def full(state: object, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in fails(capsys, "prune", source, target)
    assert target.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [source, target]
