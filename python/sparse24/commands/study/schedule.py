"""Which units are done in which order, side by side, each in a process of one thread."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from ... import __version__
from . import comparison, rows, ways
from .results import Result, Results
from .ways import Unit

#: Seconds that a unit may take; of one that takes longer nothing is kept but that.
LIMIT = 600.0
#: What a unit is thought to take before any has been seen.
_GUESS = 75.0


class Plan(NamedTuple):
    """What is asked for."""

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    ways: tuple[str, ...]
    quick: bool
    data: Path | None
    folder: Path
    jobs: int
    minutes: float


class _Running(NamedTuple):
    unit: Unit
    process: subprocess.Popen[str]
    begin: float
    told: IO[str]  #: what it writes to stderr


def units(plan: Plan) -> list[Unit]:
    """Every unit, in order: a seed of all rows before the next; what others begin with comes first."""
    found = []
    for seed in plan.seeds:
        for key in plan.rows:
            if key == comparison.KEY:
                wanted: Sequence[str] = list(comparison.WAYS)
            else:
                wanted = ways.ways_of(rows.of_key(key))
            found += [Unit(key, seed, way) for way in wanted if way in plan.ways or not plan.ways]
    return found


def identity(unit: Unit, quick: bool) -> str:
    """Changes where a result does not hold any more."""
    if unit.row == comparison.KEY:
        return rows.identity(rows.ROWS[0]._replace(key=comparison.KEY, training=comparison.TRAINING), quick)
    return rows.identity(rows.of_key(unit.row), quick)


def start_of(unit: Unit) -> str:
    """The way that a unit begins with, "" for none."""
    if unit.row == comparison.KEY:
        return "" if unit.way in ("start", "half") else "start"
    return ways.WAYS[unit.way].after


class Study:
    """Runs a plan; what is done is in ``results``, so another run goes on from there."""

    def __init__(self, plan: Plan, results: Results, progress: Callable[[str], None]) -> None:
        self._plan, self._results, self._progress = plan, results, progress
        self._running: list[_Running] = []
        self._spent: dict[tuple[str, str], float] = {}
        self._failed: dict[Unit, str] = {}

    def run(self) -> dict[Unit, str]:
        """Do what is left; what failed, and why.

        Nothing new begins when the time is up. An interruption ends what is running; what was done is kept.
        """
        end = time.monotonic() + 60 * self._plan.minutes
        left = [unit for unit in units(self._plan) if not self._done(unit)]
        done = len(units(self._plan)) - len(left)
        self._progress(f"{done} units are done, {len(left)} are left: {self._guess(left)}")
        try:
            while left or self._running:
                ready = [unit for unit in left if self._ready(unit)]
                left = self._drop_stranded(left, ready)
                if time.monotonic() > end:
                    left, ready = [], []
                while ready and len(self._running) < self._plan.jobs:
                    unit = ready.pop(0)
                    left.remove(unit)
                    self._running.append(self._begin(unit))
                for running in [r for r in self._running if self._ended(r)]:
                    self._running.remove(running)
                    self._keep(running, left)
                time.sleep(0.05)
        finally:
            for running in self._running:
                running.process.kill()
                running.process.communicate()
                running.told.close()
        return self._failed

    def _done(self, unit: Unit) -> bool:
        """Whether a result is there, and with it the network that others begin with."""
        kept = self._results.get(unit.key, identity(unit, self._plan.quick))
        if kept is None or "error" in kept:
            return False
        self._spent[unit.row, unit.way] = float(kept.get("whole_seconds", _GUESS))
        return True

    def _ready(self, unit: Unit) -> bool:
        start = start_of(unit)
        return not start or self._done(unit._replace(way=start))

    def _drop_stranded(self, left: list[Unit], ready: Sequence[Unit]) -> list[Unit]:
        """What is left without those whose start failed or is not asked for."""
        if ready or self._running:
            return left
        for unit in left:
            self._failed.setdefault(unit, f"{start_of(unit)!r}, which it begins with, is not there")
        return []

    def _begin(self, unit: Unit) -> _Running:
        plan = self._plan
        order = {
            **unit._asdict(), "quick": plan.quick, "threads": 1, "folder": str(plan.folder.absolute()),
            "data": str(plan.data.absolute()) if plan.data else "",
        }  # fmt: skip
        told = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed by _keep
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONSAFEPATH": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "sparse24.commands.study.unit"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=told, text=True, env=environment,
        )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once: its status tells
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        return _Running(unit, process, time.monotonic(), told)

    @staticmethod
    def _ended(running: _Running) -> bool:
        if time.monotonic() - running.begin > LIMIT:
            running.process.kill()
            running.process.wait()
        return running.process.poll() is not None

    def _keep(self, running: _Running, left: Sequence[Unit]) -> None:
        unit, spent = running.unit, time.monotonic() - running.begin
        assert running.process.stdout is not None
        result = _answer(running, running.process.stdout.read())
        for pipe in (running.process.stdin, running.process.stdout, running.told):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        if "error" in result:
            self._failed[unit] = str(result["error"])
            self._progress(f"  {unit.key}: failed: {result['error']}")
            return
        result.update(
            row=unit.row, seed=unit.seed, way=unit.way, whole_seconds=round(spent, 1), jobs=self._plan.jobs,
            quick=self._plan.quick, versions={"sparse24": __version__, "torch": torch.__version__},
        )  # fmt: skip
        self._results.add(unit.key, identity(unit, self._plan.quick), result)
        self._spent[unit.row, unit.way] = spent
        told = f"{result['metric']} {result['score']:.4g}, {spent:.0f} s"
        self._progress(f"  {unit.key}: {told}; {len(left)} left: {self._guess(left)}")

    def _guess(self, left: Sequence[Unit]) -> str:
        """How long the rest will take."""
        usual = statistics.median(self._spent.values()) if self._spent else _GUESS
        seconds = sum(self._spent.get((unit.row, unit.way), usual) for unit in left) / self._plan.jobs
        return f"about {seconds / 60:.0f} minutes" if seconds > 90 else f"about {seconds:.0f} seconds"


def _answer(running: _Running, text: str) -> Result:
    """What the process wrote, or what became of it."""
    with contextlib.suppress(ValueError):
        answer = json.loads(text)
        if isinstance(answer, dict):
            return answer
    if time.monotonic() - running.begin > LIMIT:
        return {"error": f"it took more than {LIMIT:.0f} seconds"}
    running.told.seek(0)
    last = running.told.read().strip().rpartition("\n")[2]
    return {
        "error": f"its process ended with status {running.process.returncode}{': ' + last if last else ''}"
    }


def kept(results: Results, plan: Plan) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """What a plan has so far."""
    for unit in units(plan):
        result = results.get(unit.key, identity(unit, plan.quick))
        if result is not None and "error" not in result:
            yield unit, result
