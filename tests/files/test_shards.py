"""Folders of several files: found by their index, pruned and compressed file by file, and their faults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sparse24
from sparse24 import files
from sparse24.__main__ import main
from sparse24.files import folders

from .state_files import SUFFIXES, fails, saved

pytestmark = pytest.mark.usefixtures("seeded")

Capture = pytest.CaptureFixture[str]


def state() -> dict[str, torch.Tensor]:
    return {
        "embed.weight": torch.randn(50, 16),
        "a.weight": torch.randn(24, 16),
        "a.bias": torch.randn(24),
        "conv.weight": torch.randn(8, 8, 3, 3),
        "attn.in_proj_weight": torch.randn(48, 16),
        "attn.in_proj_bias": torch.randn(48),
        "attn.out_proj.weight": torch.randn(16, 16),
        "last.weight": torch.randn(16, 24),
        "last.bias": torch.randn(16),
        "head.weight": torch.randn(10, 16),
    }


def sharded(folder: Path, tensors: dict[str, torch.Tensor], suffix: str = ".safetensors") -> Path:
    """Two files, their index, and a config.json."""
    folder.mkdir()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    suffix = suffix if suffix == ".safetensors" else ".bin"
    names = list(tensors)
    where = {}
    for number, part in enumerate((names[:4], names[4:]), 1):
        file = folder / f"{stem}-{number:05}-of-00002{suffix}"
        saved(file, {name: tensors[name] for name in part})
        where |= dict.fromkeys(part, file.name)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
    (folder / f"{stem}{suffix}.index.json").write_text(text)
    (folder / "config.json").write_text('{"model_type": "bert", "vocab_size": 50}')
    (folder / "vocab.txt").write_text("a\n")
    return folder


PRUNED = ["a.weight", "conv.weight", "attn.in_proj_weight", "attn.out_proj.weight", "last.weight"]


@SUFFIXES
def test_a_folder_is_pruned_as_one_checkpoint(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    tensors = state()
    source, target = sharded(tmp_path / "in", tensors, suffix), tmp_path / "out"
    assert main(["prune", str(source), str(target)]) == 0
    assert "head.weight" in capsys.readouterr().out
    pruned = files.read_all(target).tensors
    assert pruned.keys() == tensors.keys()
    for name, tensor in tensors.items():
        is_pruned = name in PRUNED
        wanted = torch.where(sparse24.magnitude_mask(tensor), tensor, 0.0) if is_pruned else tensor
        assert torch.equal(pruned[name], wanted), name
    assert (target / "vocab.txt").read_text() == "a\n"
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@SUFFIXES
def test_a_folder_is_compressed(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    tensors = state()
    source = sharded(tmp_path / "in", tensors, suffix)
    index = next(source.glob("*.index.json"))
    assert main(["prune", str(index), str(tmp_path / "out"), "--compress"]) == 0
    found = files.read_all(tmp_path / "out").tensors
    assert torch.equal(found["head.weight"], tensors["head.weight"])
    assert not found["a.weight"].numel()  # a guard
    dense = torch.where(sparse24.magnitude_mask(tensors["a.weight"]), tensors["a.weight"], 0.0)
    assert torch.equal(sparse24.decompress(found["a.values"], found["a.indices"]), dense)
    assert torch.equal(found["attn.k_proj.bias"], tensors["attn.in_proj_bias"][16:32])
    new = json.loads((tmp_path / "out" / index.name).read_text())
    assert new["weight_map"].keys() == found.keys()
    assert new["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in found.values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "sparse24", "format": 1}
    assert config["vocab_size"] == 50


@SUFFIXES
def test_one_file_is_compressed(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    tensors = state()
    source, target = saved(tmp_path / f"in{suffix}", tensors), tmp_path / f"out{suffix}"
    assert main(["prune", str(source), str(target), "--compress"]) == 0
    assert target.stat().st_size < source.stat().st_size
    report = {row.name: row for row in files.report(files.read(target))}
    assert report["conv.values"].done
    assert report["attn.q_proj.values"].shape == (16, 16)


@SUFFIXES
def test_a_dry_run_says_what_would_be_and_writes_nothing(
    suffix: str, tmp_path: Path, capsys: Capture
) -> None:
    folder = sharded(tmp_path / "in", state(), suffix)
    file = saved(tmp_path / f"one{suffix}", state())
    before = sorted(tmp_path.rglob("*"))
    for source, target in ((folder, tmp_path / "out"), (file, tmp_path / f"out{suffix}")):
        assert main(["prune", str(source), str(target), "--dry-run", "--compress"]) == 0
        out = capsys.readouterr().out
        assert f"dry run: {target} was not written" in out
        assert "5 of 7" in out or "pruned" in out
    assert sorted(tmp_path.rglob("*")) == before


# ---- faults ------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, capsys: Capture) -> None:
    def says(folder: Path) -> str:
        error = fails(capsys, "prune", folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return error

    good = sharded(tmp_path / "good", state())
    assert "no such file" in says(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no weights in this folder" in says(empty)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    missing = copy("missing")
    (missing / "model-00002-of-00002.safetensors").unlink()
    assert "1 of its 2 files are missing: model-00002-of-00002.safetensors" in says(missing)
    no_index = copy("no_index")
    (no_index / "model.safetensors.index.json").unlink()
    assert "parts of a checkpoint without their index model.safetensors.index.json" in says(no_index)
    half = copy("half")
    data = (half / "model-00001-of-00002.safetensors").read_bytes()
    (half / "model-00001-of-00002.safetensors").write_bytes(data[:-100])
    assert "model-00001-of-00002.safetensors: not a safetensors file" in says(half)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ('{"weight_map": {}}', '"weight_map" must name the file of every tensor'),
        ('{"weight_map": {"a": "../x.safetensors"}}', "is no name of a file with weights in this folder"),
    ],
)
def test_a_damaged_index_is_named(text: str, says: str, tmp_path: Path, capsys: Capture) -> None:
    folder = sharded(tmp_path / "in", state())
    (folder / "model.safetensors.index.json").write_text(text)
    assert says in fails(capsys, "report", folder)


def test_an_index_that_is_wrong_about_a_tensor_is_named(tmp_path: Path, capsys: Capture) -> None:
    folder = sharded(tmp_path / "in", state())
    index = folder / "model.safetensors.index.json"
    held = json.loads(index.read_text())
    held["weight_map"]["x.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(held))
    assert "wrong about 1 tensors, among them x.weight, which is not in it" in fails(capsys, "report", folder)
    del held["weight_map"]["x.weight"], held["weight_map"]["a.bias"]
    index.write_text(json.dumps(held))
    said = fails(capsys, "prune", folder, tmp_path / "out")
    assert "wrong about 1 tensors, among them a.bias, which the index does not tell" in said


def test_several_sets_of_weights_are_not_guessed_at(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.pt", "b.pt"):
        saved(folder / name, state())
    assert "several files with weights and no index, give one of them: a.pt, b.pt" in fails(
        capsys, "report", folder
    )
    (folder / "b.pt").unlink()
    assert main(["report", str(folder)]) == 0
    for name in ("x.index.json", "y.index.json"):
        (folder / name).write_text("{}")
    assert "several indices of checkpoints" in fails(capsys, "report", folder)


def test_a_tensor_in_two_files_is_named(tmp_path: Path, capsys: Capture) -> None:
    folder = sharded(tmp_path / "in", state())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "check_index", lambda *arguments: None)
        saved(folder / "model-00002-of-00002.safetensors", {"a.weight": torch.randn(8, 8)})
        assert "a.weight is in another file of the checkpoint, too" in fails(
            capsys, "prune", folder, tmp_path / "out"
        )


def test_a_checkpoint_of_more_than_weights_is_not_a_shard(tmp_path: Path, capsys: Capture) -> None:
    folder = sharded(tmp_path / "in", state(), ".pt")
    torch.save({"model": state()}, folder / "pytorch_model-00001-of-00002.bin")
    assert "holds more than a state_dict" in fails(capsys, "prune", folder, tmp_path / "out")


def test_the_new_folder_must_be_new(tmp_path: Path, capsys: Capture) -> None:
    folder = sharded(tmp_path / "in", state())
    assert "is there already" in fails(capsys, "prune", folder, folder)
    assert "is missing, or cannot be written to" in fails(capsys, "prune", folder, tmp_path / "no" / "out")
    with pytest.MonkeyPatch.context() as patch:
        usage = type(shutil.disk_usage("/"))
        patch.setattr(shutil, "disk_usage", lambda folder: usage(10, 0, 10))
        assert "bytes are needed, and 10 are free" in fails(capsys, "prune", folder, tmp_path / "out")


def test_a_stop_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    source = sharded(tmp_path / "in", state())

    def stop(count: int) -> None:
        if any(each.name.startswith(".out") for each in tmp_path.iterdir()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.prune_folder(source, tmp_path / "out", files.Choice(), stop)
    assert list(tmp_path.iterdir()) == [source]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_pruned", full)
    with pytest.raises(files.FileError, match="out: No space left on device"):
        files.prune_folder(sharded(tmp_path / "in", state()), tmp_path / "out", files.Choice())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


# ---- memory ------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from sparse24.__main__ import main
small = main(["prune", sys.argv[1], sys.argv[2], "--compress"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
large = main(["prune", sys.argv[3], sys.argv[4], "--compress"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
assert not small and not large
"""


@SUFFIXES
def test_memory_is_that_of_one_shard(suffix: str, tmp_path: Path) -> None:
    """With a shard of 48 MiB, and four of them."""
    small = sharded(tmp_path / "small", state(), suffix)
    large = tmp_path / "large"
    large.mkdir()
    stem, kind = ("model", ".safetensors") if suffix == ".safetensors" else ("pytorch_model", ".bin")
    where = {}
    for shard in range(4):
        name = f"{stem}-{shard + 1:05}-of-00004{kind}"
        part = {f"{shard}.{i}.weight": torch.randn(1024, 2048) for i in range(6)}
        saved(large / name, part)
        where |= dict.fromkeys(part, name)
    (large / f"{stem}{kind}.index.json").write_text(json.dumps({"weight_map": where}))
    paths = [str(path) for path in (small, tmp_path / "a", large, tmp_path / "b")]
    ran = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    assert 1024 * int(ran.stdout.splitlines()[-1]) < 1.3 * 6 * 8 * 2**20
    if kind == ".safetensors":
        first = load_file(tmp_path / "b" / f"{stem}-00001-of-00004{kind}")
        assert first["0.0.values"].shape == (1024, 1024)
