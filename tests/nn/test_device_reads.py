"""Reading the tensors of a layer whose weight is another form on the GPU, and holding them. On the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emulated import Emulator, compressed, randn, sparse_weight
from own_forms import MANY, K, M, check, held_bytes, is_away, new_layer, run
from reference import assert_matches, linear_reference
from sparse24 import SparseLinear
from sparse24.nn import lent

HALF = torch.float16

pytestmark = pytest.mark.usefixtures("on_emulator")


# ---- reading -----------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_compressed_bit_for_bit() -> None:
    layer = new_layer()
    layer.values.data[0, 0] = float("nan")
    layer.values.data[0, 1] = -0.0
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    run(layer, randn(MANY, K))
    for _ in range(2):
        assert is_away(layer)
        state = layer.state_dict()
        assert list(state) == ["values", "bias", "indices"]
        for name, tensor in state.items():
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        assert not is_away(layer)
        del state, tensor
        run(layer, randn(MANY, K))


READS: dict[str, Callable[[SparseLinear], Any]] = {
    "attribute": lambda layer: layer.values,
    "buffer": lambda layer: layer.indices,
    "weight": lambda layer: layer.weight,
    "state_dict": lambda layer: layer.state_dict(),
    "parameters": lambda layer: list(layer.parameters()),
    "buffers": lambda layer: list(layer.named_buffers()),
    "dict": lambda layer: dict(layer._parameters),
    "double star": lambda layer: {**layer._buffers},
    "raw getitem": lambda layer: dict.__getitem__(layer._parameters, "values"),
    "get": lambda layer: layer._parameters.get("values"),
    "copy": lambda layer: layer._parameters.copy(),
    "union": lambda layer: layer._parameters | {},
    "shallow copy of the dict": lambda layer: copy.copy(layer._parameters),
    "equality": lambda layer: layer._parameters == {},
    "operands": lambda layer: layer._operands(),
    "to_dense": lambda layer: layer.to_dense(),
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("read", READS)
def test_every_way_of_reading_gets_plain_tensors(read: str) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    values, indices = (tensor.clone() for tensor in layer._operands()[:2])
    check(layer, weight)
    assert is_away(layer)
    READS[read](layer)
    assert not is_away(layer)
    assert type(layer._parameters) is lent.Lent
    assert list(layer._parameters) == ["values", "bias"]
    assert type(layer.values) is nn.Parameter
    assert torch.equal(layer.values, values)
    assert torch.equal(layer.indices, indices)
    check(layer, weight)
    assert is_away(layer)


def test_what_is_asked_about_names_brings_nothing_back() -> None:
    layer = new_layer()
    run(layer, randn(MANY, K))
    parameters = layer._parameters
    assert "values" in parameters
    assert "weight" not in parameters
    assert len(parameters) == 2
    assert parameters["bias"] is not None
    assert layer.bias is parameters["bias"]
    assert hasattr(layer, "bias")
    with pytest.raises(KeyError):
        parameters["weight"]
    assert is_away(layer)


def test_tensors_read_in_any_mode_are_ordinary_ones() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    contexts: list[Callable[[], Any]] = [
        torch.inference_mode,
        torch.no_grad,
        torch.utils._python_dispatch.TorchDispatchMode,
        torch._subclasses.FakeTensorMode,
        lambda: torch.device("meta"),
    ]
    for context in contexts:
        check(layer, weight)
        assert is_away(layer)
        with context():
            values = layer.values
        assert type(values) is nn.Parameter
        assert not values.is_inference()
        assert values.device.type == "cpu"
        assert torch.equal(torch.ops.sparse24.decompress(values, layer.indices), weight)
        del values
    check(layer, weight)

    def scaled(factor: Tensor) -> Tensor:
        return (factor * layer.values).sum()

    torch.func.grad(scaled)(torch.ones(()).half())
    assert type(layer.values) is nn.Parameter
    assert torch._C._functorch.is_functorch_wrapped_tensor(layer.values) is False
    check(layer, weight)


# ---- handed out --------------------------------------------------------------------------------------


HOLDERS: dict[str, Callable[[SparseLinear], Any]] = {
    "parameter": lambda layer: layer.values,
    "data": lambda layer: layer.values.data,
    "view": lambda layer: layer.values[1:],
    "numpy": lambda layer: layer.values.numpy(),
    "storage": lambda layer: layer.values.untyped_storage(),
    "typed storage": lambda layer: layer.values.storage(),
    "state_dict": lambda layer: layer.state_dict(),
    "indices": lambda layer: layer.indices.detach(),
    "dlpack": lambda layer: torch.utils.dlpack.to_dlpack(layer.values),
    "iterator": lambda layer: _begun(layer.named_parameters()),
    "items": lambda layer: layer._buffers.items(),
    "weak reference": lambda layer: weakref.ref(layer.values),
    "autograd": lambda layer: torch.ones(1, requires_grad=True) * layer.values,
    "optimizer": lambda layer: torch.optim.SGD(layer.parameters()),
}


def _begun(iterator: Iterator[Any]) -> Iterator[Any]:
    next(iterator)
    return iterator


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("when", ["before the first call", "after a blob was made"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_handed_out_is_followed_until_it_is_released(
    holder: str, when: str, emulator: Emulator, compressions: list[Any]
) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    earlier = 0
    if when == "after a blob was made":
        check(layer, weight)
        earlier = 1
    held = HOLDERS[holder](layer)
    launches = emulator.launches()
    for factor in (1, 2, 4):
        if factor > 1:
            layer.values.data.mul_(2)
        check(layer, factor * weight)
        assert not is_away(layer)
        assert (emulator.launches(), len(compressions)) == (launches, earlier)
        assert held is not None
    del held
    gc.collect()
    for _ in range(2):
        check(layer, 4 * weight)
    assert is_away(layer)
    assert held_bytes(layer).canonical == 0
    assert len(compressions) == earlier + 1
    assert emulator.launches() == launches + 2


def test_writes_through_what_was_handed_out_are_followed_call_by_call() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    alias = layer.values.data
    for factor in (2, 4, 8):
        alias.mul_(2)
        check(layer, factor * weight)
    del alias
    check(layer, 8 * weight)
    assert is_away(layer)


def test_a_dict_that_is_held_is_the_modules_own() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    held = layer._parameters  # a plain dict: the tensors stay in it
    check(layer, weight)
    assert not is_away(layer)
    del held
    check(layer, weight)
    assert is_away(layer)
    held = layer._parameters  # one that has the tensors brought back
    check(layer, weight)
    held["values"] = nn.Parameter(2 * held["values"], requires_grad=False)
    check(layer, 2 * weight)
    held.pop("values").data.zero_()
    assert "values" not in layer._parameters
    assert layer._on_device(randn(MANY, K)) is None


def test_functional_call_computes_with_what_it_is_given() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = new_layer()

        def forward(self, x: Tensor) -> Tensor:
            return run(self.layer, x)

    model, weight, x = Wrapped(), sparse_weight(M, K, HALF), randn(MANY, K)
    check(model.layer, weight)
    values, _ = compressed(3 * weight)
    output = torch.func.functional_call(model, {"layer.values": values}, (x,))
    assert_matches(output, linear_reference(x, 3 * weight, model.layer.bias))
    check(model.layer, weight)
    assert is_away(model.layer)
