"""``sparse24 prune IN OUT``: check the destination, prune, tell how far it is, and clean up when stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..files import Choice, FileError
from ..report import Report
from .stopping import stoppable

#: Seconds before the first word of progress, and between two of them.
_EVERY = 2.0


class Progress:
    """How much of so many bytes is done, on stderr: nothing for what takes a moment."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._told_at = time.monotonic()
        self._told = False

    def __call__(self, count: int) -> None:
        """So many more bytes are done."""
        self._done += count
        now = time.monotonic()
        if now - self._told_at < _EVERY:
            return
        self._told_at, self._told = now, True
        share = min(1.0, self._done / max(1, self._total))
        line = f"sparse24 prune: {share:.0%} done"
        print(f"\r{line}" if sys.stderr.isatty() else line, end=self._end, file=sys.stderr, flush=True)

    @property
    def _end(self) -> str:
        return "" if sys.stderr.isatty() else "\n"

    def close(self) -> None:
        """End the line that is written over."""
        if self._told and sys.stderr.isatty():
            print(file=sys.stderr)


def run(
    source: Path,
    target: Path,
    select: Sequence[str],
    skip: Sequence[str],
    *,
    compress: bool = False,
    dry_run: bool = False,
) -> int:
    """Prune a file, or the checkpoint in a folder.

    Raises:
        FileError: what cannot be read, pruned or written; ``target`` is as before.
        Stopped: by a signal; ``target`` is as before, and no other file is left.
    """
    choice = Choice(select, skip, files.vocabularies_beside(source / "x" if source.is_dir() else source))
    options = {"compress": compress, "dry_run": dry_run}
    if source.is_dir() or files.is_index(source):
        found = files.shards_of(source)
        files.check_folder(target, 0 if dry_run else sum(each.stat().st_size for each in found.files))
        progress = Progress(sum(each.stat().st_size for each in found.files))
    else:
        if files.is_safetensors(source) != files.is_safetensors(target):
            raise FileError(f"{target}: IN and OUT must both end in .safetensors, or both not")
        files.check_is_file(source)
        files.check(target, source)
        passes = 1 if files.is_safetensors(source) else 2  # torch's files are pruned, then written
        progress = Progress(passes * source.stat().st_size)
    try:
        with stoppable():
            report = _prune(source, target, choice, progress, options)
    finally:
        progress.close()
    print(report)
    if not report.done:
        raise FileError(f"{source}: nothing to prune, so {target} was not written")
    if dry_run:
        print(f"dry run: {target} was not written")
    return 0


def _prune(
    source: Path, target: Path, choice: Choice, progress: Progress, options: dict[str, bool]
) -> Report:
    """Safetensors files a tensor at a time; torch's own format wants the whole state_dict of a file."""
    if source.is_dir() or files.is_index(source):
        return files.prune_folder(source, target, choice, progress, **options)
    if files.is_safetensors(source):
        return files.prune_safetensors(source, target, choice, progress, **options)
    pruned, report = files.prune(files.read(source), *choice, progress, compress=options["compress"])
    if report.done and not options["dry_run"]:
        files.write(pruned, target, progress)
    return report
