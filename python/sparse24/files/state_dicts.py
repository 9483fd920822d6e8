"""state_dicts without the model that they belong to: which weights are 2:4, and pruning by name and shape."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..masks import decompress, is_sparse24, kept_share, prune_
from ..nn.compressed import DTYPES
from ..pruning.layers import compressed_bytes
from ..pruning.rules import unfit
from ..report import Report, Row
from .choice import RULE, Choice, Shown, check_patterns, reasons_not_to
from .formats import StateFile, Unreadable, first_line

_NAN = float("nan")


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
    rows += [_unread_row(name, each) for name, each in file.state.items() if isinstance(each, Unreadable)]
    return Report(tuple(rows), action="2:4")


def _unread_row(name: str, each: Unreadable) -> Row:
    return Row(
        name, each.dtype, each.shape, False, f"dtype {each.dtype}, which torch cannot read", _NAN, 0, 0
    )


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _dense_row(name: str, tensor: Tensor) -> Row:
    size = tensor.numel() * tensor.element_size()
    if reason := unfit(tensor):
        return Row(
            name, _dtype_name(tensor), tuple(tensor.shape), False, reason, kept_share(tensor), size, size
        )
    sparse = is_sparse24(tensor)
    compressed = compressed_bytes(tensor.shape, tensor.element_size())
    after = size
    if tensor.dtype not in DTYPES:
        reason = f"sparse layers hold {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}: cast it"
    elif sparse:
        after = compressed
    else:
        reason = f"not 2:4 along dim 1; pruned and compressed it would take {compressed:,}"
    kept = kept_share(tensor) if tensor.numel() else 1.0
    return Row(name, _dtype_name(tensor), tuple(tensor.shape), sparse, reason, kept, size, after)


def _compressed_row(name: str, values: Tensor, indices: Tensor) -> Row:
    size = values.numel() * values.element_size() + indices.numel()
    shape = (*values.shape[:-1], 2 * values.shape[-1])
    try:
        weight = decompress(values, indices)
    except (TypeError, ValueError) as error:
        return Row(name, _dtype_name(values), shape, False, first_line(error), 1.0, size, size)
    kept = float((weight != 0).sum()) / weight.numel() if weight.numel() else 1.0
    return Row(name, _dtype_name(values), shape, True, "compressed already", kept, size, size)


def prune(
    file: StateFile,
    select: Sequence[str] = (),
    skip: Sequence[str] = (),
    vocabularies: frozenset[int] = frozenset(),
    told: Callable[[int], None] = lambda count: None,
) -> tuple[StateFile, Report]:
    """Prune weights to 2:4 along dim 1 by magnitude; ``file`` is not changed.

    Without the model, names and shapes have to tell what a tensor is (``choice``): pruned is ``*weight`` of
    two or four dimensions and of at least 4 input channels, unless it may be an embedding (or shares memory
    with one), an output head, an adapter, or one that is stored as [in, out]. The state_dicts in a
    checkpoint are pruned where they stand.

    Args:
        file: what :func:`read` returned.
        select: names or fnmatch patterns; prune these alone, whatever their names say.
        skip: names or fnmatch patterns; never prune these.
        vocabularies: numbers of rows of embeddings and output heads.
        told: called with numbers of bytes as they are looked at.

    Returns:
        The pruned copy, and one row for each floating tensor of two or more dimensions.

    Raises:
        FileError: a pattern in ``select`` or ``skip`` that matches no tensor.
    """
    choice = Choice(select, skip, vocabularies)
    shown = {each.path: {n: _shown(t) for n, t in each.tensors.items()} for each in file.state_dicts}
    prefixes = {each.path: each.prefix for each in file.state_dicts}
    names = [prefixes[path] + n for path, held in shown.items() for n, one in held.items() if one.has_row]
    check_patterns(names, choice)
    state = copy.copy(file.state)  # with the attribute by which torch knows versions of modules
    rows: list[Row] = []
    done: dict[Hashable, Tensor] = {}
    for each in file.state_dicts:
        pruned: dict[str, Tensor] = {}
        for name, reason in reasons_not_to(shown[each.path], choice, each.prefix).items():
            tensor = each.tensors[name]
            if not reason:
                if _place(tensor) not in done:
                    done[_place(tensor)] = tensor.clone()
                    prune_(done[_place(tensor)])
                tensor = pruned[name] = done[_place(tensor)]
            rows.append(_pruned_row(each.prefix + name, tensor, reason))
            told(tensor.numel() * tensor.element_size())
        state = _with(state, each.path, pruned)
    return dataclasses.replace(file, state=state), Report(tuple(rows), action="pruned")


def _with(state: Any, path: Sequence[str], pruned: dict[str, Tensor]) -> Any:
    """A copy of a mapping with other tensors in the mapping at ``path``; what is beside it is the same."""
    copied = copy.copy(state)
    if path:
        copied[path[0]] = _with(state[path[0]], path[1:], pruned)
    else:
        copied.update(pruned)
    return copied


def _place(tensor: Tensor) -> Hashable:
    """Equal for two views of the same memory in the same order."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _shown(tensor: Tensor) -> Shown:
    strided = tensor.layout == torch.strided
    return Shown(tuple(tensor.shape), tensor.dtype, _place(tensor) if strided else None, tensor.layout)


def _pruned_row(name: str, tensor: Tensor, reason: str) -> Row:
    size = tensor.numel() * tensor.element_size()
    remark = reason or RULE.remark(tensor, 1)
    return Row(
        name, _dtype_name(tensor), tuple(tensor.shape), not reason, remark, kept_share(tensor), size, size
    )
