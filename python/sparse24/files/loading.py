"""``sparse24.load``: a checkpoint into a network that need not be sparse, or have numbers, yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import int8
from ..nn.attention import SparseMultiheadAttention
from ..nn.by_tensors import is_held
from ..nn.compressed import CompressedModule
from ..nn.convert import row_of
from ..nn.convertible import layers_of
from ..nn.forms import NotSparse24Error, check_weight
from ..nn.guard import CHILD
from ..nn.held import HeldWeight, helds_of
from ..nn.kinds import SPARSE
from ..nn.shells import (
    Swaps,
    compressed_in,
    put_dense,
    put_dense_weight,
    put_shells,
    put_storage,
    take_back,
)
from ..pruning.prunable import unwrap
from ..report import Report
from .errors import FileError
from .fitting import fitting
from .formats import METADATA_KEY, StateFile, read
from .shards import check_index, is_index, shards_of


def read_all(path: Path) -> StateFile:
    """Read a file, a folder or what an index names onto the CPU, all files of it as one state_dict.

    Numbers stay in the files until they are used, where the format allows it.

    Raises:
        FileError: as :func:`.formats.read` and :func:`.shards.shards_of`; files that disagree with the index.
    """
    if not path.is_dir() and not is_index(path):
        return read(path)
    shards = shards_of(path)
    if len(shards.files) == 1 and shards.listed is None:
        return read(shards.files[0])
    state: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for file in shards.files:
        part = read(file)
        check_index(shards, file, part.state)
        state |= part.state
        metadata |= part.metadata or {}
    return StateFile(state, metadata or None)


#: What a compressed weight has in a state_dict.
_STORAGE = ("values", "indices", "weight_scale", "input_scale")


def load(model: nn.Module, path: str | os.PathLike[str], *, key: str | None = None) -> Report:
    """Load a sparse checkpoint into a network, in place; dense layers become compressed as the file says.

    The network may be dense, sparse, or on the meta device (built under ``torch.device("meta")``). Where it
    has numbers, its dtypes and devices stay, as with ``load_state_dict``; where it has none, it gets the
    file's dtypes, on the CPU. A layer that is compressed and whose weight is dense in the file stays
    compressed if that weight is 2:4, and becomes dense if not. float8 weights with scales make dense layers
    float8; compressed layers that are not float8 widen them.

    Args:
        model: the network; DistributedDataParallel and torch.compile around it are left out.
        path: a file of :func:`save`, of ``torch.save`` (a state_dict, or a checkpoint that holds one), or in
            safetensors; a folder of them, or its index. Weights of "sparse-24-bitmask" and of apex's
            checkpoints, with their masks, are compressed ones, too.
        key: where a checkpoint holds several state_dicts: which ("model", "ema"); default: the only one that
            has the names of the model.

    Returns:
        One row a layer, as ``to_sparse`` returns them.

    Raises:
        TypeError: ``model`` is no module.
        FileError: a file that is missing, damaged, or at odds with its index; names, shapes or dtypes that
            are not the model's (another architecture); damaged compressed weights, or those of a later
            format; no compressed weight in it, unless :func:`save` wrote it. The model is as before.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"load needs an nn.Module, not {type(model).__name__}")
    path = Path(path)
    model = unwrap(model)
    file = read_all(path)
    state = fitting(path, file, model, key)
    state = _by_the_models_names(model, state)
    stored = compressed_in({name: t.dtype for name, t in state.items() if isinstance(t, Tensor)})
    if not stored and not _is_ours(file):
        raise FileError(
            f"{path}: no compressed weight in it: a dense checkpoint is for load_state_dict, then "
            "sparse24.to_sparse (to prune it first: sparse24.Sparsifier(model).prune())"
        )
    swaps, problems = put_shells(model, stored)
    try:
        if problems:
            raise FileError(f"{path}: does not fit {type(model).__name__}: {problems[0]}")  # noqa: TRY301
        swaps += put_storage(model, stored)
        swaps += _dense_again(model, state)
        state = _as_the_model_has_it(path, model, state)
        _check_numbers(path, model, state)
        _materialize(path, model, state, swaps)
        model.load_state_dict(state)
    except BaseException:  # an interruption, too
        take_back(model, reversed(swaps))
        raise
    rows = [
        row_of(name, module, None if _why(module) else module, _why(module))
        for name, module in layers_of(model)
    ]
    return Report(tuple(rows))


def _why(module: nn.Module) -> str:
    return "" if isinstance(module, SPARSE) or is_held(module) else "dense in the file"


def _is_ours(file: StateFile) -> bool:
    marks = [file.metadata or {}]
    marks += [getattr(each.state, "_metadata", {}).get("", {}) for each in file.state_dicts]
    return any(METADATA_KEY in each for each in marks)


def _dense_again(model: nn.Module, state: Mapping[str, Any]) -> Swaps:
    """Dense layers for compressed ones whose weight the file holds, and which is not 2:4."""
    names = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, SparseMultiheadAttention):
            if {f"{prefix}in_proj_weight", f"{prefix}q_proj_weight"} & state.keys():
                names.append(name)
            continue
        weight = state.get(f"{prefix}weight")
        if not isinstance(module, CompressedModule) or weight is None or weight.shape != module.weight.shape:
            continue
        try:
            check_weight(weight, module._form, module._dtype())
        except NotSparse24Error:
            names.append(name)
    swaps: Swaps = [*put_dense(model, names)]
    for name, module in list(model.named_modules()):
        prefix = f"{name}." if name else ""
        for attribute in getattr(module, "_held_names", ()):
            weight, held = state.get(prefix + attribute), helds_of(module)[attribute]
            if weight is None or not isinstance(held, HeldWeight) or weight.shape != held._form.shape:
                continue
            try:
                check_weight(weight, held._form, held._dtype())
            except NotSparse24Error:
                swaps.append(put_dense_weight(module, attribute, prefix + attribute))
    return swaps


def _by_the_models_names(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Compressed weights by the names that the model has for them: a layer's, or in its weight's place."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for name, value in state.items():
        layer, _, attribute = name.rpartition(".")
        owner = layer.removesuffix(f".{CHILD}.weight")
        if owner != layer and _is_layer(modules.get(owner)):
            name = f"{owner}.{attribute}"  # noqa: PLW2901
        elif attribute in _STORAGE and "weight" in getattr(modules.get(layer), "_held_names", ()):
            name = f"{layer}.{CHILD}.weight.{attribute}"  # noqa: PLW2901
        found[name] = value
    return found


def _is_layer(module: nn.Module | None) -> bool:
    return isinstance(module, CompressedModule) and not isinstance(module, HeldWeight)


def _as_the_model_has_it(path: Path, model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` with every name of the model.

    Raises:
        FileError: names that are missing, or too many, or shapes that differ.
    """
    held = model.state_dict(keep_vars=True)
    found = dict(state)
    first: dict[int, str] = {}
    for name, own in held.items():  # tied parameters are in a file once
        if isinstance(own, Tensor) and name in found:
            first.setdefault(id(own), name)
    for name, own in held.items():
        if name not in found and id(own) in first:
            found[name] = found[first[id(own)]]
    known = {name: _shape(own) for name, own in held.items()}
    for name, module in model.named_modules():  # a compressed layer takes a dense weight, too
        prefix = f"{name}." if name else ""
        given = _dense_name(name) if isinstance(module, HeldWeight) else f"{prefix}weight"
        if isinstance(module, CompressedModule) and given in found:
            for own_name in _STORAGE:
                known.pop(f"{prefix}{own_name}", None)
            known[given] = tuple(module._form.shape)
        elif isinstance(module, CompressedModule) and not module.values.is_meta:
            _take_scales_of_file(prefix, module, known, found)
    for problem, names in (
        ("is missing in it", sorted(known.keys() - found.keys())),
        ("has no place in the model", sorted(found.keys() - known.keys())),
    ):
        if names:
            others = f", and {len(names) - 1} others" if len(names) > 1 else ""
            raise FileError(f"{path}: does not fit {type(model).__name__}: {names[0]} {problem}{others}")
    for name, shape in known.items():
        if shape is not None and _shape(found[name]) != shape:
            raise FileError(
                f"{path}: does not fit {type(model).__name__}: {name} is {_shape(found[name])} in it, "
                f"{shape} in the model"
            )
    return found


def _take_scales_of_file(
    prefix: str, module: CompressedModule, known: dict[str, tuple[int, ...] | None], found: Mapping[str, Any]
) -> None:
    """Whether a layer has scales is the file's to say: what is ``known`` of them becomes what it holds."""
    for name, shape in ((f"{prefix}weight_scale", (len(module.values),)), (f"{prefix}input_scale", ())):
        known.pop(name, None)
        if name in found:
            known[name] = shape


def _dense_name(name: str) -> str:
    """What a dense module calls the parameter that a compressed weight called ``name`` stands for."""
    owner, _, attribute = name.rpartition(".")
    return f"{owner.removesuffix(CHILD)}{attribute}"


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _check_numbers(path: Path, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse damaged weights before anything is written.

    Raises:
        FileError: the layer is named.
    """
    for name, module in model.named_modules():
        if not isinstance(module, CompressedModule):
            continue
        prefix = f"{name}." if name else ""
        weight = [state.get(f"{prefix}{each}") for each in ("values", "indices", "bias")]
        scales = [state.get(f"{prefix}{each}") for each in ("weight_scale", "input_scale")]
        problem = module._problem_with(*weight) or int8.problem_with(module, weight[0], *scales)
        if problem:
            raise FileError(f"{path}: {prefix}{problem}")


def _materialize(path: Path, model: nn.Module, state: Mapping[str, Any], swaps: Swaps) -> None:
    """Memory for what is on the meta device; ties stay ties.

    A compressed layer gets the dtype and device of the dense one whose place it took, where that had numbers;
    what had none gets the dtype of the file, on the CPU.

    Raises:
        FileError: a tensor without numbers that no file holds.
    """
    homes = {
        id(inner): swap.device for swap in swaps if swap.device.type != "meta" for inner in swap.new.modules()
    }
    made: dict[int, Tensor] = {}
    puts: list[tuple[dict[str, Any], str, Tensor]] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for kind in (module._parameters, module._buffers):
            for own_name, own in kind.items():
                if own is None or not own.is_meta:
                    continue
                given = state.get(prefix + own_name)
                if not isinstance(given, Tensor):
                    raise FileError(
                        f"{path}: {prefix}{own_name} is on the meta device, and no file holds it (it is not "
                        "persistent): build the model on the CPU"
                    )
                if id(own) not in made:
                    stays = id(module) in homes or given.dtype in int8.FLOAT8
                    dtype = own.dtype if stays else given.dtype
                    blank = torch.empty(own.shape, dtype=dtype, device=homes.get(id(module), "cpu"))
                    is_parameter = isinstance(own, nn.Parameter)
                    made[id(own)] = nn.Parameter(blank, own.requires_grad) if is_parameter else blank
                puts.append((kind, own_name, made[id(own)]))
    for kind, own_name, tensor in puts:
        kind[own_name] = tensor
