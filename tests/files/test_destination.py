"""Where ``sparse24 prune`` writes: what is no regular, writable file is refused before the work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import sparse24
from sparse24 import files as io
from sparse24.__main__ import main
from sparse24.files import destination, formats, state_dicts

from .state_files import SUFFIXES, fails, network, saved

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read and nothing is pruned."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(formats, "_read_torch", refuse)
    monkeypatch.setattr(state_dicts, "prune_", refuse)


def out_of(path: Path, suffix: str) -> Path:
    return path / f"out{suffix}"


@SUFFIXES
@pytest.mark.usefixtures("no_work")
def test_what_is_no_regular_file_is_not_replaced(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(tmp_path / f"in{suffix}"), out_of(tmp_path, suffix)
    os.mkfifo(target)
    assert "is a fifo: only regular files are replaced" in fails(capsys, "prune", source, target)
    assert target.is_fifo()
    target.unlink()
    target.mkdir()
    assert "is a folder: only regular files" in fails(capsys, "prune", source, target)
    device = tmp_path / f"null{suffix}"
    device.symlink_to("/dev/null")
    assert "is a device: only regular files" in fails(capsys, "prune", source, device)
    assert device.is_symlink()
    assert Path("/dev/null").is_char_device()
    loop = tmp_path / f"loop{suffix}"
    loop.symlink_to(loop)
    assert str(loop) in fails(capsys, "prune", source, loop)


@SUFFIXES
@pytest.mark.usefixtures("no_work")
def test_a_read_only_file_is_not_replaced(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(tmp_path / f"in{suffix}"), out_of(tmp_path, suffix)
    target.write_bytes(b"old")
    target.chmod(0o444)
    assert "is read-only: make it writable, or give another name" in fails(capsys, "prune", source, target)
    assert target.read_bytes() == b"old"


@SUFFIXES
@pytest.mark.usefixtures("no_work")
def test_a_folder_without_room_or_rights_is_refused(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = saved(tmp_path / f"in{suffix}"), out_of(tmp_path, suffix)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage(10, 0, 10))
        size = source.stat().st_size
        assert f"{size:,} bytes are needed, and 10 are free" in fails(capsys, "prune", source, target)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written to" in fails(capsys, "prune", source, target)
    assert not target.exists()


@SUFFIXES
def test_through_a_link_its_target_is_replaced(suffix: str, tmp_path: Path) -> None:
    source, target = saved(tmp_path / f"in{suffix}"), out_of(tmp_path, suffix)
    kept = tmp_path / "kept" / "model"
    kept.parent.mkdir()
    target.symlink_to(kept)
    for _ in range(2):  # the first time it points at nothing
        assert main(["prune", str(source), str(target)]) == 0
        assert target.is_symlink()
        assert sparse24.is_sparse24(io.read(target).tensors["body.weight"])
        assert not kept.is_symlink()
        kept.chmod(0o640)
    assert kept.stat().st_mode & 0o777 == 0o640
    assert list(kept.parent.iterdir()) == [kept]


@SUFFIXES
def test_what_became_of_the_destination_meanwhile_is_seen(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = saved(tmp_path / f"in{suffix}"), out_of(tmp_path, suffix)
    umask = destination._umask

    def changed() -> int:
        os.mkfifo(target)
        return umask()

    monkeypatch.setattr(destination, "_umask", changed)
    assert "is a fifo" in fails(capsys, "prune", source, target)
    assert sorted(tmp_path.iterdir()) == [source, target]


LIMITED = """
import resource, sys
from sparse24.__main__ import main
was = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, was[1]))
code = main(["prune", *sys.argv[1:]])
resource.setrlimit(resource.RLIMIT_FSIZE, was)  # who counts lines of this process writes a file now
sys.exit(code)
"""


@SUFFIXES
def test_a_full_disk_is_one_line_and_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    state = {f"{i}.weight": torch.randn(64, 64) for i in range(3)}
    source, target = saved(tmp_path / f"in{suffix}", state), out_of(tmp_path, suffix)
    command = [sys.executable, "-c", LIMITED, str(source), str(target)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == f"sparse24 prune: {target}: File too large\n"
    assert list(tmp_path.iterdir()) == [source]


MEASURED = """
import resource, sys
from sparse24.__main__ import main
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
main(["prune", sys.argv[1], sys.argv[2]])
before = peak()
assert main(["prune", sys.argv[3], sys.argv[4]]) == 0
print(peak() - before)
"""


def test_a_safetensors_file_is_pruned_a_tensor_at_a_time(tmp_path: Path) -> None:
    small = saved(tmp_path / "small.safetensors", network().state_dict())
    state = {f"{i}.weight": torch.randn(1024, 2048) for i in range(24)}
    large = saved(tmp_path / "large.safetensors", state)
    command = [sys.executable, "-c", MEASURED, str(small), str(tmp_path / "a.safetensors"), str(large)]
    ran = subprocess.run(
        [*command, str(tmp_path / "b.safetensors")], capture_output=True, text=True, check=True
    )
    kilobytes = int(ran.stdout.splitlines()[-1])
    assert 1024 * kilobytes < large.stat().st_size / 3
    pruned = io.read(tmp_path / "b.safetensors").tensors
    for name, tensor in state.items():
        assert torch.equal(pruned[name], torch.where(sparse24.magnitude_mask(tensor), tensor, 0.0))


def test_a_file_that_shrinks_meanwhile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = saved(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    whole = source.read_bytes()
    header = io.streaming.read_header

    def shortened(path: Path) -> object:
        found = header(path)
        path.write_bytes(whole[:-8])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io.streaming, "read_header", shortened)
        assert "ends before its numbers do" in fails(capsys, "prune", source, target)
    assert list(tmp_path.iterdir()) == [source]
