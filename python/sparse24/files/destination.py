"""Where a file is written to: checked before the work, replaced in one step after it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FileError

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def check(path: Path, source: Path | None = None) -> Path:
    """The file that writing to ``path`` would replace: through a link, what it points at.

    Args:
        path: where to write.
        source: the file that is read, which is never overwritten; about as many bytes must be free.

    Raises:
        FileError: it is no regular file, is read-only or ``source`` itself; its folder is missing, is
            read-only, or has too little room.
    """
    try:
        target = path.resolve(strict=False)
        mode = target.stat().st_mode if target.exists() else None
    except (OSError, RuntimeError) as error:  # a loop of links
        raise FileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if mode is not None:
        if source is not None and source.exists() and target.samefile(source):
            raise FileError(f"{path}: is IN itself, which is never overwritten; give another name")
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "no file")
            raise FileError(f"{path}: is {kind}: only regular files are replaced")
        if not mode & 0o222 or not os.access(target, os.W_OK):
            raise FileError(f"{path}: is read-only: make it writable, or give another name")
    _check_folder(path, target.parent, 0 if source is None else source.stat().st_size)
    return target


def _check_folder(path: Path, folder: Path, size: int) -> None:
    if not folder.is_dir():
        raise FileError(f"{path}: No such file or directory: the folder {folder} is missing")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"{path}: the folder {folder} cannot be written to")
    free = shutil.disk_usage(folder).free
    if free < size:
        raise FileError(f"{path}: {size:,} bytes are needed, and {free:,} are free in {folder}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which takes its place when the block ends without an exception.

    Through a link, it is the link's target that is replaced; a file that is replaced keeps its mode. Where
    the block does not end so, ``path`` is as before, and the temporary file is gone.

    Raises:
        FileError: as :func:`check`.
    """
    target = check(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:  # from before the file is there: a signal may come at any time
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        mode = target.stat().st_mode if target.exists() else 0o666 & ~_umask()
        temporary.chmod(stat.S_IMODE(mode))
        check(path)  # what became of it meanwhile
        temporary.replace(target)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
