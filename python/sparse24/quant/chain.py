"""int8 from layer to layer: what one hands on is what the next would have made of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..nn import SparseConv2d, SparseLinear
from ..pruning.prunable import unwrap
from ..pruning.running import quiet
from .folding import Undo, apply_checked, given_by, outputs_of


def chain(model: nn.Module, batch: Any) -> list[tuple[str, str]]:
    """Let int8 layers hand on int8 where one static layer follows the other directly, in place.

    A layer's output is rounded by the scale of the layer that reads it, as that one would do; nobody else may
    read it. So outputs are the same bits, and activations between the two take a quarter of the memory.
    Activations are followed only where they are folded (``to_sparse(fuse=True)``). Chains are no part of a
    state_dict: call this again after loading.

    Args:
        model: with int8 layers whose activations are static.
        batch: one, as :func:`sparse24.quantize` takes them; outputs are compared on it.

    Returns:
        The pairs, by name.
    """
    network = unwrap(model)
    layers = {
        n: m
        for n, m in network.named_modules()
        if isinstance(m, SparseLinear | SparseConv2d) and _is_static(m)
    }
    with quiet(network), torch.no_grad():
        pairs = given_by(network, batch, layers, layers)
        sources = list(pairs.values())
        alone = {taker: source for taker, source in pairs.items() if sources.count(source) == 1}
        before = outputs_of(network, batch) if alone else []
        changes = {
            taker: lambda taker=taker, source=source: _hand_on(layers[source], layers[taker])
            for taker, source in alone.items()
        }
        kept, _ = apply_checked(network, batch, before, changes)
    return [(alone[taker], taker) for taker in kept]


def _is_static(layer: SparseLinear | SparseConv2d) -> bool:
    scale = layer._buffers.get("input_scale")
    return layer.is_int8 and scale is not None and not scale.is_meta and float(scale) > 0


def _hand_on(source: nn.Module, taker: nn.Module) -> Undo:
    scale = taker._buffers["input_scale"]
    assert scale is not None
    source.register_buffer("output_scale", scale.detach().clone(), persistent=False)

    def back() -> None:
        del source._buffers["output_scale"]
        source._non_persistent_buffers_set.discard("output_scale")

    return back
