"""How a network is run on a batch to look at it: as in use, and left as it was."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def run_batch(model: nn.Module, batch: Any) -> Any:
    """The model on one batch: a tensor, a mapping of keywords, or a sequence of arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, without caches of keys and values and fused paths that call no layer."""
    training = {module: module.training for module in model.modules()}
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    cached = [c for c in configs.values() if getattr(c, "use_cache", False) is True]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        for config in cached:
            config.use_cache = False
        yield
    finally:
        for module, was in training.items():
            module.training = was
        torch.backends.mha.set_fastpath_enabled(fused)
        for config in cached:
            config.use_cache = True


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """What a forward pass leaves in attributes (caches, hooks that it sets on first use) is taken back."""
    kept = [
        (module, {name: (value, _contents(value)) for name, value in vars(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes in kept:
            now = vars(module)
            for name in now.keys() - attributes.keys():
                del now[name]
            for name, (value, contents) in attributes.items():
                now[name] = value
                _fill(value, contents)


def _contents(value: Any) -> Any:
    """A copy of a plain container; ``None``: it is none."""
    return value.copy() if type(value) in (dict, OrderedDict, list, set) else None


def _fill(value: Any, contents: Any) -> None:
    if contents is not None:
        value.clear()
        (value.extend if isinstance(value, list) else value.update)(contents)
