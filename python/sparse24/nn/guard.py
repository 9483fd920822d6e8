"""A tensor that keeps loaders which know nothing of compressed weights from taking a file for a dense one.

transformers skips a quantization that it does not know, after a warning, and then gives every weight that is
missing random numbers, after another. So beside the compressed weights of its models stands ``NAME.weight``,
empty, for one layer: a shape that is not the layer's is an error there. Who knows ``values`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: What the child is called that holds compressed weights in the places of parameters (``held.py``).
CHILD = "compressed"


def guard_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The guard for a state_dict with compressed layers; empty where there is none."""
    for name in state:
        layer, _, attribute = name.rpartition(".")
        if attribute == "indices" and layer and f"{layer}.values" in state:
            return {guard_name(layer): torch.empty(0, dtype=torch.uint8)}
    return {}


def guard_name(layer: str) -> str:
    """What the dense module calls the weight that is compressed under the name ``layer``."""
    owner, _, attribute = layer.rpartition(".")
    is_held = owner == CHILD or owner.endswith(f".{CHILD}")
    return f"{owner.removesuffix(CHILD)}{attribute}" if is_held else f"{layer}.weight"


def is_guard(name: str, state: Mapping[str, Any]) -> bool:
    """Whether what a state_dict calls ``name`` is a guard."""
    value = state[name]
    if not isinstance(value, Tensor) or value.numel():
        return False
    owner, dot, attribute = name.rpartition(".")
    layers = (owner, f"{owner}{dot}{CHILD}.{attribute}")
    return any((f"{layer}.values" if layer else "values") in state for layer in layers)
