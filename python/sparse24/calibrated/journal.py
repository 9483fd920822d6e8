"""The progress of a walk over blocks, in a folder: what was done can be taken up by a later run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..files import FileError
from ..files.destination import replacing
from ..report import Row

_INDEX, _FORMAT = "oneshot.json", 1


def identity(model: nn.Module, batches: Iterable[Any], settings: Mapping[str, Any]) -> str:
    """A digest of everything that decides the result: weights and buffers, batches, settings."""
    digest = hashlib.sha256()
    _add_tree(digest, settings)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(name.encode())
        _add(digest, tensor)
    _add_tree(digest, list(map(_plain, batches)))
    return digest.hexdigest()


def _plain(batch: Any) -> Any:
    return dict(batch) if isinstance(batch, Mapping) else batch


def _add_tree(digest: Any, tree: Any) -> None:
    leaves, form = tree_flatten(tree)
    digest.update(repr(form).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            _add(digest, leaf)
        else:
            digest.update(repr(leaf).encode())


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")


@dataclasses.dataclass(frozen=True)
class Done:
    """A block that was pruned."""

    block: str
    rows: list[Row]
    unreached: list[str]  #: layers


class Journal:
    """Blocks that are done, in order.

    Args:
        folder: ``None``: nothing is kept.
        run: the :func:`identity` of this run.

    Raises:
        FileError: the folder holds the progress of another run, or cannot be read or written.
    """

    def __init__(self, folder: Path | None, run: str) -> None:
        self._folder, self._run = folder, run
        self.done: list[Done] = []
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            index = folder / _INDEX
            found = json.loads(index.read_text(encoding="utf-8")) if index.exists() else None
        except (OSError, ValueError) as error:
            raise FileError(f"{folder}: its progress cannot be read: {error}") from error
        if found is None:
            return
        if not isinstance(found, dict) or found.get("format") != _FORMAT or found.get("run") != run:
            raise FileError(
                f"{folder} holds the progress of another run (other weights, batches or settings): "
                "give another folder, or delete it"
            )
        for entry in found["done"]:
            rows = [Row(**{**row, "shape": tuple(row["shape"])}) for row in entry["rows"]]
            self.done.append(Done(entry["block"], rows, entry["unreached"]))

    def add(self, done: Done, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Keep a block's parameters, and the masks of the pruned ones; in one step, after its file.

        Raises:
            FileError: it could not be written; what was kept before is as it was.
        """
        if self._folder is None:
            return
        whole = {
            "parameters": {name: tensor.detach().cpu() for name, tensor in tensors.items()},
            "masks": {name: mask.cpu() for name, mask in masks.items()},
        }
        path = self._file(len(self.done))
        with replacing(path) as draft:
            try:
                torch.save(whole, draft)
            except RuntimeError as error:  # torch's writer makes this of a full disk
                raise FileError(f"{path}: could not be written: {error}") from error
        self.done.append(done)
        text = json.dumps(
            {"format": _FORMAT, "run": self._run, "done": [dataclasses.asdict(each) for each in self.done]}
        )
        with replacing(self._folder / _INDEX) as draft:
            draft.write_text(text, encoding="utf-8")

    def tensors(self, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters of a block that was done, and masks, by name.

        Raises:
            FileError: its file is missing or damaged.
        """
        path = self._file(number)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise FileError(f"{path}: cannot be read ({error}): delete the folder to begin anew") from error
        return found["parameters"], found["masks"]

    def _file(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"block-{number:04d}.pt"
