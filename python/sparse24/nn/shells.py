"""Compressed layers without numbers in a network's dense layers' places, as the names in a file want them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..pruning.layers import dense_class
from . import int8
from .by_tensors import is_held
from .compressed import DTYPES, CompressedModule
from .convert import dense_of, without_activation
from .dense_loads import compressed_like
from .forms import form_of
from .guard import CHILD
from .held import HeldWeight, helds_of, hold, put_back, release
from .kinds import SPARSE
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

    @property
    def device(self) -> torch.device:
        """Where the numbers were; meta: there were none."""
        return next(self.old.parameters()).device

    def take_back(self) -> None:
        put(self.old, self.places)


class HeldSwap(NamedTuple):
    """A parameter in whose place a compressed weight was put, or the other way round."""

    name: str
    module: nn.Module
    attribute: str
    old: nn.Parameter | HeldWeight
    new: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the numbers were; meta: there were none."""
        return self.old.values.device if isinstance(self.old, HeldWeight) else self.old.device

    def take_back(self) -> None:
        if isinstance(self.old, HeldWeight):
            hold(self.module, {self.attribute: self.old})
        else:
            put_back(self.module, {self.attribute: self.old})


Swaps = list[Swap | HeldSwap]


def put_shells(model: nn.Module, stored: Mapping[str, Storage]) -> tuple[Swaps, list[str]]:
    """Put compressed layers and weights on the meta device where ``stored`` names dense ones.

    Args:
        model: the network; layers that are compressed already stay.
        stored: of :func:`compressed_in`.

    Returns:
        What was replaced, for :func:`take_back`, and what is wrong: names that lead to no layer, or to one
        that has no compressed form. Where something is wrong nothing was replaced.
    """
    wanted, held, problems = _wanted(model, stored)
    if problems:
        return [], problems
    places = places_of(model)
    layers = []
    for name, module in wanted.items():
        own = {n: s for n, s in stored.items() if n == name or n.startswith(f"{name}.")}
        layers.append(Swap(name, module, shell_of(module, own, name), places[id(module)]))
    _put(model, layers)
    swaps: Swaps = [*layers]
    for name, (module, attribute) in held.items():
        old = module._parameters[attribute]
        assert old is not None
        shell = HeldWeight(form_of(module, tuple(old.shape)), "meta", _legal(old.dtype))
        be_stored_as(shell, stored[name])
        hold(module, {attribute: shell})
        swaps.append(HeldSwap(name, module, attribute, old, shell))
    return swaps, []


def put_storage(model: nn.Module, stored: Mapping[str, Storage]) -> Swaps:
    """Give compressed layers without numbers the 8-bit storage of a file: twins in their places."""
    places = places_of(model)
    layers: Swaps = []
    for name, module in list(model.named_modules()):
        if name not in stored or not isinstance(module, CompressedModule) or not module.values.is_meta:
            continue
        twin = copy.deepcopy(module)
        if not int8.is_narrow(module):
            be_stored_as(twin, stored[name])
        if int8.is_narrow(twin) and not int8.is_narrow(module):
            put(twin, places[id(module)])
            layers.append(Swap(name, module, twin, places[id(module)]))
    return layers


def _legal(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in DTYPES else torch.float32


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


def put_dense_weight(module: nn.Module, attribute: str, name: str) -> HeldSwap:
    """A dense parameter, with its numbers, in the place of a compressed weight."""
    old = helds_of(module)[attribute]
    release(module, [attribute])
    return HeldSwap(name, module, attribute, old, module)


def _put(model: nn.Module, swaps: Iterable[Swap]) -> None:
    for swap in swaps:
        carry_over(swap.old, swap.new)
        put(swap.new, swap.places)
    set_fused_paths(model)


def take_back(model: nn.Module, swaps: Iterable[Swap | HeldSwap]) -> None:
    """Put the layers back that :func:`put_shells` replaced."""
    for swap in swaps:
        swap.take_back()
    set_fused_paths(model)


def _wanted(
    model: nn.Module, stored: Mapping[str, Storage]
) -> tuple[dict[str, nn.Module], dict[str, tuple[nn.Module, str]], list[str]]:
    """Layers to replace, parameters to put compressed weights in the places of, and what is wrong."""
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[str, nn.Module] = {}
    held: dict[str, tuple[nn.Module, str]] = {}
    problems = []
    seen: set[tuple[int, str]] = set()
    for name in stored:
        parent, _, attribute = name.rpartition(".")
        owner = modules.get(parent)
        if parent.rpartition(".")[2] == CHILD and owner is None:  # a weight in the place of a parameter
            owner = modules.get(parent.rpartition(".")[0])
        if attribute in _PROJECTIONS and isinstance(owner, nn.MultiheadAttention) and not is_held(owner):
            name = parent  # noqa: PLW2901  converted whole
        module = modules.get(name)
        if module is None and owner is not None and owner._parameters.get(attribute) is not None:
            if (id(owner), attribute) not in seen:
                held[name] = (owner, attribute)
                seen.add((id(owner), attribute))
            continue
        if module is None:
            problems.append(f"{name} is compressed in it, and no layer of the model")
        elif isinstance(module, (*SPARSE, CompressedModule)) or (id(module), "") in seen:
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
            seen.add((id(module), ""))
    return wanted, held, problems


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
    """Give a layer the int8 or float8 storage of a file, without numbers."""
    is_float8 = (
        storage.dtype == torch.float8_e4m3fn and storage.has_scale and not isinstance(layer, HeldWeight)
    )
    if storage.dtype != torch.int8 and not is_float8:
        return  # other float8 values are widened when they are loaded
    meta = layer.values.device
    layer._float_dtype = layer.values.dtype
    values = torch.empty(layer.values.shape, dtype=storage.dtype, device=meta)
    input_scale = torch.empty((), device=meta) if storage.has_input_scale else None
    int8.store(layer, values, torch.empty(len(values), device=meta), input_scale)
