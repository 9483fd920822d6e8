"""The formats of files with a state_dict: read, and written in one step.

A file's suffix tells its format: ``.safetensors``, or anything else for ``torch.save``. Nothing is
unpickled but tensors and plain containers. A file of ``torch.save`` is mapped, not read, where its format
allows it; its state_dict may stand inside a checkpoint.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nn.compressed import FORMAT
from .destination import replacing
from .errors import FileError

#: What torch.load raises on a damaged file: its unpickler trusts the order of the instructions.
_UNPICKLING = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, AssertionError,
    pickle.UnpicklingError, struct.error,
)  # fmt: skip
#: How the files begin that torch.save wrote before it wrote zip archives.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

#: Where a safetensors file says the format of its compressed weights.
METADATA_KEY = "sparse24_format"


class Unreadable(NamedTuple):
    """A tensor of a dtype that torch does not have."""

    dtype: str
    shape: tuple[int, ...]


class StateDict(NamedTuple):
    """A mapping in a file that holds tensors by name."""

    path: tuple[str, ...]  #: the keys that lead to it; empty: the file is the state_dict
    state: Mapping[Any, Any]

    @property
    def prefix(self) -> str:
        """What its names begin with in a report."""
        return "".join(f"{key}." for key in self.path)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {n: t for n, t in self.state.items() if isinstance(n, str) and isinstance(t, Tensor)}


@dataclasses.dataclass(frozen=True)
class StateFile:
    """The contents of a file with a state_dict."""

    state: dict[str, Any]  #: tensors by name, in the file's order; torch files may hold other values too
    metadata: dict[str, str] | None = None  #: of a safetensors file

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of its state_dicts, by names that say where they stand."""
        return {
            f"{each.prefix}{name}": tensor
            for each in self.state_dicts
            for name, tensor in each.tensors.items()
        }

    @property
    def state_dicts(self) -> list[StateDict]:
        """The file's mapping, or those in it where it is a checkpoint ({"state_dict": ..., "epoch": ...})."""
        return list(_state_dicts(self.state, ()))


def _state_dicts(state: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[StateDict]:
    found = StateDict(path, state)
    if found.tensors:
        yield found
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, Mapping) and "optim" not in key.lower():
            yield from _state_dicts(value, (*path, key))


def read(path: Path) -> StateFile:
    """Read a state_dict onto the CPU.

    Raises:
        FileError: no such file, not of the format that its suffix says, or no tensors in it.
    """
    check_is_file(path)
    file = _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    check_formats(path, file)
    if not file.state_dicts:
        held = ", ".join(map(str, file.state)) or "nothing"
        raise FileError(f"{path}: not a state_dict: there are no tensors in it, but {held}")
    return file


def check_is_file(path: Path) -> None:
    """Refuse what is no file with a state_dict, with the way round where there is one.

    Raises:
        FileError: no such file; a folder; a file of another program's.
    """
    if path.is_dir():
        raise FileError(f"{path}: a folder, not a file")
    if not path.is_file():
        raise FileError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"GGUF"):
        raise FileError(
            f"{path}: a GGUF file, whose weights are quantized: prune the safetensors file or checkpoint "
            "that it was made from, then convert that again"
        )
    if not is_safetensors(path) and start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") < 1 << 27:
        raise FileError(f"{path}: a safetensors file by its contents: rename it to {path.stem}.safetensors")


def check_formats(path: Path, file: StateFile) -> None:
    """Refuse compressed weights of a later version.

    Raises:
        FileError: it names the layer and the versions.
    """
    for layer, format in _formats_of(file).items():
        if format > FORMAT:
            raise FileError(
                f"{path}: the compressed weight of {layer or 'the model'} has format {format}, which is "
                f"newer than this sparse24 knows ({FORMAT}): install a newer one"
            )


def _formats_of(file: StateFile) -> dict[str, int]:
    """The format of every compressed weight, by the name of its layer. Version 0.1 wrote no number: format 1.

    A torch file keeps it where torch keeps versions of modules, a safetensors file in its metadata.
    """
    whole = (file.metadata or {}).get(METADATA_KEY, "1")
    default = int(whole) if whole.isdecimal() else FORMAT + 1
    found = {}
    for each in file.state_dicts:
        versions = getattr(each.state, "_metadata", {})
        for name, tensor in each.tensors.items():
            if name.rpartition(".")[2] == "indices" and tensor.dtype == torch.uint8:
                layer = name.removesuffix("indices").removesuffix(".")
                found[f"{each.prefix}{layer}"] = versions.get(layer, {}).get("version") or default
    return found


def write(file: StateFile, path: Path, told: Callable[[int], None] = lambda count: None) -> None:
    """Write a state_dict: to a temporary file beside ``path``, which then takes its place.

    Args:
        file: what :func:`read` returned, changed or not.
        path: where to.
        told: called with numbers of bytes as they are written.

    Raises:
        FileError: the format cannot hold it, ``path`` is no regular file or read-only, or the folder cannot
            be written to. ``path`` is as before.
    """
    with replacing(path) as temporary:
        if is_safetensors(path):
            _write_safetensors(file, temporary, path)
        else:
            with temporary.open("wb") as stream:
                _write_torch(file, _Told(stream, told), path)


class _Told:
    """A stream that tells how far it is, and remembers why it failed: torch.save raises something else."""

    def __init__(self, stream: Any, told: Callable[[int], None]) -> None:
        self._stream = stream
        self._told = told
        self.failure: OSError | None = None
        self.flush = stream.flush

    def write(self, data: Any) -> int:
        try:
            written: int = self._stream.write(data)
        except OSError as error:
            self.failure = error
            raise
        self._told(written)
        return written


def _request_behind(error: BaseException) -> BaseException | None:
    """The signal or the like that ended a write, where closing the archive has failed besides; or None."""
    seen: BaseException | None = error
    while seen is not None and isinstance(seen, Exception):
        seen = seen.__context__
    return seen


def _write_torch(file: StateFile, stream: _Told, path: Path) -> None:
    try:
        torch.save(file.state, stream)  # type: ignore[arg-type]
    except (OSError, RuntimeError) as error:
        if (stop := _request_behind(error)) is not None:
            raise stop from None
        failure = stream.failure or error
        raise FileError(f"{path}: {getattr(failure, 'strerror', None) or first_line(failure)}") from failure


def is_safetensors(path: Path) -> bool:
    """Whether ``path`` is a safetensors file by its suffix; others are torch.save's."""
    return path.suffix == ".safetensors"


def need_safetensors(path: Path) -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise FileError(f"{path}: the package safetensors is missing: pip install safetensors")


def _read_safetensors(path: Path) -> StateFile:
    need_safetensors(path)
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  an optional dependency

    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            unread = (SafetensorError, AttributeError)  # a dtype that torch or safetensors does not read
            state = {name: _tensor_or_dtype(file, name, unread) for name in names}
            return StateFile(state, file.metadata())
    except SafetensorError as error:
        raise FileError(f"{path}: not a safetensors file: {error}") from error


def _tensor_or_dtype(file: Any, name: str, unread: tuple[type[Exception], ...]) -> Tensor | Unreadable:
    """A tensor of a safetensors file, or what the file says of it where torch has no such dtype."""
    try:
        tensor: Tensor = file.get_tensor(name)
    except unread:
        piece = file.get_slice(name)
        return Unreadable(str(piece.get_dtype()), tuple(piece.get_shape()))
    return tensor


def _write_safetensors(file: StateFile, temporary: Path, path: Path) -> None:
    need_safetensors(path)
    from safetensors.torch import save_file  # noqa: PLC0415

    metadata = file.metadata
    if _formats_of(file):
        metadata = {**(metadata or {}), METADATA_KEY: str(FORMAT)}
    save_file({name: tensor.contiguous() for name, tensor in file.tensors.items()}, temporary, metadata)


def _read_torch(path: Path) -> StateFile:
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC
    if not legacy and not zipfile.is_zipfile(path):
        raise FileError(f"{path}: neither written by torch.save nor named .safetensors")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=not legacy)
    except _UNPICKLING as error:
        raise FileError(f"{path}: torch.load(weights_only=True) refuses it: {first_line(error)}") from error
    if not isinstance(state, dict):
        raise FileError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return StateFile(state)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
