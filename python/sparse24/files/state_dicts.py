"""state_dicts without the model that they belong to: which weights are 2:4, and pruning by name and shape."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..masks import decompress, is_sparse24, kept_share, prune_
from ..nn.compressed import DTYPES
from ..pruning.layers import compressed_bytes
from ..pruning.rules import unfit
from ..report import Report, Row
from .choice import RULE, Choice, Plan, Shown, check_patterns, reasons_not_to
from .compressing import bytes_of, compressed, compressed_shapes, to_compress
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
    *,
    compress: bool = False,
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
        compress: put ``values`` and ``indices`` in the place of what is pruned.

    Returns:
        The pruned copy, and one row for each floating tensor of two or more dimensions.

    Raises:
        FileError: a pattern in ``select`` or ``skip`` that matches no tensor.
    """
    choice = Choice(select, skip, vocabularies)
    shown = {each.path: shown_in(each.tensors) for each in file.state_dicts}
    prefixes = {each.path: each.prefix for each in file.state_dicts}
    names = [prefixes[path] + n for path, held in shown.items() for n, one in held.items() if one.has_row]
    check_patterns(names, choice)
    plans = {}
    for each in file.state_dicts:
        reasons = reasons_not_to(shown[each.path], choice, each.prefix)
        chosen = [name for name, reason in reasons.items() if not reason]
        plans[each.path] = Plan(reasons, to_compress(shown[each.path], chosen) if compress else set())
    return pruned_by(file, plans, told)


def pruned_by(
    file: StateFile, plans: Mapping[tuple[str, ...], Plan], told: Callable[[int], None]
) -> tuple[StateFile, Report]:
    """A pruned copy of ``file``, and its rows: ``plans`` has one for the path of every state_dict."""
    state = copy.copy(file.state)  # with the attribute by which torch knows versions of modules
    rows: list[Row] = []
    done: dict[Hashable, Tensor] = {}
    for each in file.state_dicts:
        plan, shown = plans[each.path], shown_in(each.tensors)
        changed: dict[str, dict[str, Tensor]] = {}
        for name, tensor in each.tensors.items():
            if name in plan.compressed and name not in plan.reasons:
                changed[name] = compressed(name, tensor)
            if name not in plan.reasons:
                continue
            if not plan.reasons[name]:
                if _place(tensor) not in done:
                    done[_place(tensor)] = tensor.clone()
                    prune_(done[_place(tensor)])
                tensor = done[_place(tensor)]  # noqa: PLW2901
                is_kept = name not in plan.compressed
                changed[name] = {name: tensor} if is_kept else compressed(name, tensor)
                if name == plan.guard:
                    changed[name][name] = torch.empty(0, dtype=torch.uint8)
                if not is_kept:
                    del done[_place(each.tensors[name])]
            rows.append(_pruned_row(each.prefix, name, tensor, plan, shown[name]))
            told(tensor.numel() * tensor.element_size())
        state = _with(state, each.path, changed)
    return dataclasses.replace(file, state=state), Report(tuple(rows), action="pruned")


def _with(state: Any, path: Sequence[str], changed: dict[str, dict[str, Tensor]]) -> Any:
    """A copy of a mapping with other tensors in the mapping at ``path``; what is beside it is the same."""
    copied = copy.copy(state)
    if path:
        copied[path[0]] = _with(state[path[0]], path[1:], changed)
        return copied
    copied.clear()
    for name, value in state.items():
        copied.update(changed.get(name, {name: value}) if isinstance(name, str) else {name: value})
    return copied


def shown_in(tensors: Mapping[str, Tensor]) -> dict[str, Shown]:
    """What a state_dict shows of its tensors."""
    return {name: _shown(tensor) for name, tensor in tensors.items()}


def _place(tensor: Tensor) -> Hashable:
    """Equal for two views of the same memory in the same order."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _shown(tensor: Tensor) -> Shown:
    strided = tensor.layout == torch.strided
    return Shown(tuple(tensor.shape), tensor.dtype, _place(tensor) if strided else None, tensor.layout)


def _pruned_row(prefix: str, name: str, tensor: Tensor, plan: Plan, shown: Shown) -> Row:
    size = tensor.numel() * tensor.element_size()
    reason = plan.reasons[name]
    remark = reason or RULE.remark(tensor, 1)
    after = size
    if name in plan.compressed:
        after = sum(bytes_of(each) for each in compressed_shapes(name, shown).values())
    kind, shape = _dtype_name(tensor), tuple(tensor.shape)
    return Row(prefix + name, kind, shape, not reason, remark, kept_share(tensor), size, after)
