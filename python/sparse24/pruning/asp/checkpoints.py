"""Checkpoints as apex writes them: a mask, and perhaps what it pruned, under a key beside its weight's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..prunable import clean_name, unwrap
from .session import Session

_KEY = re.compile(r"(?P<layer>(?:.*\.)?)__(?P<attribute>\w+)_mma_(?P<what>mask|pruned_p)")


def written(model: nn.Module, session: Session) -> dict[str, Any]:
    """``model.state_dict()`` with the masks of its session; :meth:`ASP.state_dict` says how."""
    state: dict[str, Any] = dict(model.state_dict())
    raw_names = _names_in(model)
    for name, (mask, pruned) in session.mask_state().items():
        layer, dot, attribute = raw_names[name].rpartition(".")
        state[f"{layer}{dot}__{attribute}_mma_mask"] = mask
        if pruned is not None:
            state[f"{layer}{dot}__{attribute}_mma_pruned_p"] = pruned
    return state


def load(model: nn.Module, session: Session, state: Mapping[str, Any]) -> None:
    """Weights into the model and masks into its session; :meth:`ASP.load_state_dict` says which.

    Raises:
        TypeError, ValueError: something in ``state`` does not fit. Nothing was changed.
    """
    clean_names = {raw: name for name, raw in _names_in(model).items()}
    weights: dict[str, Any] = {}
    found: dict[str, dict[str, Tensor]] = {"mask": {}, "pruned_p": {}}
    for key, value in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            weights[key] = value
        elif not isinstance(value, Tensor):
            raise TypeError(f"{key} must be a tensor, not {type(value).__name__}")
        else:
            raw = match["layer"] + match["attribute"]
            found[match["what"]][clean_names.get(raw, raw)] = value
    _check_weights(model, weights)
    masks, pruned = session.checked_state(found["mask"], found["pruned_p"])
    model.load_state_dict(weights)
    session.adopt(masks, pruned)


def _names_in(model: nn.Module) -> dict[str, str]:
    """The names of parameters in ``model.state_dict()``, wrappers included, by their clean names."""
    base = unwrap(model)
    prefix = next(name for name, module in model.named_modules() if module is base)
    dot = "." if prefix else ""
    return {
        clean_name(name): f"{prefix}{dot}{name}" for name, _ in base.named_parameters(remove_duplicate=False)
    }


def _check_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """What ``load_state_dict`` would find wrong, before it has changed anything."""
    expected = model.state_dict()
    missing, unexpected = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unexpected:
        raise ValueError(
            f"the checkpoint does not fit the model: missing {sorted(missing)}, "
            f"unexpected {sorted(unexpected)}"
        )
    for key, value in expected.items():
        if isinstance(value, Tensor) and getattr(weights[key], "shape", None) != value.shape:
            given = getattr(weights[key], "shape", type(weights[key]).__name__)
            raise ValueError(f"{key} is {given} in the checkpoint, {tuple(value.shape)} in the model")
