"""``sparse24 study``: the talk's tables of accuracy, trained again here, dense beside sparse, over seeds.

Results are kept in OUT/results.jsonl, a line a unit; OUT/index.html and OUT/STUDY.md are made of them. The
same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...files import FileError
from ..bench import papers
from . import comparison, paper, rows, schedule, ways
from .results import Results
from .schedule import Plan, Study
from .sources import Sources, replace

QUICK_ROWS = ("resnet34", "vgg16", "ssd")
PAPER = Path("bench", "STUDY.md")


def run(
    out: Path,
    *,
    data: Path | None = None,
    only: Sequence[str] = (),
    seeds: int = 3,
    some_ways: Sequence[str] = (),
    jobs: int = 0,
    minutes: float = 300.0,
    quick: bool = False,
    write: bool = False,
    progress: Callable[[str], None] = print,
) -> int:
    """Do what is left of the study, and write its page.

    Args:
        out: a folder for results, networks, the page and the Markdown; made if it is not there.
        data: where data are looked for first (:mod:`.sources` has the folders' names).
        only: keys of rows; default: all, and the comparison.
        seeds: so many, from 0.
        some_ways: names of ways; default: all.
        jobs: units side by side, a thread each; default: as many as the process has cores.
        minutes: after which nothing new is begun.
        quick: three rows, eight steps each, a seed: to see that it works.
        write: put the Markdown into the checkout that the current directory is in, as bench/STUDY.md.

    Returns:
        0; 1 where a unit failed or no time was left for it.

    Raises:
        ValueError: an unknown row or way, or numbers that are not positive.
        FileError: a study runs in ``out`` already, or what is there belongs to something else.
    """
    plan = _checked(out, data, only, seeds, some_ways, jobs, minutes, quick)
    if quick and write:
        raise ValueError("a quick study trains for a few steps, which do not belong in papers: leave one out")
    root = papers.checkout() if write else None
    with _alone(out):
        results = Results(out / "results.jsonl")
        study = Study(plan, results, progress)
        failed: dict[ways.Unit, str] = {}
        try:
            failed = study.run()
        finally:
            _write(plan, results, {unit.key: why for unit, why in failed.items()}, root)
    progress(f"{out / 'index.html'} and {out / 'STUDY.md'}: {len(list(schedule.kept(results, plan)))} units")
    return 1 if failed or len(list(schedule.kept(results, plan))) < len(schedule.units(plan)) else 0


def _write(plan: Plan, results: Results, failed: dict[str, str], root: Path | None) -> None:
    """The page and the papers."""
    kept = list(schedule.kept(results, plan))
    parts = paper.sections(kept)
    for line in _said_first(parts):
        print(line)
    command = f"sparse24 study --seeds {len(plan.seeds)}" + (" --quick" if plan.quick else "")
    told = paper.about(kept, failed, plan.rows)
    paper.page(parts, command, told).write(plan.folder / "index.html")
    text = paper.markdown(parts, command, told)
    replace(plan.folder / "STUDY.md", text)
    if root is not None:
        replace(root / PAPER, text)


def _said_first(parts: Sequence[paper.Section]) -> list[str]:
    """Rows that fail, for the terminal."""
    failing = [part for part in parts if part.title == "Rows that fail"]
    return [f"fails: {row[0]}: {row[4]} {row[5]} -> {row[6]}" for part in failing for row in part.rows[1:]]


def _checked(  # noqa: PLR0917  # named above
    out: Path, data: Path | None, only: Sequence[str], seeds: int, some_ways: Sequence[str], jobs: int,
    minutes: float, quick: bool,
) -> Plan:  # fmt: skip
    known = [row.key for row in rows.ROWS]
    for key in only:
        if key not in (*known, comparison.KEY):
            raise ValueError(f"there is no row {key!r}; the rows are {', '.join([*known, comparison.KEY])}")
    every = [*ways.WAYS, *comparison.WAYS]
    for way in some_ways:
        if way not in every:
            raise ValueError(f"there is no way {way!r}; the ways are {', '.join(dict.fromkeys(every))}")
    if seeds < 1 or jobs < 0 or not minutes > 0:
        raise ValueError(
            f"seeds and minutes must be positive and jobs 0 or more, not {seeds}, {minutes:g} and {jobs}"
        )
    Sources(data)  # is the folder there
    asked = tuple(only) or (QUICK_ROWS if quick else (*known, comparison.KEY))
    return Plan(
        asked, (0,) if quick else tuple(range(seeds)), tuple(some_ways), quick, data, out,
        jobs or len(os.sched_getaffinity(0)), minutes,
    )  # fmt: skip


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """The only study in a folder; the lock ends with the process."""
    if out.exists() and not out.is_dir():
        raise FileError(f"{out}: not a folder")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{out}: another study is running there") from None
        yield
