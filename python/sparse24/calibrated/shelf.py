"""Where calls of blocks and weights wait until they are wanted: in memory, or in files of a folder."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from ..files import FileError


class Shelf:
    """Keeps trees of tensors. As a context it deletes its files at the end.

    Args:
        folder: where files go, into a new folder inside it; ``None``: all stays in memory.

    Raises:
        FileError: nothing can be written there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._number = 0
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._temporary = tempfile.TemporaryDirectory(prefix="sparse24-", dir=folder)
            except OSError as error:
                raise FileError(f"{folder}: {error.strerror or error}") from error

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def keep(self, tree: Any) -> Kept:
        """Put a tree away; what cannot be pickled stays in memory.

        Raises:
            FileError: the disk is full, or has failed.
        """
        if self._temporary is None:
            return Kept(lambda: tree)
        path = Path(self._temporary.name, f"{self._number}.pt")
        self._number += 1
        try:
            torch.save(tree, path)
        except (pickle.PicklingError, AttributeError, TypeError):
            path.unlink(missing_ok=True)
            return Kept(lambda: tree)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
            path.unlink(missing_ok=True)
            raise FileError(f"{path}: could not be written: {error}") from error
        kept = Kept(lambda: torch.load(path, weights_only=False))  # written here, a moment ago
        weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept

    def keep_all(self, trees: Iterable[Any]) -> Several:
        """Put trees away one by one."""
        return Several([self.keep(tree) for tree in trees])


class Kept:
    """A tree that was put away; calling it gives the tree. A file is deleted with the last reference."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def __call__(self) -> Any:
        return self._get()


class Several(Sequence[Any]):
    """Trees that were put away, each read when it is asked for."""

    def __init__(self, kept: Sequence[Kept] = ()) -> None:
        self._kept = list(kept)

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Several(self._kept[index])
        return self._kept[index]()

    def __iter__(self) -> Iterator[Any]:
        return (each() for each in self._kept)
