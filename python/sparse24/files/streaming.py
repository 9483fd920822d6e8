"""A safetensors file pruned on its way from one place to another: one tensor at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..masks import kept_share, prune_
from ..nn.compressed import FORMAT
from ..report import Report, Row
from .choice import RULE, Choice, Plan, Shown, check_patterns, reasons_not_to
from .compressing import bytes_of, compressed, compressed_shapes, to_compress
from .destination import replacing
from .errors import FileError
from .formats import METADATA_KEY, StateFile, check_formats, need_safetensors

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
    source: Path,
    target: Path,
    choice: Choice,
    told: Callable[[int], None] = lambda count: None,
    *,
    compress: bool = False,
    dry_run: bool = False,
) -> Report:
    """Write ``source`` to ``target`` with pruned weights; header and order stay as they are.

    Args:
        source, target: ``.safetensors``; ``target`` is replaced in one step.
        choice: what to prune.
        told: called with numbers of bytes as they are written.
        compress: write what is pruned as ``values`` and ``indices``.
        dry_run: say what would be done, and write nothing.

    Returns:
        One row for each tensor of two or more dimensions. Where nothing is pruned nothing is written.

    Raises:
        FileError: ``source`` is no safetensors file, a pattern matches nothing, or ``target`` cannot be
            written; it is then as before.
    """
    header = read_header(source)
    plan = plan_of({piece.name: piece.shown for piece in header.pieces}, choice, compress)
    if dry_run or all(plan.reasons.values()):
        rows = (row_of(piece, float("nan"), plan) for piece in header.pieces if piece.name in plan.reasons)
        return Report(tuple(rows), action="pruned")
    with replacing(target) as temporary:
        rows_by_name = write_pruned(source, header, temporary, plan, told)
    return Report(tuple(rows_by_name[name] for name in plan.reasons), action="pruned")


def plan_of(shown: dict[str, Shown], choice: Choice, compress: bool) -> Plan:
    """What to prune and what to compress of tensors by name.

    Raises:
        FileError: a pattern that matches nothing.
    """
    check_patterns([name for name, each in shown.items() if each.has_row], choice)
    reasons = reasons_not_to(shown, choice)
    chosen = [name for name, reason in reasons.items() if not reason]
    return Plan(reasons, to_compress(shown, chosen) if compress else set())


def write_pruned(
    source: Path, header: Header, target: Path, plan: Plan, told: Callable[[int], None]
) -> dict[str, Row]:
    """Write a safetensors file as ``plan`` says, one tensor at a time; its rows by the names of tensors."""
    rows: dict[str, Row] = {}
    with source.open("rb") as read, target.open("wb") as write:
        read.seek(len(header.data))
        write.write(_header_after(header, plan))
        for piece in header.pieces:
            if piece.name in plan.compressed or plan.reasons.get(piece.name) == "":
                kept = _write_changed(piece, read, write, plan)
                told(piece.size)
            else:
                kept = _copy(piece, read, write, told)
            if piece.name in plan.reasons:
                rows[piece.name] = row_of(piece, kept, plan)
    return rows


def _header_after(header: Header, plan: Plan) -> bytes:
    """The header of the file that is written: the same bytes where nothing is compressed."""
    if not any(piece.name in plan.compressed for piece in header.pieces):
        return header.data
    metadata = {"format": "pt", **(header.metadata or {}), METADATA_KEY: str(FORMAT)}
    described: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for piece in header.pieces:
        for name, word, shape, size in outputs_of(piece, plan):
            described[name] = {"dtype": word, "shape": shape, "data_offsets": [begin, begin + size]}
            begin += size
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def outputs_of(piece: Piece, plan: Plan) -> list[tuple[str, str, list[int], int]]:
    """Name, dtype, shape and bytes of what is written for a tensor."""
    if piece.name not in plan.compressed:
        return [(piece.name, piece.word, list(piece.shape), piece.size)]
    shapes = compressed_shapes(piece.name, piece.shown)
    guard = [(piece.name, "U8", [0], 0)] if piece.name == plan.guard else []
    return guard + [
        (name, "U8" if name.endswith("indices") else piece.word, list(each.shape), bytes_of(each))
        for name, each in shapes.items()
    ]


class Header(NamedTuple):
    """What a safetensors file says before its numbers."""

    data: bytes
    pieces: list[Piece]  #: in the order in which they lie
    metadata: dict[str, str] | None


def read_header(path: Path) -> Header:
    """What a file says of its tensors.

    Raises:
        FileError: no safetensors file, or a damaged one; compressed weights of a later version.
    """
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
    return Header(length + header, pieces, metadata)


def _indices(pieces: list[Piece]) -> Iterator[tuple[str, Tensor]]:
    """What tells that a layer is compressed."""
    for piece in pieces:
        if piece.name.rpartition(".")[2] == "indices" and piece.word == "U8":
            yield piece.name, torch.empty(0, dtype=torch.uint8)


def _write_changed(piece: Piece, read: BinaryIO, write: BinaryIO, plan: Plan) -> float:
    """The share of the numbers that is kept."""
    data = bytearray(piece.size)
    _fill(memoryview(data), read, piece.name)
    weight = torch.frombuffer(data, dtype=_DTYPES[piece.word]).view(piece.shape)
    if piece.name in plan.reasons:
        prune_(weight)
    if piece.name not in plan.compressed:
        write.write(data)
        return kept_share(weight)
    for tensor in compressed(piece.name, weight).values():
        write.write(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[call-overload]
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


def row_of(piece: Piece, kept: float, plan: Plan) -> Row:
    """What a report says of a tensor."""
    reason = plan.reasons[piece.name]
    remark = reason or RULE.remark(torch.empty(()).expand(piece.shape), 1)
    dtype = piece.shown.dtype
    kind = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    after = sum(size for *_, size in outputs_of(piece, plan))
    return Row(piece.name, kind, piece.shape, not reason, remark, kept, piece.size, after)
