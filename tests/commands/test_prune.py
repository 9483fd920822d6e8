"""``sparse24 prune`` as a process: signals, progress, and files that are somebody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse24 import files
from sparse24.__main__ import main
from sparse24.commands import prune, stopping

from ..files.state_files import SUFFIXES, fails, saved

pytestmark = pytest.mark.usefixtures("seeded")

Capture, Patch = pytest.CaptureFixture[str], pytest.MonkeyPatch
SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGALRM", "SIGXCPU"]


@SUFFIXES
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_one_line_and_leaves_nothing(
    name: str,
    suffix: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: Patch,
) -> None:
    source, target = saved(tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
    target.write_bytes(b"old")
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    seen: list[int] = []

    def told(self: Any, count: int) -> None:
        seen.append(len(list(tmp_path.iterdir())))
        if seen[-1] < 3:
            return  # nothing is written yet
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the way out is not interrupted

    monkeypatch.setattr(prune.Progress, "__call__", told)
    assert main(["prune", str(source), str(target)]) == 128 + number
    assert capsys.readouterr().err == f"sparse24 prune: stopped by {name}\n"
    assert seen[-1] == 3  # there was a temporary file
    assert sorted(tmp_path.iterdir()) == [source, target]
    assert target.read_bytes() == b"old"
    assert signal.getsignal(number) is handler


@SUFFIXES
def test_a_process_that_is_terminated_cleans_up(suffix: str, tmp_path: Path) -> None:
    """In the middle of a torch file closing the archive fails besides: that is not what the user is told."""
    state = {f"{i}.weight": torch.zeros(1024, 1024) for i in range(80)}
    source, target = saved(tmp_path / f"in{suffix}", state), tmp_path / f"out{suffix}"
    command = [sys.executable, "-m", "sparse24", "prune", str(source), str(target)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while len(list(tmp_path.iterdir())) < 2 and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = [line for line in process.stderr.read().splitlines() if not line.endswith("% done")]
        assert process.wait() == 128 + signal.SIGTERM
    assert said == ["sparse24 prune: stopped by SIGTERM"]
    assert list(tmp_path.iterdir()) == [source]


def test_signals_that_are_ignored_or_handled_stay_so() -> None:
    handled: list[int] = []
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    user = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    try:
        with stopping.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(signal.SIGUSR1, user)
    assert handled == [signal.SIGUSR1]


def test_a_thread_prunes_without_handlers(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "in.pt"), tmp_path / "out.pt"
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(main(["prune", str(source), str(target)])))
    thread.start()
    thread.join()
    assert status == [0]


@SUFFIXES
@pytest.mark.parametrize("terminal", [False, True])
def test_what_takes_long_tells_how_far_it_is(
    terminal: bool,
    suffix: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: Patch,
) -> None:
    state = {f"{i}.weight": torch.randn(256, 256) for i in range(4)}
    source, target = saved(tmp_path / f"in{suffix}", state), tmp_path / f"out{suffix}"
    monkeypatch.setattr(prune, "_EVERY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert main(["prune", str(source), str(target)]) == 0
    said = capsys.readouterr().err
    lines = said.split("\r" if terminal else "\n")
    shares = [int(line.partition("%")[0].rpartition(" ")[2]) for line in lines if "%" in line]
    assert shares == sorted(shares)
    assert len(shares) >= 4
    assert shares[-1] >= 95
    assert "sparse24 prune: " in lines[1]
    assert said.endswith("\n")


def test_what_takes_a_moment_is_silent(tmp_path: Path, capsys: Capture) -> None:
    assert main(["prune", str(saved(tmp_path / "in.pt")), str(tmp_path / "out.pt")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
    ],
)
def test_other_ends_are_one_line(
    error: BaseException,
    status: int,
    says: str,
    capsys: Capture,
    monkeypatch: Patch,
) -> None:
    def end(path: Path) -> None:
        raise error

    monkeypatch.setattr(files, "read_all", end)
    assert main(["report", "x.pt"]) == status
    assert capsys.readouterr().err.strip() == f"sparse24 report: {says}"


def test_a_fault_of_ours_is_not_called_a_users(monkeypatch: Patch) -> None:
    def end(path: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(files, "read_all", end)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["report", "x.pt"])


# ---- files of other programs --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["report", "prune"])
def test_files_of_other_programs_are_refused_with_the_way_round(
    command: str, tmp_path: Path, capsys: Capture
) -> None:
    def says(path: Path) -> str:
        return fails(capsys, command, path, *([tmp_path / "out.bin"] if command == "prune" else []))

    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00rest")
    assert "a GGUF file, whose weights are quantized: prune the safetensors file or checkpoint" in says(gguf)
    renamed = saved(tmp_path / "m.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "a safetensors file by its contents: rename it to pytorch_model.safetensors" in says(renamed)
