"""Writing to a layer whose weight is another form on the GPU: no old one ever answers. On the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emulated import compressed, randn, sparse_weight
from own_forms import FEW, MANY, K, M, check, forms, is_away, new_layer, run
from reference import assert_matches, linear_reference
from sparse24 import SparseLinear

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32

pytestmark = pytest.mark.usefixtures("on_emulator")


def _set_data(layer: SparseLinear, new: Tensor) -> None:
    layer.values.data = new


def _set_parameter(layer: SparseLinear, new: Tensor) -> None:
    layer.values = nn.Parameter(new, requires_grad=False)


def _through_a_view(layer: SparseLinear, new: Tensor) -> None:
    layer.values.view(-1)[:] = new.view(-1)


def _through_numpy(layer: SparseLinear, new: Tensor) -> None:
    layer.values.numpy()[:] = new.numpy()


def _through_dlpack(layer: SparseLinear, new: Tensor) -> None:
    torch.from_dlpack(layer.values).copy_(new)


def _in_inference_mode(layer: SparseLinear, new: Tensor) -> None:
    with torch.inference_mode():
        layer.values.copy_(new)


def _foreach(layer: SparseLinear, new: Tensor) -> None:
    torch._foreach_copy_([layer.values], [new])


def _by_an_optimizer(layer: SparseLinear, new: Tensor) -> None:
    layer.values.requires_grad_()
    layer.values.grad = layer.values.detach() - new
    torch.optim.SGD([layer.values], lr=1.0).step()
    layer.values.grad = None
    layer.values.requires_grad_(False)


def _by_load_state_dict(layer: SparseLinear, new: Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "values": new})


def _by_assigning_a_state_dict(layer: SparseLinear, new: Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "values": new}, assign=True)


def _by_set_(layer: SparseLinear, new: Tensor) -> None:
    with torch.no_grad():
        layer.values.set_(new)


def _into_the_dict(layer: SparseLinear, new: Tensor) -> None:
    layer._parameters["values"] = nn.Parameter(new, requires_grad=False)


def _by_swapping_tensors(layer: SparseLinear, new: Tensor) -> None:
    torch.utils.swap_tensors(layer.values, nn.Parameter(new, requires_grad=False))


def _by_update(layer: SparseLinear, new: Tensor) -> None:
    layer._parameters.update(values=nn.Parameter(new, requires_grad=False))


WRITES: dict[str, Callable[[SparseLinear, Tensor], Any]] = {
    "copy_": lambda layer, new: layer.values.copy_(new),
    "data.copy_": lambda layer, new: layer.values.data.copy_(new),
    "detach().copy_": lambda layer, new: layer.values.detach().copy_(new),
    "a storage behind .data": _set_data,
    "a parameter": _set_parameter,
    "the dict": _into_the_dict,
    "update": _by_update,
    "a view": _through_a_view,
    "numpy": _through_numpy,
    "dlpack": _through_dlpack,
    "inference_mode": _in_inference_mode,
    "foreach": _foreach,
    "an optimizer": _by_an_optimizer,
    "load_state_dict": _by_load_state_dict,
    "load_state_dict(assign)": _by_assigning_a_state_dict,
    "set_": _by_set_,
    "swap_tensors": _by_swapping_tensors,
    "the storage": lambda layer, new: layer.values.untyped_storage().copy_(new.untyped_storage()),
    "_fill": lambda layer, new: layer._fill(new, layer.indices, None),
}


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("write", WRITES)
def test_every_write_takes_effect(write: str, tokens: int, compressions: list[Any]) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    for factor in (1, 2, -2):  # exact in every dtype
        if factor != 1:
            WRITES[write](layer, compressed(factor * weight)[0])
        check(layer, factor * weight)
        assert is_away(layer)
        check(layer, factor * weight, tokens)
    assert len(compressions) == 3


def test_another_mask_takes_effect() -> None:
    layer, other = new_layer(), sparse_weight(M, K, HALF, seed=3)
    check(layer, sparse_weight(M, K, HALF))
    values, indices = compressed(other)
    layer.values.data.copy_(values)
    layer.indices.copy_(indices)
    check(layer, other)
    layer.values.expand(2, *values.shape)[1].zero_()
    check(layer, 0 * other)
    layer.reset_parameters()
    check(layer, 0 * other)


def test_a_bias_is_read_at_every_call() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    layer.bias.data.fill_(3)
    check(layer, weight, bias=torch.full((M,), 3.0))
    assert is_away(layer)
    layer.bias = nn.Parameter(torch.full((M,), -1, dtype=HALF), requires_grad=False)
    check(layer, weight, bias=torch.full((M,), -1.0))
    layer.bias = None
    x = randn(MANY, K)
    assert_matches(run(layer, x), linear_reference(x, weight))


@pytest.mark.parametrize("swap", [False, True])
def test_conversions(swap: bool) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        check(layer, weight)
        layer.to(BF16)
        check(layer, weight.to(BF16))
        assert is_away(layer)
        layer.to("meta")
        assert layer.values.is_meta
        assert forms(layer)._derived.bytes() == 0  # freed with the device
        layer.to_empty(device="cpu")
        values, indices = compressed(weight.to(BF16))
        layer.load_state_dict({"values": values, "indices": indices, "bias": randn(M, dtype=BF16)})
        check(layer, weight.to(BF16))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def test_a_layer_that_was_made_in_inference_mode() -> None:
    weight = sparse_weight(M, K, HALF)
    with torch.inference_mode():
        layer = new_layer()
        check(layer, weight)
        layer.values.mul_(2)  # which torch does not count
        check(layer, 2 * weight)
    check(layer, 2 * weight)
    layer.values.mul_(2)
    check(layer, 4 * weight)
