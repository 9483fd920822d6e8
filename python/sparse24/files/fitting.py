"""Which state_dict of a file is a network's, and its names without what wrappers put before them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..nn.guard import is_guard
from .apex import from_apex, is_apex
from .bitmask import from_bitmask, is_bitmask
from .errors import FileError
from .formats import StateDict, StateFile

#: What wrappers (DistributedDataParallel, Lightning, torch.compile) put before the names of a network.
_PREFIXES = ("module.", "model.", "_orig_mod.")


def fitting(path: Path, file: StateFile, model: nn.Module, key: str | None) -> dict[str, Any]:
    """The state_dict of ``file`` that is for ``model``, by the names of the model.

    Raises:
        FileError: no state_dict called ``key``; without a key, several that fit.
    """
    found = file.state_dicts
    if key is not None:
        found = [each for each in found if ".".join(each.path) == key]
        if not found:
            raise FileError(f"{path}: has no state_dict {key!r}, but {_names_of(file.state_dicts)}")
    layers = {name for name, module in model.named_modules(remove_duplicate=False) if module._parameters}
    layers |= {name for name, module in model.named_modules(remove_duplicate=False) if module._buffers}
    states = [_without_prefix(each.state, layers) for each in found]
    if len(states) == 1:
        return states[0]
    shares = [_share(state, layers) for state in states]
    best = max(shares)
    fits = [i for i, share in enumerate(shares) if share == best]
    if len(fits) > 1 and best > 0:
        raise FileError(
            f"{path}: holds several state_dicts that fit: {_names_of([found[i] for i in fits])}; choose one "
            "with key="
        )
    return states[fits[0]]


def _names_of(found: list[StateDict]) -> str:
    return ", ".join(repr(".".join(each.path)) for each in found)


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def _share(state: Mapping[str, Any], layers: set[str]) -> float:
    """The share of a state_dict's layers that a model has."""
    held = {_layer_of(name) for name, value in state.items() if isinstance(value, Tensor)}
    return len(held & layers) / max(1, len(held))


def _without_prefix(state: Mapping[Any, Any], layers: set[str]) -> dict[str, Any]:
    """The state_dict without prefixes that every name has, where more layers fit without; in our format."""
    names = {n: value for n, value in state.items() if isinstance(n, str) and not is_guard(n, state)}
    names = from_bitmask(names) if is_bitmask(names) else names
    names = from_apex(names) if is_apex(names) else names
    best = names
    while prefix := next((p for p in _PREFIXES if names and all(name.startswith(p) for name in names)), ""):
        names = {name.removeprefix(prefix): value for name, value in names.items()}
        if _share(names, layers) > _share(best, layers):
            best = names
    return best
