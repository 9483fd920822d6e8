"""``sparse24 oneshot MODEL_DIR --data DATA --out DIR``: a transformers model on disk, pruned in one shot.

DIR appears when all is done. Until then everything is in ``DIR.part`` beside it, and the same command goes on
after the last block that was finished.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ... import calibrated
from ...files import FileError
from ..stopping import stoppable
from . import data, pretrained


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for; the defaults are those of ``sparse24.oneshot``."""

    method: str = "sparsegpt"
    refit: int = 10
    steps: int = 400  #: 0: blocks are not trained
    samples: int = 256
    length: int = 0  #: tokens of a sample; 0: 512, or the model's most
    batch: int = 8
    seed: int = 24
    dtype: str = "auto"  #: "auto": that of the file
    select: Sequence[str] = ()
    skip: Sequence[str] = ()
    budget: float = 0.0
    offload: Path | None = None


def run(source: Path, given: Path, out: Path, options: Options) -> int:
    """Prune the model in the folder ``source``, calibrated on ``given``, into the folder ``out``.

    Raises:
        FileError: what cannot be read, used or written.
        Stopped: by a signal; what was done is kept for the next run.
    """
    _check(out, options)
    part = out.with_name(out.name + ".part")
    model, kind = pretrained.load(source, options.dtype)
    batches = data.batches(source, given, kind, options)
    print(f"calibrating on {len(batches)} batches of {options.batch}", file=sys.stderr, flush=True)
    _make(part)
    skip = list(options.skip)
    with stoppable():
        if options.budget:
            found = calibrated.sensitivity(model, batches, select=options.select or None, progress=_say)
            print(found)
            skip += found.skip(options.budget)
        try:
            report = calibrated.oneshot(
                model,
                batches,
                options.method,
                refit=options.refit,
                reconstruct="component" if options.steps else None,
                steps=options.steps or 1,
                select=options.select or None,
                skip=skip,
                folder=part / "progress",
                offload=options.offload,
                progress=_say,
            )
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, FileError) else FileError(str(error)) from error
        if not report.done:
            print(report)
            raise FileError(f"{source}: nothing to prune, so {out} was not written")
        draft = part / "model"
        pretrained.save(model, source, draft)
        draft.rename(out)
        shutil.rmtree(part)
    print(report)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check(out: Path, options: Options) -> None:
    if out.exists():
        raise FileError(f"{out}: is there already: give the name of a folder that is not")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise FileError(f"{out}: the folder {out.parent} is missing, or cannot be written to")
    for name, least in (("samples", 1), ("batch", 1), ("length", 0), ("steps", 0), ("refit", 0)):
        if getattr(options, name) < least:
            raise FileError(f"--{name} must be {least} or more, not {getattr(options, name)}")
    if not 0 <= options.budget <= 1:
        raise FileError(f"--budget is a share, from 0 to 1, not {options.budget}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: {error.strerror or error}") from error
