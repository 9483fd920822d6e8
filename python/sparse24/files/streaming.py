"""A safetensors file pruned on its way from one place to another: one tensor at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..masks import kept_share, prune_
from ..report import Report, Row
from .choice import RULE, Choice, Shown, check_patterns, reasons_not_to
from .destination import replacing
from .errors import FileError
from .formats import StateFile, check_formats, need_safetensors

_CHUNK = 1 << 24
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
#: Words for integers that torch counts as such, whatever it has.
_INTEGERS = {"U16", "U32", "U64"}


class Piece(NamedTuple):
    """A tensor where it lies in the file."""

    name: str
    word: str  #: the file's for its dtype
    shape: tuple[int, ...]
    size: int  #: bytes

    @property
    def shown(self) -> Shown:
        dtype = torch.int64 if self.word in _INTEGERS else _DTYPES.get(self.word, self.word)
        return Shown(self.shape, dtype)


def prune_safetensors(
    source: Path, target: Path, choice: Choice, told: Callable[[int], None] = lambda count: None
) -> Report:
    """Write ``source`` to ``target`` with pruned weights; header and order stay as they are.

    Args:
        source, target: ``.safetensors``; ``target`` is replaced in one step.
        choice: what to prune.
        told: called with numbers of bytes as they are written.

    Returns:
        One row for each tensor of two or more dimensions. Where nothing is pruned nothing is written.

    Raises:
        FileError: ``source`` is no safetensors file, a pattern matches nothing, or ``target`` cannot be
            written; it is then as before.
    """
    header, pieces = _read_header(source)
    shown = {piece.name: piece.shown for piece in pieces}
    check_patterns([name for name, each in shown.items() if each.has_row], choice)
    reasons = reasons_not_to(shown, choice)
    if all(reasons.values()):
        rows = (_row(piece, float("nan"), reasons) for piece in pieces if piece.name in reasons)
        return Report(tuple(rows), action="pruned")
    rows_by_name: dict[str, Row] = {}
    with replacing(target) as temporary, source.open("rb") as read, temporary.open("wb") as write:
        read.seek(len(header))
        write.write(header)
        for piece in pieces:
            if reasons.get(piece.name) == "":
                kept = _write_pruned(piece, read, write)
                told(piece.size)
            else:
                kept = _copy(piece, read, write, told)
            if piece.name in reasons:
                rows_by_name[piece.name] = _row(piece, kept, reasons)
    return Report(tuple(rows_by_name[name] for name in reasons), action="pruned")


def _read_header(path: Path) -> tuple[bytes, list[Piece]]:
    """The bytes before the tensors, and the tensors in the order in which they lie."""
    need_safetensors(path)
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  an optional dependency

    try:
        with safe_open(path, "pt") as file:  # which looks at sizes and offsets
            metadata = file.metadata()
    except SafetensorError as error:
        raise FileError(f"{path}: not a safetensors file: {error}") from error
    with path.open("rb") as read:
        length = read.read(8)
        header = read.read(int.from_bytes(length, "little"))
    described: dict[str, Any] = json.loads(header)
    described.pop("__metadata__", None)
    in_order = sorted(described.items(), key=lambda item: item[1]["data_offsets"])
    pieces = [
        Piece(name, each["dtype"], tuple(each["shape"]), each["data_offsets"][1] - each["data_offsets"][0])
        for name, each in in_order
    ]
    check_formats(path, StateFile(dict(_indices(pieces)), metadata))
    return length + header, pieces


def _indices(pieces: list[Piece]) -> Iterator[tuple[str, Tensor]]:
    """What tells that a layer is compressed."""
    for piece in pieces:
        if piece.name.rpartition(".")[2] == "indices" and piece.word == "U8":
            yield piece.name, torch.empty(0, dtype=torch.uint8)


def _write_pruned(piece: Piece, read: BinaryIO, write: BinaryIO) -> float:
    """The share of the numbers that is kept."""
    data = bytearray(piece.size)
    _fill(memoryview(data), read, piece.name)
    weight = torch.frombuffer(data, dtype=_DTYPES[piece.word]).view(piece.shape)
    prune_(weight)
    write.write(data)
    return kept_share(weight)


def _copy(piece: Piece, read: BinaryIO, write: BinaryIO, told: Callable[[int], None]) -> float:
    """The share of the numbers that are not zero; NaN where they are not to be read."""
    dtype = _DTYPES.get(piece.word)
    is_counted = len(piece.shape) >= 2
    left, kept = piece.size, 0.0
    while left:
        data = bytearray(min(left, _CHUNK))
        _fill(memoryview(data), read, piece.name)
        write.write(data)
        if is_counted and dtype is not None:
            kept += kept_share(torch.frombuffer(data, dtype=dtype)) * len(data)
        left -= len(data)
        told(len(data))
    return kept / piece.size if is_counted and dtype is not None and piece.size else float("nan")


def _fill(view: memoryview, read: BinaryIO, name: str) -> None:
    at = 0
    while at < len(view):
        count = read.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise FileError(f"{name} ends before its numbers do: the file was changed meanwhile")
        at += count


def _row(piece: Piece, kept: float, reasons: dict[str, str]) -> Row:
    reason = reasons[piece.name]
    remark = reason or RULE.remark(torch.empty(()).expand(piece.shape), 1)
    dtype = piece.shown.dtype
    kind = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    return Row(piece.name, kind, piece.shape, not reason, remark, kept, piece.size, piece.size)
