"""Layers beside the dense ones that they were made from, and every way of writing to their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reference import assert_matches, conv2d_reference, linear_reference, prune_layers
from sparse24 import SparseConv2d, SparseLinear
from sparse24.nn.compressed import CompressedModule


class Case(NamedTuple):
    """A layer, the dense one that it was made from, and inputs that take all of its kernels."""

    layer: CompressedModule
    dense: nn.Linear | nn.Conv2d
    inputs: list[Tensor]

    def expected(self, x: Tensor, factor: float = 1) -> Tensor:
        """The output for ``factor`` times the weight that the layer began with."""
        weight, bias = factor * self.dense.weight.detach(), self.dense.bias
        if isinstance(self.dense, nn.Linear):
            return linear_reference(x, weight, bias)
        return conv2d_reference(x, weight, bias, padding=self.dense.padding, groups=self.dense.groups)

    def check(self, factor: float = 1, run: Callable[[Tensor], Tensor] | None = None) -> None:
        for x in self.inputs:
            output = self.layer(x) if run is None else run(x)
            assert_matches(output, self.expected(x, factor))


def linear_case(dtype: torch.dtype = torch.float32) -> Case:
    dense = prune_layers(nn.Linear(84, 40)).to(dtype)
    inputs = [torch.randn(*lead, 84).to(dtype) for lead in ((1,), (3,), (2, 50))]
    return Case(SparseLinear.from_dense(dense), dense, inputs)


def conv_case(dtype: torch.dtype = torch.float32, groups: int = 1) -> Case:
    dense = prune_layers(nn.Conv2d(12, 16, 3, padding=1, groups=groups)).to(dtype)
    x = torch.randn(2, 12, 7, 6).to(dtype)
    inputs = [x[:1], x, x.contiguous(memory_format=torch.channels_last)]
    return Case(SparseConv2d.from_dense(dense), dense, inputs)


CASES: dict[str, Callable[..., Case]] = {
    "linear": linear_case,
    "conv": conv_case,
    "grouped conv": lambda dtype=torch.float32: conv_case(dtype, groups=2),
}


def _by_numpy(layer: CompressedModule, factor: float) -> None:
    array = layer.values.numpy()
    np.multiply(array, factor, out=array)


def _new_storage(layer: CompressedModule, factor: float) -> None:
    layer.values.data = factor * layer.values.data


def _set_(layer: CompressedModule, factor: float) -> None:
    with torch.no_grad():
        layer.values.set_(factor * layer.values.detach())


def _in_inference_mode(layer: CompressedModule, factor: float) -> None:
    with torch.inference_mode():
        layer.values.mul_(factor)


def _behind_the_version(layer: CompressedModule, factor: float) -> None:
    with torch.autograd._unsafe_preserve_version_counter(layer.values):
        layer.values.mul_(factor)


def _parameter(layer: CompressedModule, factor: float) -> None:
    layer.values = nn.Parameter(factor * layer.values.detach(), requires_grad=False)


def _load(layer: CompressedModule, factor: float, assign: bool = False) -> None:
    state = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    state["values"] *= factor
    layer.load_state_dict(state, assign=assign)


def _storage(layer: CompressedModule, factor: float) -> None:
    layer.values.untyped_storage().copy_((factor * layer.values.detach()).untyped_storage())


def _weight(layer: CompressedModule, factor: float) -> None:
    layer.weight = factor * layer.weight.dense()


#: Writes that leave the parameter the same object.
IN_PLACE: dict[str, Callable[[CompressedModule, float], object]] = {
    "in place": lambda layer, factor: layer.values.mul_(factor),
    ".data": lambda layer, factor: layer.values.data.mul_(factor),
    "a view": lambda layer, factor: layer.values.view(-1).mul_(factor),
    "numpy": _by_numpy,
    "dlpack": lambda layer, factor: torch.from_dlpack(layer.values).mul_(factor),
    "a new storage behind .data": _new_storage,
    "set_": _set_,
    "the storage": _storage,
    "inference mode": _in_inference_mode,
    "behind the version counter": _behind_the_version,
    "load_state_dict": _load,
    "weight": _weight,
}
WRITES = IN_PLACE | {
    "a parameter": _parameter,
    "load_state_dict(assign)": lambda layer, factor: _load(layer, factor, assign=True),
}
