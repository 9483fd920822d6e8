"""Checkpoints of apex's ASP: masks beside the weights, as buffers ``__NAME_mma_mask``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..masks import is_sparse24
from .choice import Shown
from .compressing import compressed, to_compress
from .errors import FileError

_MASK = re.compile(r"(.*?)__(.+)_mma_mask")
_PRUNED = re.compile(r"(.*?)__(.+)_mma_pruned_p")


def is_apex(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state_dict has masks of apex's."""
    return any(_MASK.fullmatch(name) for name in state_dict)


def from_apex(state_dict: Mapping[str, Any], *, compress: bool = True) -> dict[str, Any]:
    """A state_dict without apex's masks, which are applied.

    With ``compress`` what they prune is ``values`` and ``indices``, where a layer of ours can hold it.

    Copies of pruned weights that apex keeps to compute masks again (``__NAME_mma_pruned_p``) are left out.

    Args:
        state_dict: of a network that ASP has pruned, perhaps without optimizer.
        compress: whether to write compressed weights.

    Raises:
        FileError: a mask without its weight, or of another shape.
    """
    found: dict[str, Any] = {}
    masks: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if match := _MASK.fullmatch(name):
            masks[match[1] + match[2]] = value
        elif not _PRUNED.fullmatch(name):
            found[name] = value
    for name, mask in masks.items():
        weight = found.get(name)
        if not isinstance(weight, Tensor) or not isinstance(mask, Tensor) or weight.shape != mask.shape:
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else "missing"
            given = tuple(mask.shape) if isinstance(mask, Tensor) else mask
            raise FileError(f"apex's mask of {name} is {given}, and the weight {shape}")
        found[name] = weight.where(mask != 0, weight.new_zeros(()))
    if not compress:
        return found
    shown = {n: Shown(tuple(t.shape), t.dtype) for n, t in found.items() if isinstance(t, Tensor)}
    two_four = [n for n in masks if found[n].dim() in (2, 4) and is_sparse24(found[n])]
    chosen = to_compress(shown, two_four)
    result: dict[str, Any] = {}
    for name, value in found.items():
        result |= compressed(name, value) if name in chosen else {name: value}
    return result
