"""``sparse24 bench``: the benchmarks behind every table.

Rivals take turns in one process and medians are compared, so a ratio holds where an absolute time does not.
``--write`` puts the tables, with the machine and the command, into the papers of the checkout.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ...files import FileError
from ...timing import Machine
from . import devices, papers, tasks
from .definitions import of_key
from .outputs import Outputs, shown
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
    Entry("conv3d", "3-D convolutions, against torch"),
    Entry("networks", "whole networks, eager and compiled, against torch and the best dense"),
    Entry("goals", "what was asked for, what is reached here, and what bounds it"),
    Entry("oneshot", "pruning without retraining: every method on small tasks, and the loops behind it"),
    Entry("enforcement", "what enforced masks cost a step of training, and sparse products bring"),
    Entry("recipes", "every recipe of training on a small task"),
    Entry("quantize", "int8 after sparsity: accuracy on small tasks, and speed"),
    Entry("int8_networks", "int8 over whole networks: time of calibration, and what int8 gains"),
    Entry("rules", "from which sizes on layers gain: what the rules of to_sparse come from"),
    Entry("permutation", "what an order of columns gains, and how long it is looked for"),
    Entry("talk", "the talk's products at its sizes, beside its figures of an A100"),
    Entry("roofline", "what the machine could do, and what products reach of it"),
    Entry("encoder", "one encoder layer by its parts: where the rest of Amdahl's law is"),
    Entry("masks", "masks and compression from Python, against plain torch"),
    Entry("calls", "what a call costs beyond its kernel; needs a checkout and CMake"),
    Entry("memory", "what a converted network holds, counted and resident"),
    Entry("kernels", "masks and products from C++; needs a checkout and CMake"),
)
#: Benchmarks by what they are about: other names for some of the above.
GROUPS = {
    "gemm": ("linear", "narrow", "talk", "roofline"),
    "model": ("networks", "encoder"),
    "mask": ("masks",),
}


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
    batches: Sequence[int] = (),
    csv: Path | None = None,
    plots: Path | None = None,
    device: str | None = None,
    progress: Callable[[str], None] = print,
) -> int:
    """Measure and print tables; an interruption keeps those, and the rows, that were measured.

    Args:
        only: names of benchmarks or of groups of them; default: all.
        threads: that torch and the kernels use; default: torch's number.
        seconds: spent on each row.
        write: put the tables into the papers of the checkout that the current directory is in.
        out: a file for the tables as JSON, written after each benchmark.
        quick: smaller problems, to see that it works; never written to papers.
        minutes: that a benchmark of many rows may take; rows that are not reached are named.
        networks: keys of the networks, or small tasks, to measure; default: all.
        resume: take over the rows that a run by the same build, which was interrupted, has measured.
        batches: that networks are measured at; default: each one's own.
        csv: a file for all cells of the tables, written after each benchmark.
        plots: a folder for plots of the tables and a page of them all, written after each benchmark.
        device: "cpu" or "cuda"; default: a GPU where cuSPARSELt runs on one.

    Returns:
        0, or 130 after an interruption.

    Raises:
        ValueError: an unknown benchmark, network or device, one without a form for a GPU, or numbers that are
            not positive.
        Error: ``device`` is "cuda", and nothing runs on it.
        FileError: ``write`` or the benchmark ``kernels`` outside a checkout.
    """
    where_to = devices.chosen(device)
    names = _checked(only, threads, batches, where_to)
    for what, number in (("seconds", seconds), ("minutes", minutes)):
        if not number > 0:
            raise ValueError(f"{what} must be more than 0, not {number:g}")
    if quick and write:
        raise ValueError("a quick run measures other problems, which do not belong in papers: leave one out")
    for key in networks:
        if key not in tasks.TASKS:
            of_key(key)
    root = papers.checkout() if write or "kernels" in only else None
    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(
        torch.get_num_threads(), seconds, quick, minutes, tuple(networks), tuple(batches), resume, progress
    )
    chosen = [f"--network {key}" for key in networks] + [f"--batch {batch}" for batch in batches]
    options = " ".join([f"--threads {setting.threads}", *chosen, *(["--quick"] if quick else [])])
    typed = " ".join(["sparse24 bench", *only, options])
    outputs = Outputs(root if write else None, out, csv, plots, typed)
    machine, where = Machine.here(), devices.machine_class(where_to)
    found: list[Table] = []
    for name in names:
        torch.manual_seed(24)
        status = 0
        try:
            made = _benchmark(name, where_to)(setting)
        except Interrupted as interruption:
            made, status = interruption.tables, 130
        except FileError as error:  # of all benchmarks one cannot run here: the others can
            if only:
                raise
            progress(f"\n{name}: left out: {error}")
            continue
        for table in made:
            found.append(dataclasses.replace(table, name=f"{table.name}-{setting.threads}"))
            progress(shown(found[-1], machine))
            outputs.publish(found[-1], machine, where, f"sparse24 bench --only {name} {options}")
        outputs.write(found, machine, where, progress)
        if status:
            return status
    return 0


def _checked(only: Sequence[str], threads: int | None, batches: Sequence[int], device: str) -> list[str]:
    known = [entry.name for entry in BENCHMARKS]
    unknown = [name for name in only if name not in known and name not in GROUPS]
    if unknown:
        names = ", ".join([*known, *GROUPS])
        raise ValueError(f"there is no benchmark {unknown[0]!r}; the benchmarks are {names}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    if any(batch < 1 for batch in batches):
        raise ValueError(f"a batch must be 1 or more, not {min(batches)}")
    wanted = {each for name in only for each in GROUPS.get(name, (name,))}
    if device == devices.CUDA:
        return devices.on_gpu(wanted, [name for name in only if name not in GROUPS])
    return [name for name in known if name in wanted or not only]


def _benchmark(name: str, device: str = devices.CPU) -> Benchmark:
    package = f"{__package__}.gpu" if device == devices.CUDA else __package__
    tables: Benchmark = importlib.import_module(f".{name}", package).tables
    return tables
