"""Runs of a network with its compressed layers looked at: what they are given, and what int8 makes of it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..choose.example import LayerCall
from ..nn import SparseLinear
from ..nn.kinds import ProductLayer
from ..pruning.running import run_batch
from .observers import Observer


@dataclasses.dataclass
class Seen:
    """What a layer was given."""

    observer: Observer = dataclasses.field(default_factory=Observer)
    channels: Tensor | None = None  #: absmax of each channel of a linear layer's input
    calls: Counter[LayerCall] = dataclasses.field(default_factory=Counter)  #: of the first batch


@dataclasses.dataclass
class Noise:
    """Squared size of a layer's outputs, and of what int8 adds to them."""

    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, in dB."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


@contextmanager
def _hooks(
    layers: Mapping[str, nn.Module], hook: Callable[[str], Callable[..., None]], *, after: bool
) -> Iterator[None]:
    register = "register_forward_hook" if after else "register_forward_pre_hook"
    handles = [getattr(layer, register)(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def observe(
    model: nn.Module, layers: Mapping[str, ProductLayer], batches: Sequence[Any], told: Callable[[int], None]
) -> dict[str, Seen]:
    """Run all batches; what each layer was given. Layers that were not called are missing.

    Raises:
        ValueError: a layer was given NaN or Inf.
    """
    seen: dict[str, Seen] = {}
    first = True

    def hook(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
            own = seen.setdefault(name, Seen())
            x = args[0]
            try:
                own.observer.add(x)
            except ValueError as error:
                raise ValueError(f"the input of {name} {error}: calibrate on batches without them") from None
            if isinstance(layer, SparseLinear) and x.numel():
                largest = x.detach().abs().float().reshape(-1, x.shape[-1]).amax(0)
                own.channels = largest if own.channels is None else torch.maximum(own.channels, largest)
            if first:
                own.calls[LayerCall(args, {})] += 1

        return look

    with _hooks(layers, hook, after=False):
        for number, batch in enumerate(batches):
            run_batch(model, batch)
            first = False
            told(number)
    return seen


@torch.no_grad()
def compare(
    model: nn.Module,
    layers: Mapping[str, ProductLayer],
    twins: Mapping[str, ProductLayer],
    batches: Sequence[Any],
) -> dict[str, Noise]:
    """Run batches through the floating network, and what each layer was given through its int8 twin, too."""
    noises = {name: Noise() for name in twins}

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            other = twins[name](*args)
            noises[name].signal += float(output.float().square().sum())
            noises[name].noise += float((other.float() - output.float()).square().sum())

        return look

    with _hooks({name: layers[name] for name in twins}, hook, after=True):
        for batch in batches:
            run_batch(model, batch)
    return noises
