"""Folders of a checkpoint in several files, and the index that says which tensor is where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from .errors import FileError

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_INDEX = ".index.json"
#: The files of one state_dict in a folder that holds several, the preferred first.
_USUAL = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors")
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


class Shards(NamedTuple):
    """The files that hold one state_dict."""

    files: tuple[Path, ...]
    listed: Path | None  #: the index, where there is one
    where: Mapping[str, str]  #: the file of every tensor, as the index says; empty without one


def is_index(path: Path) -> bool:
    """Whether ``path`` is the index of a sharded checkpoint, by its name."""
    return path.name.endswith(_INDEX)


def shards_of(path: Path) -> Shards:
    """The files of a folder or of an index: by its index, or the one file with weights that it holds.

    Raises:
        FileError: no such folder, no weights in it or several sets of them, an index that is damaged or
            missing, a file of it that is missing.
    """
    if is_index(path):
        return _by_index(path)
    if not path.is_dir():
        raise FileError(f"{path}: {'not a folder' if path.exists() else 'no such file or folder'}")
    indices = sorted(each for each in path.iterdir() if is_index(each))
    usual = [path / f"{name}{_INDEX}" for name in _USUAL if path / f"{name}{_INDEX}" in indices]
    single = [path / name for name in _USUAL if (path / name).is_file()]
    if usual and not single:
        return _by_index(usual[0])
    if single:
        return Shards((single[0],), None, {})
    if len(indices) == 1:
        return _by_index(indices[0])
    files = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES and each.is_file())
    if len(files) == 1 and not indices and _NUMBERED.fullmatch(files[0].name) is None:
        return Shards((files[0],), None, {})
    raise FileError(f"{path}: {_what_is_wrong(files, indices)}")


def _what_is_wrong(files: list[Path], indices: list[Path]) -> str:
    names = ", ".join(each.name for each in indices or files)
    if indices:
        return f"several indices of checkpoints, give one of them: {names}"
    if not files:
        return "no weights in this folder: no file ends in " + ", ".join(_SUFFIXES)
    if any(_NUMBERED.fullmatch(each.name) for each in files):
        found = _NUMBERED.fullmatch(next(f.name for f in files if _NUMBERED.fullmatch(f.name)))
        assert found is not None
        return f"parts of a checkpoint without their index {found[1]}{found[4]}{_INDEX}: {names}"
    return f"several files with weights and no index, give one of them: {names}"


def _by_index(path: Path) -> Shards:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FileError(f"{path}: is no JSON: {error}") from error
    where = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(f, str) for f in where.values()):
        raise FileError(f'{path}: is no index: "weight_map" must name the file of every tensor')
    names = sorted(set(where.values()))
    for name in names:
        if Path(name).name != name or Path(name).suffix not in _SUFFIXES:
            raise FileError(f"{path}: {name!r} is no name of a file with weights in this folder")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise FileError(f"{path}: {len(missing)} of its {len(names)} files are missing: {', '.join(missing)}")
    return Shards(tuple(path.parent / name for name in names), path, where)


def check_index(shards: Shards, file: Path, names: Iterable[str]) -> None:
    """Refuse a file that holds other tensors than its index says.

    Args:
        shards: the index; nothing is refused where there is none.
        file: one of its files.
        names: the tensors that it holds.

    Raises:
        FileError: tensors that are missing from the file, or from the index.
    """
    if shards.listed is None:
        return
    held = set(names)
    told = {name for name, where in shards.where.items() if where == file.name}
    for wrong, what in ((told - held, "which is not in it"), (held - told, "which the index does not tell")):
        if wrong:
            raise FileError(
                f"{file}: the index {shards.listed.name} is wrong about {len(wrong)} tensors, among them "
                f"{min(wrong)}, {what}"
            )


def index_text(where: Mapping[str, str], size: int) -> str:
    """The text of an index.

    Args:
        where: the file of every tensor.
        size: bytes of all tensors.
    """
    return json.dumps({"metadata": {"total_size": size}, "weight_map": dict(where)}, indent=2) + "\n"
