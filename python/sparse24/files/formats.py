"""The formats of files with a state_dict: read whole, written in one step.

A file's suffix tells its format: ``.safetensors``, or anything else for ``torch.save``. Nothing is
unpickled but tensors and plain containers.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn.compressed import FORMAT

#: What torch.load raises on a damaged file: its unpickler trusts the order of the instructions.
_UNPICKLING = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, AssertionError,
    pickle.UnpicklingError, struct.error,
)  # fmt: skip
#: How the files begin that torch.save wrote before it wrote zip archives.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

#: Where a safetensors file says the format of its compressed weights.
_METADATA_KEY = "sparse24_format"


class FileError(ValueError):
    """A file that cannot be used as asked; the text names it and says why, in one line."""


@dataclasses.dataclass(frozen=True)
class StateFile:
    """The contents of a file with a state_dict."""

    state: dict[str, Any]  #: tensors by name, in the file's order; torch files may hold other values too
    metadata: dict[str, str] | None = None  #: of a safetensors file

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors alone."""
        return {
            n: value for n, value in self.state.items() if isinstance(n, str) and isinstance(value, Tensor)
        }


def read(path: Path) -> StateFile:
    """Read a state_dict onto the CPU.

    Raises:
        FileError: no such file, not of the format that its suffix says, or no tensors in it.
    """
    if not path.is_file():
        raise FileError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    file = _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    for layer, format in _formats_of(file).items():
        if format > FORMAT:
            raise FileError(
                f"{path}: the compressed weight of {layer or 'the model'} has format {format}, which is "
                f"newer than this sparse24 knows ({FORMAT}): install a newer one"
            )
    if not file.tensors:
        held = ", ".join(map(str, file.state)) or "nothing"
        raise FileError(f"{path}: not a state_dict: at its top level are no tensors, but {held}")
    return file


def _formats_of(file: StateFile) -> dict[str, int]:
    """The format of every compressed weight, by the name of its layer. Version 0.1 wrote no number: format 1.

    A torch file keeps it where torch keeps versions of modules, a safetensors file in its metadata.
    """
    layers = [
        name.removesuffix("indices").removesuffix(".")
        for name, tensor in file.tensors.items()
        if name.rpartition(".")[2] == "indices" and tensor.dtype == torch.uint8
    ]
    versions = getattr(file.state, "_metadata", {})
    whole = (file.metadata or {}).get(_METADATA_KEY, "1")
    default = int(whole) if whole.isdecimal() else FORMAT + 1
    return {layer: versions.get(layer, {}).get("version") or default for layer in layers}


def write(file: StateFile, path: Path) -> None:
    """Write a state_dict: to a temporary file beside ``path``, which then takes its place.

    Raises:
        FileError: the format cannot hold it, or the folder cannot be written to. ``path`` is as before.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        if is_safetensors(path):
            _write_safetensors(file, temporary, path)
        else:
            torch.save(file.state, temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` is a safetensors file by its suffix; others are torch.save's."""
    return path.suffix == ".safetensors"


def _need_safetensors(path: Path) -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise FileError(f"{path}: the package safetensors is missing: pip install safetensors")


def _read_safetensors(path: Path) -> StateFile:
    _need_safetensors(path)
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  an optional dependency

    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return StateFile({name: file.get_tensor(name) for name in names}, file.metadata())
    except SafetensorError as error:
        raise FileError(f"{path}: not a safetensors file: {error}") from error


def _write_safetensors(file: StateFile, temporary: Path, path: Path) -> None:
    _need_safetensors(path)
    from safetensors.torch import save_file  # noqa: PLC0415

    metadata = file.metadata
    if _formats_of(file):
        metadata = {**(metadata or {}), _METADATA_KEY: str(FORMAT)}
    save_file({name: tensor.contiguous() for name, tensor in file.tensors.items()}, temporary, metadata)


def _read_torch(path: Path) -> StateFile:
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC
    if not legacy and not zipfile.is_zipfile(path):
        raise FileError(f"{path}: neither written by torch.save nor named .safetensors")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNPICKLING as error:
        raise FileError(f"{path}: torch.load(weights_only=True) refuses it: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise FileError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return StateFile(state)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
