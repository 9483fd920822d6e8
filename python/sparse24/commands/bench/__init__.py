"""``sparse24 bench``: the benchmarks behind every table.

Rivals take turns in one process and medians are compared, so a ratio holds where an absolute time does not.
``--write`` puts the tables, with the machine and the command, into the papers of the checkout.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...files import FileError
from ...report import format_table
from ...timing import Machine
from . import papers, tasks
from .definitions import of_key
from .machine import MachineClass
from .table import Benchmark, Interrupted, Setting, Table


class Entry(NamedTuple):
    """A benchmark: the module of its name, whose ``tables`` measures."""

    name: str
    what: str


BENCHMARKS = (
    Entry("linear", "products with many tokens, against torch and OpenBLAS"),
    Entry("decode", "products with few tokens and cold weights"),
    Entry("narrow", "linear layers in 16 and 8 bits, against torch and prepacked oneDNN"),
    Entry("conv", "convolutions, against torch and prepacked oneDNN"),
    Entry("networks", "whole networks, eager and compiled, against torch and the best dense"),
    Entry("goals", "what was asked for, what is reached here, and what bounds it"),
    Entry("oneshot", "pruning without retraining: every method on small tasks, and the loops behind it"),
    Entry("enforcement", "what enforced masks cost a step of training, and sparse products bring"),
    Entry("recipes", "every recipe of training on a small task"),
    Entry("quantize", "int8 after sparsity: accuracy on small tasks, and speed"),
    Entry("int8_networks", "int8 over whole networks: time of calibration, and what int8 gains"),
    Entry("rules", "from which sizes on layers gain: what the rules of to_sparse come from"),
    Entry("permutation", "what an order of columns gains, and how long it is looked for"),
    Entry("calls", "what a call costs beyond its kernel; needs a checkout and CMake"),
    Entry("memory", "what a converted network holds, counted and resident"),
    Entry("kernels", "masks and products from C++; needs a checkout and CMake"),
)


def run(
    only: Sequence[str] = (),
    *,
    threads: int | None = None,
    seconds: float = 2.0,
    write: bool = False,
    out: Path | None = None,
    quick: bool = False,
    minutes: float = 60.0,
    networks: Sequence[str] = (),
    resume: bool = False,
    progress: Callable[[str], None] = print,
) -> int:
    """Measure and print tables; an interruption keeps those, and the rows, that were measured.

    Args:
        only: names of benchmarks; default: all.
        threads: that torch and the kernels use; default: torch's number.
        seconds: spent on each row.
        write: put the tables into the papers of the checkout that the current directory is in.
        out: a file for the tables as JSON, written after each benchmark.
        quick: smaller problems, to see that it works; never written to papers.
        minutes: that a benchmark of many rows may take; rows that are not reached are named.
        networks: keys of the networks, or small tasks, to measure; default: all.
        resume: take over the rows that a run by the same build, which was interrupted, has measured.

    Returns:
        0, or 130 after an interruption.

    Raises:
        ValueError: an unknown benchmark or network, or numbers that are not positive.
        FileError: ``write`` or the benchmark ``kernels`` outside a checkout.
    """
    names = _checked(only, threads, seconds, minutes)
    if quick and write:
        raise ValueError("a quick run measures other problems, which do not belong in papers: leave one out")
    for key in networks:
        if key not in tasks.TASKS:
            of_key(key)
    root = papers.checkout() if write or "kernels" in only else None
    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(torch.get_num_threads(), seconds, quick, minutes, tuple(networks), resume, progress)
    machine, where = Machine.here(), MachineClass.here()
    found: list[Table] = []
    status = 0
    for name in names:
        torch.manual_seed(24)
        command = f"sparse24 bench --only {name} --threads {setting.threads}"
        try:
            made = _benchmark(name)(setting)
        except Interrupted as interruption:
            made, status = interruption.tables, 130
        except FileError as error:  # of all benchmarks one cannot run here: the others can
            if only:
                raise
            progress(f"\n{name}: left out: {error}")
            continue
        for table in made:
            named = dataclasses.replace(table, name=f"{table.name}-{setting.threads}")
            progress(f"\n{table.caption}\n{format_table(table.rows)}\n{machine}")
            found.append(named)
            if write and root is not None:
                papers.write(root, named, where, f"By `{command}` on {machine}; class: {where.title}.")
        if out is not None:
            out.write_text(json.dumps(_report(found, machine, where), indent=1) + "\n", encoding="utf-8")
        if status:
            break
    return status


def _checked(only: Sequence[str], threads: int | None, seconds: float, minutes: float) -> list[str]:
    known = [entry.name for entry in BENCHMARKS]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"there is no benchmark {unknown[0]!r}; the benchmarks are {', '.join(known)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    if not seconds > 0:
        raise ValueError(f"seconds must be more than 0, not {seconds:g}")
    if not minutes > 0:
        raise ValueError(f"minutes must be more than 0, not {minutes:g}")
    return [name for name in known if name in only or not only]


def _benchmark(name: str) -> Benchmark:
    tables: Benchmark = importlib.import_module(f".{name}", __package__).tables
    return tables


def _report(found: Sequence[Table], machine: Machine, where: MachineClass) -> dict[str, Any]:
    return {
        "format": 1,
        "class": where.title,
        "machine": dataclasses.asdict(machine),
        "tables": [dataclasses.asdict(table) for table in found],
    }
