"""The command line: ``sparse24 demo | doctor | report | prune | oneshot | bench | study | validate-gpu``.

More than 300 lines: the options of every command, and its call.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__, files
from .commands import doctor, prune
from .commands.stopping import Stopped
from .files import FileError
from .ops import machine

_Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; default: those of the process.

    Returns:
        The exit status: 0, 1 where what was asked for failed, 2 for a mistake of the user, which a line on
        stderr explains, 128 and its number for a signal.
    """
    options = _parser().parse_args(arguments)
    run: _Command = options.run
    try:
        status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has left: nothing is wrong, and nothing can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FileError, OSError) as error:
        print(f"sparse24 {options.command}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):  # torch's words
            raise
        print(f"sparse24 {options.command}: out of memory", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as stop:
        start = "\n" if sys.stderr.isatty() else ""  # after the terminal's ^C
        name = str(stop) or "SIGINT"
        print(f"{start}sparse24 {options.command}: stopped by {name}", file=sys.stderr)
        return stop.status if isinstance(stop, Stopped) else 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparse24",
        description="2:4 structured sparsity for PyTorch: prune, retrain, store at half the size.",
    )
    parser.add_argument("--version", action="version", version=f"sparse24 {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="prune, retrain, compress and time real networks here")
    demo.add_argument("--quick", action="store_true", help="smaller problems: under a minute")
    demo.add_argument("--out", type=Path, default=Path("sparse24-demo"), help="folder (default: %(default)s)")
    demo.set_defaults(run=_demo)

    check = commands.add_parser("doctor", help="what runs on this machine, and does it compute right")
    check.add_argument("--json", action="store_true", help="for a program to read")
    check.add_argument(
        "--measure",
        action="store_true",
        help="time the kernels' constants here for half a minute, and keep what is faster than the defaults",
    )
    check.set_defaults(run=_doctor)

    report = commands.add_parser("report", help="which weights of a file are 2:4, and what they weigh")
    report.add_argument(
        "model", type=Path, metavar="MODEL", help=".safetensors, or written by torch.save; a folder; an index"
    )
    report.set_defaults(run=_report)

    _add_prune(commands)
    _add_oneshot(commands)
    _add_bench(commands)
    _add_study(commands)

    validate = commands.add_parser(
        "validate-gpu", help="check and time on this machine's GPU everything that only a GPU can show"
    )
    validate.add_argument(
        "--out",
        type=Path,
        default=Path("sparse24-gpu.json"),
        help="report (default: %(default)s), with a page beside it that ends in .html",
    )
    validate.add_argument(
        "--part", action="append", default=[], metavar="NAME", help="this part alone; may be repeated"
    )
    validate.add_argument("--quick", action="store_true", help="fewer shapes, in two minutes")
    validate.set_defaults(run=_validate)
    return parser


def _add_prune(commands: Any) -> None:
    parser = commands.add_parser(
        "prune",
        help="prune the weights of a file or a sharded checkpoint to 2:4 by magnitude",
        description="Prune the weights of a file to 2:4 by magnitude. Names and shapes, and a config.json "
        "beside the file, tell what a tensor is. A .safetensors file is pruned a tensor at a time; one of "
        "torch.save is mapped, and all its pruned tensors are in memory at once. The "
        "files of a folder or an index are pruned one by one into a new folder, with what else is in it.",
    )
    parser.add_argument(
        "source", type=Path, metavar="IN", help="a state_dict: .safetensors or torch.save; a folder; an index"
    )
    parser.add_argument("target", type=Path, metavar="OUT", help="in the same format; not IN; a new folder")
    parser.add_argument("--compress", action="store_true", help="write what is pruned in the compressed form")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    for option, what in (("--select", "prune these tensors alone"), ("--skip", "never prune these tensors")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="NAME",
            help=f"{what} (names or patterns like 'encoder.*.weight'; may be repeated)",
        )
    parser.set_defaults(run=_prune)


def _add_oneshot(commands: Any) -> None:
    parser = commands.add_parser(
        "oneshot",
        help="prune a transformers model on disk without retraining",
        description="Prune a model that transformers has saved, calibrated on unlabelled data, without "
        "retraining. OUT is in the same format, with the tokenizer; it appears when all is done. The same "
        "command goes on where an interrupted one stopped.",
    )
    parser.add_argument("source", type=Path, metavar="MODEL_DIR", help="a folder with config.json")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a text file (a sample a line; .jsonl: its text), a folder of them, or a folder of images",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder, not there yet")
    numbers = (
        ("refit", 10, "steps of least squares for each matrix"),
        ("steps", 400, "of training each block on the dense one's outputs; 0: none"),
        ("samples", 256, "texts or images to calibrate on"),
        ("batch", 8, "samples at once"),
        ("length", 0, "tokens of a sample; 0: 512, or the model's most"),
        ("seed", 24, "of the choice of samples"),
    )
    parser.add_argument("--method", default="sparsegpt", help="sparsegpt, admm, wanda, ria or magnitude")
    for name, default, what in numbers:
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--dtype", default="auto", help="to load it in: auto (the file's), float32, float16, bfloat16"
    )
    for option, what in (("--select", "prune these layers alone"), ("--skip", "keep these layers dense")):
        parser.add_argument(
            option, action="append", default=[], metavar="NAME", help=f"{what}; may be repeated"
        )
    parser.add_argument(
        "--budget",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the time that 2:4 saves, to give up for accuracy: the most sensitive layers stay dense",
    )
    parser.add_argument("--offload", type=Path, metavar="DIR", help="where activations wait")
    parser.set_defaults(run=_oneshot)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="the tables of the papers, measured here against dense rivals",
        description="Measure against dense rivals, in turns, and print tables. A mistake in a name lists all "
        "of them; gemm, model and mask stand for several.",
    )
    bench.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="gemm, conv, decode, model, mask, memory, or a benchmark's own name; default: all",
    )
    bench.add_argument("--only", nargs="+", default=[], metavar="NAME", help="the same")
    bench.add_argument("--threads", type=int, metavar="N", help="default: torch's number")
    bench.add_argument("--seconds", type=float, default=2.0, help="spent on each row (default: %(default)s)")
    bench.add_argument("--write", action="store_true", help="update the papers of this checkout")
    bench.add_argument("--out", type=Path, metavar="FILE", help="write the tables as JSON, too")
    bench.add_argument("--csv", type=Path, metavar="FILE", help="write all cells as CSV, too")
    bench.add_argument(
        "--plots", type=Path, metavar="DIR", help="draw the tables, too: SVG files, and a page index.html"
    )
    bench.add_argument("--quick", action="store_true", help="smaller problems, to see that it works")
    bench.add_argument(
        "--minutes", type=float, default=60.0, help="for the networks, at most (default: %(default)s)"
    )
    bench.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="KEY",
        help="this network or task alone; may be repeated",
    )
    bench.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    bench.add_argument(
        "--batch",
        action="append",
        type=int,
        default=[],
        metavar="N",
        help="for the networks: this batch alone; may be repeated",
    )
    bench.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: a GPU where cuSPARSELt runs on one, else the CPU"
    )
    bench.add_argument(
        "--readme-plots",
        action="store_true",
        help="measure nothing: draw docs/images/*.svg of this checkout from kept tables and results",
    )
    bench.add_argument(
        "--study",
        type=Path,
        default=Path("sparse24-study", "results.jsonl"),
        metavar="FILE",
        help="for --readme-plots: what sparse24 study has kept (default: %(default)s)",
    )
    bench.set_defaults(run=_bench)


def _add_study(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="train the talk's families of networks here, dense beside sparse, over seeds",
        description="Train networks of the talk's families, dense and by its recipe, over seeds. Every unit "
        "takes at most ten minutes and is kept when done: the same command goes on where one stopped. "
        "OUT/index.html and OUT/STUDY.md tell the results.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("sparse24-study"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data are looked for first")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="these rows alone")
    parser.add_argument("--ways", nargs="+", default=[], metavar="WAY", help="these ways alone")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="units side by side (default: one a core)"
    )
    parser.add_argument(
        "--minutes", type=float, default=300.0, help="after which nothing new begins (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="three rows, a few steps: to see that it works")
    parser.add_argument("--write", action="store_true", help="update bench/STUDY.md of this checkout")
    parser.set_defaults(run=_study)


def _study(options: argparse.Namespace) -> int:
    study = importlib.import_module(".commands.study", __package__)
    try:
        status: int = study.run(
            options.out,
            data=options.data,
            only=options.only,
            seeds=options.seeds,
            some_ways=options.ways,
            jobs=options.jobs,
            minutes=options.minutes,
            quick=options.quick,
            write=options.write,
        )
    except ValueError as error:
        raise FileError(str(error)) from None
    return status


def _demo(options: argparse.Namespace) -> int:
    status: int = importlib.import_module(".commands.demo", __package__).main(
        quick=options.quick, out=options.out
    )
    return status


def _doctor(options: argparse.Namespace) -> int:
    if options.measure:
        measure = importlib.import_module(".commands.measure", __package__)
        found = measure.measure(lambda line: print(line, file=sys.stderr, flush=True))
        print(f"kept in {machine.keep(found)}", file=sys.stderr)
    diagnosis = doctor.diagnose()
    if options.json:
        print(json.dumps({**dataclasses.asdict(diagnosis), "healthy": diagnosis.healthy}, indent=2))
    else:
        print(diagnosis)
    return 0 if diagnosis.healthy else 1


def _report(options: argparse.Namespace) -> int:
    print(files.report(files.read_all(options.model)))
    return 0


def _prune(options: argparse.Namespace) -> int:
    return prune.run(
        options.source,
        options.target,
        options.select,
        options.skip,
        compress=options.compress,
        dry_run=options.dry_run,
    )


def _oneshot(options: argparse.Namespace) -> int:
    command = importlib.import_module(".commands.oneshot", __package__)
    names = [field.name for field in dataclasses.fields(command.Options)]
    wanted = command.Options(**{name: getattr(options, name) for name in names})
    status: int = command.run(options.source, options.data, options.out, wanted)
    return status


def _bench(options: argparse.Namespace) -> int:
    if options.readme_plots:
        where = importlib.import_module(".commands.bench.machine", __package__).MachineClass.here()
        importlib.import_module(".commands.bench.front_page", __package__).write(options.study, where)
        return 0
    run = importlib.import_module(".commands.bench", __package__).run
    try:
        status: int = run(
            [*options.names, *options.only],
            threads=options.threads,
            seconds=options.seconds,
            write=options.write,
            out=options.out,
            quick=options.quick,
            minutes=options.minutes,
            networks=options.network,
            resume=options.resume,
            batches=options.batch,
            csv=options.csv,
            plots=options.plots,
            device=options.device,
        )
    except ValueError as error:
        raise FileError(str(error)) from None
    return status


def _validate(options: argparse.Namespace) -> int:
    try:
        status: int = importlib.import_module(".commands.validate", __package__).run(
            options.out, options.part, quick=options.quick
        )
    except ValueError as error:
        raise FileError(str(error)) from None
    return status


if __name__ == "__main__":
    sys.exit(main())
