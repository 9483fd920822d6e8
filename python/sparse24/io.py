"""state_dicts in files: read, write, look at, prune, without the model that they belong to.

A file's suffix tells its format: ``.safetensors``, or anything else for ``torch.save``. Nothing is
unpickled but tensors and plain containers.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import importlib.util
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ops
from .compressed import DTYPES
from .mask_rules import ByMagnitude
from .masks import Pattern, decompress, is_sparse24, prune_
from .prunable import _HEADS_ANYWHERE, _HEADS_AT_TOP
from .report import Report, Row

#: What torch.load raises on a damaged file: its unpickler trusts the order of the instructions.
_UNPICKLING = (
    RuntimeError, LookupError, TypeError, ValueError, AttributeError, EOFError, AssertionError,
    pickle.UnpicklingError, struct.error,
)  # fmt: skip
_RULE = ByMagnitude(Pattern(2, 4))
#: How the files begin that torch.save wrote before it wrote zip archives.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: Names of layers that look rows up; their weights are not multiplied.
_TABLES = ("embed", "wte", "wpe", "relative_attention_bias")
#: Names under which transformers' Conv1D stores weights as [in, out], and others as [out, in].
_EITHER_WAY = {"c_attn", "c_proj", "c_fc", "q_attn"}


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
    if not file.tensors:
        held = ", ".join(map(str, file.state)) or "nothing"
        raise FileError(f"{path}: not a state_dict: at its top level are no tensors, but {held}")
    return file


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

    save_file({name: tensor.contiguous() for name, tensor in file.tensors.items()}, temporary, file.metadata)


def _read_torch(path: Path) -> StateFile:
    with path.open("rb") as file:
        legacy = file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC
    if not legacy and not zipfile.is_zipfile(path):
        raise FileError(f"{path}: neither written by torch.save nor named .safetensors")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNPICKLING as error:
        raise FileError(f"{path}: torch.load(weights_only=True) refuses it: {_first_line(error)}") from error
    if not isinstance(state, dict):
        raise FileError(f"{path}: holds a {type(state).__name__}, not a state_dict")
    return StateFile(state)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---- report -----------------------------------------------------------------------------------------


def report(file: StateFile) -> Report:
    """One row for every floating tensor [out, in] or [out, in, R, S], and for every compressed weight.

    ``done``: it is 2:4 along dim 1. ``bytes_after``: its size in the compressed layout, if so.
    """
    tensors = file.tensors
    rows = []
    for name, tensor in tensors.items():
        indices = tensors.get(f"{name.removesuffix('values')}indices") if name.endswith("values") else None
        if indices is not None and indices.dtype == torch.uint8:
            rows.append(_compressed_row(name, tensor, indices))
        elif tensor.layout == torch.strided and tensor.is_floating_point() and tensor.dim() in (2, 4):
            rows.append(_dense_row(name, tensor))
    return Report(tuple(rows), action="2:4")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _dense_row(name: str, tensor: Tensor) -> Row:
    size = tensor.numel() * tensor.element_size()
    sparse = is_sparse24(tensor)
    compressed = _compressed_bytes(tensor)
    after, reason = size, ""
    if tensor.dtype not in DTYPES:
        reason = f"sparse layers hold {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}: cast it"
    elif sparse:
        after = compressed
    else:
        reason = f"not 2:4 along dim 1; pruned and compressed it would take {compressed:,}"
    kept = float((tensor != 0).sum()) / tensor.numel() if tensor.numel() else 1.0
    return Row(name, _dtype_name(tensor), tuple(tensor.shape), sparse, reason, kept, size, after)


def _compressed_bytes(weight: Tensor) -> int:
    """Bytes of values [out, K/2] and indices [out, K/8] of a Linear's or a Conv2d's weight."""
    columns = weight.shape[1]
    if weight.dim() == 4:
        columns = ops.round_up(columns, 4) * weight.shape[2] * weight.shape[3]
    padded = ops.round_up(columns, 8)
    return weight.shape[0] * (padded // 2 * weight.element_size() + padded // 8)


def _compressed_row(name: str, values: Tensor, indices: Tensor) -> Row:
    size = values.numel() * values.element_size() + indices.numel()
    shape = (*values.shape[:-1], 2 * values.shape[-1])
    try:
        weight = decompress(values, indices)
    except (TypeError, ValueError) as error:
        return Row(name, _dtype_name(values), shape, False, _first_line(error), 1.0, size, size)
    kept = float((weight != 0).sum()) / weight.numel() if weight.numel() else 1.0
    return Row(name, _dtype_name(values), shape, True, "compressed already", kept, size, size)


# ---- prune ------------------------------------------------------------------------------------------


def prune(file: StateFile, select: Sequence[str] = ()) -> tuple[StateFile, Report]:
    """Prune weights to 2:4 along dim 1 by magnitude; ``file`` is not changed.

    Without the model, names have to tell what a tensor is: pruned is ``*weight`` of two or more
    dimensions and of at least 4 input channels, unless its name or its shape says that it is an embedding
    (or shares memory with one), an output head, or one that may be stored as [in, out].

    Args:
        file: what :func:`read` returned.
        select: names or fnmatch patterns; prune these alone, whatever their names say.

    Returns:
        The pruned copy, and one row for each tensor of two or more dimensions.

    Raises:
        FileError: a pattern in ``select`` that matches no tensor.
    """
    tensors = {name: t for name, t in file.tensors.items() if t.dim() >= 2 and t.is_floating_point()}
    for pattern in select:
        if not fnmatch.filter(tensors, pattern):
            raise FileError(f"--select {pattern} matches no tensor; there are: {', '.join(tensors)}")
    reasons = {name: _why_not(name, tensor, select) for name, tensor in tensors.items()}
    if not select:
        _skip_heads(reasons, tensors)
        _skip_tied(reasons, tensors)
    state = copy.copy(file.state)  # with the attribute by which torch knows versions of modules
    rows: list[Row] = []
    done: dict[tuple[Any, ...], Tensor] = {}
    for name, tensor in tensors.items():
        reason = reasons[name]
        if not reason:
            if _place(tensor) not in done:
                done[_place(tensor)] = tensor.clone()
                prune_(done[_place(tensor)])
            state[name] = done[_place(tensor)]
        rows.append(_pruned_row(name, state[name], not reason, reason))
    return dataclasses.replace(file, state=state), Report(tuple(rows), action="pruned")


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two views of the same memory in the same order."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _why_not(name: str, tensor: Tensor, select: Sequence[str]) -> str:
    """Why a tensor is not pruned, by itself; empty if it may be."""
    if tensor.layout != torch.strided:
        return f"layout {tensor.layout}"
    if obstacle := _RULE.obstacle(tensor, 1):
        return obstacle
    if select:
        return "" if any(fnmatch.fnmatchcase(name, pattern) for pattern in select) else "not selected"
    return _why_not_by_name(name)


def _why_not_by_name(name: str) -> str:
    *layer, attribute = name.split(".")
    if not attribute.endswith("weight"):
        return "not named *weight"
    if any(table in part.lower() for part in layer[-2:] for table in _TABLES):
        return "an embedding by its name"
    if layer and layer[-1] in _EITHER_WAY:
        return "may be stored as [in, out]: prune the model with Sparsifier, or --select it if [out, in]"
    return ""


def _skip_heads(reasons: dict[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Mark the last weight of every part named like an output head, and what is shaped like one."""
    candidates = [name for name, reason in reasons.items() if not reason]
    if len(candidates) < 2:
        return
    for name in candidates:
        tensor = tensors[name]
        if tensor.dim() == 2 and tensor.shape[0] < tensor.shape[1] and tensor.shape[0] % 8:
            reasons[name] = (
                f"an output head by its shape ({tensor.shape[0]} outputs); --select it to prune it"
            )
    last = {part: name for name in candidates if (part := _head_part(name))}
    for part, name in last.items():
        reasons[name] = f"an output head by its name ({part}); --select it to prune it"


def _head_part(name: str) -> str:
    """The part of a name that is an output head's, with what is before it; empty if none is."""
    parts = name.split(".")[:-1]
    for i, part in enumerate(parts):
        if part in _HEADS_ANYWHERE or (i == 0 and part in _HEADS_AT_TOP):
            return ".".join(parts[: i + 1])
    return ""


def _skip_tied(reasons: dict[str, str], tensors: Mapping[str, Tensor]) -> None:
    tables = {_place(tensors[n]): n for n, reason in reasons.items() if reason.startswith("an embedding")}
    for name, reason in reasons.items():
        if not reason and (table := tables.get(_place(tensors[name]))):
            reasons[name] = f"tied to the embedding {table}; --select it to prune it"


def _pruned_row(name: str, tensor: Tensor, done: bool, reason: str) -> Row:
    size = tensor.numel() * tensor.element_size()
    known = tensor.layout == torch.strided and tensor.numel() > 0
    kept = float((tensor != 0).sum()) / tensor.numel() if known else 1.0
    remark = _RULE.remark(tensor, 1) if done else reason
    return Row(name, _dtype_name(tensor), tuple(tensor.shape), done, remark, kept, size, size)
