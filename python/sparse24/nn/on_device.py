"""How a layer's product runs on a GPU, by the forms of its weight that the layer owns there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..ops.cuda.blobs import Derived, Operands
from ..ops.cuda.cusparselt import Stream
from ..ops.cuda.operators import current_stream
from ..ops.cuda.repeats import Done
from ..ops.cuda.weights import Weight
from ..ops.registry import check_devices, under_autocast
from .device_forms import DeviceForms, forms_of
from .lent import is_held

if TYPE_CHECKING:
    from .compressed import CompressedModule


class LayerWeight(Weight):
    """A layer's weight for one call on a stream, and its ``device``."""

    def __init__(self, layer: CompressedModule, like: Operands, device: torch.device, stream: Stream) -> None:
        self.forms = forms_of(layer)
        self.forms.be_on(device)
        self.forms.keeps_dense = self.keeps_dense = layer._keeps_dense
        self.like, self.device = like, device
        self._layer, self._stream = layer, stream
        self._asked = False
        self._derived: Derived | None = None
        self.done: Done | None = None

    def derived(self) -> Derived | None:
        if not self._asked:
            self._derived, self._asked = self.forms.take(self._layer), True
        return self._derived

    def source(self) -> Operands:
        return self.forms.source(self._layer, self._stream)

    def note(self, done: Done) -> None:
        self.done = done

    def read(self, stream: Stream) -> Operands:
        forced = self._asked and self._derived is None  # it would have run on the blob
        return self.forms.read(self._layer, stream, to_stay=not forced)


class Glance(Weight):
    """A layer's weight as it is: looking at it makes, moves and hands out nothing."""

    def __init__(self, layer: CompressedModule) -> None:
        forms = layer.__dict__.get("_forms") or DeviceForms()
        self._layer = layer
        self.keeps_dense = layer._keeps_dense
        with forms.lock:
            self._own = forms.own_of(layer)
            self._derived: Derived = Derived() if self._own is None else forms._derived
            found = forms.found_in(layer)
            values = layer.values if found is None else found[0][0]
            self.like = (values, layer.indices) if found is None else found[0]
            self.device = values.device if found is None else found[1]

    @property
    def is_away(self) -> bool:
        """Whether the canonical form has left the module."""
        return self._own is not None

    def drop_dense(self) -> None:
        """Free the dense copy, if there is one."""
        self._derived.drop_dense()

    def derived(self) -> Derived | None:
        return None if self._own is None and is_held(self._layer.__dict__) else self._derived

    def source(self) -> Operands:
        if self._own is not None:
            operands = self._own.here or self._own.host
            assert operands is not None
            return operands
        return self._layer.values, self._layer.indices

    def read(self, stream: Stream) -> Operands:
        return self.source()


def weight_of(layer: CompressedModule, device: torch.device, stream: Stream) -> LayerWeight | None:
    """The layer's weight for a call; ``None``: it is elsewhere, no plain tensor, or wants gradients."""
    found = forms_of(layer).found_in(layer)
    if found is None or found[1] != device or (found[2] and torch.is_grad_enabled()):
        return None
    return LayerWeight(layer, found[0], device, stream)


def product_of(layer: CompressedModule, input: Tensor) -> Tensor | None:
    """The layer's output by the forms that it owns; ``None``: the operators have to see the canonical form.

    They have to where somebody traces, maps, dispatches, differentiates, or gives what is no plain tensor.
    """
    bias = layer._parameters["bias"]
    wanted = torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad))
    plain = type(input) in (Tensor, nn.Parameter) and type(bias) in (Tensor, nn.Parameter, type(None))
    weight = None
    if (
        plain
        and not wanted
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._is_tracing()
    ):
        stream = current_stream(input)
        weight = weight_of(layer, input.device, stream)
    if weight is None:
        if plain:
            forms_of(layer).note_a_capture(layer, input.device)
        return None
    check_devices(layer._operator, input=input, bias=bias)
    current = torch.cuda.device(input.device) if input.is_cuda else contextlib.nullcontext()
    with current:
        output = _run(layer, input, weight, bias, stream)
        weight.forms.settle(stream)
    done, weight.done = weight.done, None  # it refers to the weight: no circle is left
    if done is not None and done.input is input and output.dtype is input.dtype:
        weight.forms.repeat(layer, done)
    return output


def _run(
    layer: CompressedModule, input: Tensor, weight: LayerWeight, bias: Tensor | None, stream: Stream
) -> Tensor:
    kind = input.device.type
    if not torch.is_autocast_enabled(kind):
        return layer._product_by(weight, input, bias, stream)

    def product(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> Tensor:
        return layer._product_by(weight, x, bias, stream)

    return under_autocast(product, kind, on_gpu=True)(input, *weight.like, bias)
