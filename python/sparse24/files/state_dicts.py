"""state_dicts without the model that they belong to: which weights are 2:4, and pruning by name and shape."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..masks import Pattern, decompress, is_sparse24, prune_
from ..nn.compressed import DTYPES
from ..pruning.heads import output_heads
from ..pruning.rules import ByMagnitude
from ..report import Report, Row
from .formats import FileError, StateFile, first_line

_RULE = ByMagnitude(Pattern(2, 4))
#: Names of layers that look rows up; their weights are not multiplied.
_TABLES = ("embed", "wte", "wpe", "relative_attention_bias")
#: Names under which transformers' Conv1D stores weights as [in, out], and others as [out, in].
_EITHER_WAY = {"c_attn", "c_proj", "c_fc", "q_attn"}


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
        return Row(name, _dtype_name(values), shape, False, first_line(error), 1.0, size, size)
    kept = float((weight != 0).sum()) / weight.numel() if weight.numel() else 1.0
    return Row(name, _dtype_name(values), shape, True, "compressed already", kept, size, size)


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
    others = [name for name in reasons if name not in candidates]
    tables = [tuple(tensors[n].shape) for n, reason in reasons.items() if reason.startswith("an embedding")]
    shapes = {name: tuple(tensors[name].shape) for name in candidates}
    for name, reason in output_heads(shapes, others, tables).items():
        if not reasons[name] or "by its name" in reason:
            reasons[name] = f"{reason}; --select it to prune it"


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
