"""The checkpoint in a folder pruned into another folder, file by file: one tensor, or one file of torch.save,
is in memory at a time. The new folder appears in one step when all is written.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..nn.compressed import FORMAT
from ..report import Report, Row
from .choice import Choice, Plan, Shown
from .compressing import compressed_shapes
from .errors import FileError
from .formats import StateFile, is_safetensors, read, write
from .shards import Shards, check_index, index_text, is_index, shards_of
from .state_dicts import pruned_by, shown_in
from .streaming import Header, outputs_of, plan_of, read_header, row_of, write_pruned

#: Files with weights: the pruned ones take their place.
_WEIGHTS = (
    "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.ot",
    "*.gguf", "*.tflite",
)  # fmt: skip


#: Weights of single experts, which transformers stacks while it loads: pruned, and dense in the file.
_OF_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")


def folder_of(path: Path) -> Path:
    """The folder that a checkpoint is in: ``path`` itself, or where that index lies."""
    return path.parent if is_index(path) else path


def prune_folder(
    source: Path,
    target: Path,
    choice: Choice,
    told: Callable[[int], None] = lambda count: None,
    *,
    compress: bool = False,
    dry_run: bool = False,
) -> Report:
    """Prune the checkpoint in the folder (or of the index) ``source`` into the folder ``target``.

    What else is in the folder (config.json, a tokenizer) is copied. What to prune is decided on all files
    together. With ``compress`` a ``config.json`` of transformers says that the weights are sparse24's; what
    the library stacks while it loads, single experts, stays dense in its files.

    Args:
        source: see :func:`.shards.shards_of`.
        target: a folder that is not there yet, or an empty one.
        choice, told, compress, dry_run: as :func:`.streaming.prune_safetensors`.

    Returns:
        One row for each tensor of two or more dimensions. Where nothing is pruned nothing is written.

    Raises:
        FileError: what is wrong with the folder, its index or a file of it; ``target`` is there and not
            empty, or cannot be written. Nothing is left of it then.
    """
    shards = shards_of(source)
    headers = {file: _header(file, shards) for file in shards.files}
    shown = _all_shown(headers)
    plan = plan_of(shown, choice, compress)
    if compress and _is_of_transformers(folder_of(source)):
        kept = {name for name in plan.compressed if _OF_EXPERT.search(name) is None}
        plan = plan._replace(compressed=kept)
        plan = plan._replace(guard=_guarded(plan, shown))
    if dry_run or all(plan.reasons.values()):
        return Report(tuple(_rows_as_planned(headers, plan)), action="pruned")
    rows: dict[str, Row] = {}
    with making(target, sum(file.stat().st_size for file in shards.files)) as folder:
        shutil.copytree(
            folder_of(source), folder, ignore=shutil.ignore_patterns(*_WEIGHTS, ".git", ".cache"),
            dirs_exist_ok=True,
        )  # fmt: skip
        for file, header in headers.items():
            rows |= _write_one(file, header, folder / file.name, plan, told)
        if shards.listed is not None:
            (folder / shards.listed.name).write_text(_new_index(headers, plan, shown))
        if compress:
            mark_config(folder)
    return Report(tuple(rows[name] for name in plan.reasons), action="pruned")


def _header(file: Path, shards: Shards) -> Header | dict[str, Shown]:
    """What a file holds: of torch.save's, the tensors; they are mapped again when their turn comes."""
    if is_safetensors(file):
        header = read_header(file)
        check_index(shards, file, (piece.name for piece in header.pieces))
        return header
    held = shown_in(_flat(file).tensors)
    check_index(shards, file, held)
    return held


def _flat(file: Path) -> StateFile:
    state = read(file)
    if len(state.state_dicts) != 1 or state.state_dicts[0].path:
        raise FileError(f"{file}: holds more than a state_dict: prune this file by itself")
    return state


def _all_shown(headers: dict[Path, Header | dict[str, Shown]]) -> dict[str, Shown]:
    found: dict[str, Shown] = {}
    for file, header in headers.items():
        held = {p.name: p.shown for p in header.pieces} if isinstance(header, Header) else header
        if twice := held.keys() & found.keys():
            raise FileError(f"{file}: {min(twice)} is in another file of the checkpoint, too")
        found |= held
    return found


def _rows_as_planned(headers: dict[Path, Header | dict[str, Shown]], plan: Plan) -> Iterator[Row]:
    for file, header in headers.items():
        if isinstance(header, Header):
            pieces = {piece.name: piece for piece in header.pieces}
            yield from (row_of(p, float("nan"), plan) for n, p in pieces.items() if n in plan.reasons)
        else:
            yield from pruned_by(_flat(file), {(): _part_of(plan, header)}, lambda count: None)[1]


def _part_of(plan: Plan, held: dict[str, Shown]) -> Plan:
    reasons = {name: reason for name, reason in plan.reasons.items() if name in held}
    return Plan(reasons, plan.compressed & held.keys(), plan.guard)


def _write_one(
    file: Path, header: Header | dict[str, Shown], target: Path, plan: Plan, told: Callable[[int], None]
) -> dict[str, Row]:
    if isinstance(header, Header):
        return write_pruned(file, header, target, plan, told)
    pruned, report = pruned_by(_flat(file), {(): _part_of(plan, header)}, lambda count: None)
    write(pruned, target, told)
    return {row.name: row for row in report}


def _new_index(headers: dict[Path, Header | dict[str, Shown]], plan: Plan, shown: dict[str, Shown]) -> str:
    where: dict[str, str] = {}
    size = 0
    for file, header in headers.items():
        if isinstance(header, Header):
            for piece in header.pieces:
                outputs = outputs_of(piece, plan)
                where |= dict.fromkeys((name for name, *_ in outputs), file.name)
                size += sum(each for *_, each in outputs)
            continue
        for name, each in header.items():
            after = compressed_shapes(name, each) if name in plan.compressed else {name: each}
            if name == plan.guard:
                after[name] = Shown((0,), torch.uint8)
            where |= dict.fromkeys(after, file.name)
            size += sum(_size(one) for one in after.values())
    return index_text(where, size)


def _size(shown: Shown) -> int:
    count = 1
    for each in shown.shape:
        count *= each
    return count * getattr(shown.dtype, "itemsize", 1)


def _guarded(plan: Plan, shown: dict[str, Shown]) -> str:
    """The weight that gets a guard: a matrix, and named as layers name theirs."""
    fit = (name for name in shown if name in plan.compressed and name.endswith(".weight"))
    return next((name for name in fit if len(shown[name].shape) == 2), "")


def _is_of_transformers(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def mark_config(folder: Path) -> None:
    """Say in a config.json of transformers that the weights beside it are sparse24's."""
    path = folder / "config.json"
    if _is_of_transformers(folder):
        config = json.loads(path.read_text(encoding="utf-8"))
        config["quantization_config"] = {"quant_method": "sparse24", "format": FORMAT}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def making(target: Path, size: int = 0) -> Iterator[Path]:
    """A temporary folder beside ``target``, which becomes it when the block ends without an exception.

    Args:
        target: a folder that is not there yet, or an empty one.
        size: bytes that have to be free.

    Raises:
        FileError: it is there and not empty, or its parent is missing or cannot be written to. Whatever
            ends the block, nothing else is left behind.
    """
    check_folder(target, size)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(target)
    except OSError as error:
        raise FileError(f"{target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(target: Path, size: int = 0) -> None:
    """Refuse a folder that cannot be made; see :func:`making`."""
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        pass
    elif target.exists() or target.is_symlink():
        raise FileError(f"{target}: is there already: give the name of a folder that is not, or is empty")
    parent = target.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise FileError(f"{target}: the folder {parent} is missing, or cannot be written to")
    free = shutil.disk_usage(parent).free
    if free < size:
        raise FileError(f"{target}: {size:,} bytes are needed, and {free:,} are free in {parent}")
