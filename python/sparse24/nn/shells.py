"""Compressed layers without numbers in a network's dense layers' places, as the names in a file want them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..pruning.layers import dense_class
from . import int8
from .compressed import CompressedModule
from .convert import dense_of, without_activation
from .convertible import SPARSE
from .dense_loads import compressed_like
from .swap import Places, carry_over, places_of, put, set_fused_paths

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Storage(NamedTuple):
    """How a file holds the weight of a compressed layer."""

    dtype: torch.dtype  #: of ``values``
    has_scale: bool = False  #: int8 or float8, with ``weight_scale``
    has_input_scale: bool = False


def compressed_in(dtypes: Mapping[str, torch.dtype | str]) -> dict[str, Storage]:
    """The compressed layers of a state_dict, by the names and dtypes of its tensors."""
    found = {}
    for name, dtype in dtypes.items():
        layer, _, attribute = name.rpartition(".")
        prefix = f"{layer}." if layer else ""
        values = dtypes.get(f"{prefix}values")
        if attribute == "indices" and dtype in (torch.uint8, "U8") and isinstance(values, torch.dtype):
            scales = (f"{prefix}weight_scale" in dtypes, f"{prefix}input_scale" in dtypes)
            found[layer] = Storage(values, *scales)
    return found


class Swap(NamedTuple):
    """A layer that was replaced."""

    name: str
    old: nn.Module
    new: nn.Module
    places: Places


def put_shells(model: nn.Module, stored: Mapping[str, Storage]) -> tuple[list[Swap], list[str]]:
    """Put compressed layers on the meta device where ``stored`` names dense ones.

    Args:
        model: the network; layers that are compressed already stay.
        stored: of :func:`compressed_in`.

    Returns:
        What was replaced, for :func:`take_back`, and what is wrong: names that lead to no layer, or to one
        that has no compressed form. Where something is wrong nothing was replaced.
    """
    wanted, problems = _wanted(model, stored)
    if problems:
        return [], problems
    places = places_of(model)
    swaps = []
    for name, module in wanted.items():
        new = shell_of(
            module, {n: s for n, s in stored.items() if n == name or n.startswith(f"{name}.")}, name
        )
        swaps.append(Swap(name, module, new, places[id(module)]))
    _put(model, swaps)
    return swaps, []


def put_dense(model: nn.Module, names: Iterable[str]) -> list[Swap]:
    """Dense layers, with their numbers, in the places of the compressed ones called ``names``."""
    places = places_of(model)
    swaps = []
    for name in names:
        old: Any = model.get_submodule(name)
        plain = without_activation(old) if hasattr(old, "activation") else old
        swaps.append(Swap(name, old, dense_of(plain), places[id(old)]))
    _put(model, swaps)
    return swaps


def _put(model: nn.Module, swaps: Iterable[Swap]) -> None:
    for swap in swaps:
        carry_over(swap.old, swap.new)
        put(swap.new, swap.places)
    set_fused_paths(model)


def take_back(model: nn.Module, swaps: Iterable[Swap]) -> None:
    """Put the layers back that :func:`put_shells` replaced."""
    for swap in swaps:
        put(swap.old, swap.places)
    set_fused_paths(model)


def _wanted(model: nn.Module, stored: Mapping[str, Storage]) -> tuple[dict[str, nn.Module], list[str]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[str, nn.Module] = {}
    problems = []
    seen: set[int] = set()
    for name in stored:
        parent, _, attribute = name.rpartition(".")
        if attribute in _PROJECTIONS and isinstance(modules.get(parent), nn.MultiheadAttention):
            name = parent  # noqa: PLW2901  converted whole
        module = modules.get(name)
        if module is None:
            problems.append(f"{name} is compressed in it, and no layer of the model")
        elif isinstance(module, (*SPARSE, CompressedModule)) or id(module) in seen:
            continue
        elif dense_class(module) is None:
            problems.append(f"{name} is compressed in it, and a {type(module).__name__} in the model")
        elif not name:
            problems.append(
                f"the model is itself a {type(module).__name__}, which cannot be swapped in place: load into "
                "the sparse class"
            )
        else:
            wanted[name] = module
            seen.add(id(module))
    return wanted, problems


def shell_of(module: nn.Module, stored: Mapping[str, Storage], name: str) -> nn.Module:
    """The compressed layer of a dense one on the meta device, stored as ``stored`` says."""
    dtype = _dtype_of(module)
    shell = compressed_like(module, dtype)
    for inner, layer in shell.named_modules(prefix=name):
        if isinstance(layer, CompressedModule) and inner in stored:
            be_stored_as(layer, stored[inner])
    kind = dense_class(module)
    if kind is not None and kind.__name__ == "Conv1D":
        shell._dense_class = kind  # type: ignore[assignment]
    return shell.train(module.training)


def _dtype_of(module: nn.Module) -> torch.dtype:
    weight = module.out_proj.weight if isinstance(module, nn.MultiheadAttention) else module.weight
    assert isinstance(weight, Tensor)
    return weight.dtype


def be_stored_as(layer: CompressedModule, storage: Storage) -> None:
    """Give a layer the int8 storage of a file, without numbers."""
    if storage.dtype != torch.int8:
        return
    meta = layer.values.device
    layer._float_dtype = layer.values.dtype
    values = torch.empty(layer.values.shape, dtype=torch.int8, device=meta)
    input_scale = torch.empty((), device=meta) if storage.has_input_scale else None
    int8.store(layer, values, torch.empty(len(values), device=meta), input_scale)
