"""No old weight ever answers: the next call follows every way of writing to a weight, or it is refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reference import assert_matches
from sparse24 import SparseConv2d, SparseLinear, to_sparse

from .layers import assert_same_state, exact_state, pruned_conv, pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")

Layer = nn.Linear | SparseLinear
Write = Callable[[Layer], Any]


def kept(layer: Layer) -> Tensor:
    """What a sparse layer keeps, or the dense weight: halving either is the same write."""
    return layer.values if isinstance(layer, SparseLinear) else layer.weight


def _slice(layer: Layer) -> None:
    layer.weight[2:4] *= 3


def _item(layer: Layer) -> None:
    layer.weight[0, :4] = 0


def _data_assigned(layer: Layer) -> None:
    layer.weight.data = layer.weight.data * 2


def _assigned(layer: Layer) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def _foreach(layer: Layer) -> None:
    torch._foreach_mul_([layer.weight, layer.bias], 2)


def _optimizer(layer: Layer) -> None:
    kept(layer).requires_grad_()
    kept(layer).grad = torch.ones_like(kept(layer)) * kept(layer).detach()  # zeros stay zeros
    torch.optim.SGD([kept(layer)], lr=0.5).step()
    kept(layer).requires_grad_(False)


def _numpy(layer: Layer) -> None:
    kept(layer).detach().numpy()[:] *= 2


def _new_storage(layer: Layer) -> None:
    kept(layer).data = kept(layer).data * 2


def _inference(layer: Layer) -> None:
    with torch.inference_mode():
        layer.load_state_dict({key: tensor * 2 if tensor.is_floating_point() else tensor
                               for key, tensor in layer.state_dict().items()})  # fmt: skip


def _assign_state(layer: Layer) -> None:
    state = {key: t.clone() * 2 if t.is_floating_point() else t for key, t in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def _dlpack(layer: Layer) -> None:
    torch.from_dlpack(kept(layer).detach()).mul_(2)


def _swap(layer: Layer) -> None:
    torch.utils.swap_tensors(kept(layer), nn.Parameter(kept(layer).detach() * 2, requires_grad=False))


#: Every write keeps 2:4, so a sparse layer does what the dense one does.
WRITES: dict[str, Write] = {
    "weight.mul_": lambda layer: layer.weight.mul_(2),
    "weight.data.mul_": lambda layer: layer.weight.data.mul_(2),
    "weight.data =": _data_assigned,
    "weight.data.copy_": lambda layer: layer.weight.data.copy_(layer.weight.detach() * 2),
    "weight =": _assigned,
    "weight[i:j] *=": _slice,
    "weight[i, j:k] =": _item,
    "weight[i].zero_": lambda layer: layer.weight[1].zero_(),
    "weight.view": lambda layer: layer.weight.view(-1)[:8].zero_(),
    "weight.t": lambda layer: layer.weight.t().mul_(2),
    "weight.unbind": lambda layer: layer.weight.unbind(0)[3].zero_(),
    "weight.split": lambda layer: layer.weight.split(4, 1)[1].mul_(3),
    "apply_": lambda layer: layer.weight.data.apply_(lambda number: 2 * number),
    "map_": lambda layer: layer.weight.data.map_(layer.weight.detach() + 0, lambda mine, other: mine + other),
    "out=": lambda layer: torch.mul(layer.weight, 2, out=layer.weight),
    "foreach": _foreach,
    "relu_": lambda layer: F.relu(layer.weight, inplace=True),
    "init.zeros_": lambda layer: nn.init.zeros_(layer.weight),
    "bias.mul_": lambda layer: layer.bias.mul_(2),
    "bias.data =": lambda layer: setattr(layer.bias, "data", layer.bias.data * 2),
    "values.mul_": lambda layer: kept(layer).mul_(2),
    "values.data.mul_": lambda layer: kept(layer).data.mul_(2),
    "values.data.copy_": lambda layer: kept(layer).data.copy_(kept(layer).detach() * 2),
    "values.data =": _new_storage,
    "values foreach": lambda layer: torch._foreach_mul_([kept(layer).data], 2),
    "values through numpy": _numpy,
    "values through dlpack": _dlpack,
    "values by an optimizer": _optimizer,
    "swap_tensors": _swap,
    "load_state_dict": _inference,
    "load_state_dict, assign": _assign_state,
}


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("how", list(WRITES))
def test_a_write_that_keeps_24_takes_effect(how: str, tokens: int) -> None:
    dense = pruned_linear(22, 9)
    layer = SparseLinear.from_dense(dense)
    x = torch.randn(tokens, 22)
    with torch.no_grad():
        before = layer(x).clone()
        WRITES[how](dense)
        WRITES[how](layer)
        assert_matches(layer(x), dense.double()(x.double()))
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer.weight.dense(), dense.float().weight)


def _lora(layer: SparseLinear) -> None:
    layer.weight.data += torch.ones(9, 22)


def _lora_assigned(layer: SparseLinear) -> None:
    layer.weight.data = layer.weight.data + torch.ones(9, 22)


def _functional_call(layer: SparseLinear) -> None:
    functional_call(layer, {"weight": layer.weight.dense() * 2}, (torch.ones(1, 22),))


REFUSED: dict[str, Callable[[SparseLinear], Any]] = {
    "a LoRA merge": _lora,
    "a LoRA merge, assigned": _lora_assigned,
    "init.kaiming_uniform_": lambda layer: nn.init.kaiming_uniform_(layer.weight),
    "weight.add_": lambda layer: layer.weight.add_(1),
    "weight[0] =": lambda layer: layer.weight.__setitem__(0, 1.0),
    "a view": lambda layer: layer.weight.view(3, 66)[1].fill_(1),
    "foreach": lambda layer: torch._foreach_add_([layer.bias, layer.weight], 1),
    "weight =": lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(9, 22))),
    "apply_": lambda layer: layer.weight.apply_(lambda number: number + 1),
    "map_": lambda layer: layer.weight.map_(torch.ones(9, 22), lambda mine, other: mine + other),
    "a gradient": lambda layer: setattr(layer.weight, "grad", torch.ones(9, 22)),
    "functional_call": _functional_call,
    "another shape": lambda layer: setattr(layer, "weight", torch.zeros(9, 20)),
}


@pytest.mark.parametrize("how", list(REFUSED))
def test_a_write_that_does_not_is_refused_and_changes_nothing(how: str) -> None:
    layer = SparseLinear.from_dense(pruned_linear(22, 9))
    x = torch.randn(3, 22)
    state, before = exact_state(layer), layer(x)
    with torch.no_grad(), pytest.raises(ValueError, match="to_dense"):
        REFUSED[how](layer)
    if how != "foreach":  # which had changed the bias, as it does of dense layers when it fails later
        assert_same_state(layer, state)
        assert torch.equal(layer(x), before)
    assert torch.equal(layer.values, state["values"])


@pytest.mark.parametrize("name", ["values", "indices"])
def test_values_and_indices_of_another_shape_are_refused(name: str) -> None:
    layer = SparseLinear.from_dense(pruned_linear(22, 9))
    state = exact_state(layer)
    other = getattr(layer, name)[:-1].clone()
    with pytest.raises(ValueError, match=rf"{name} of this SparseLinear are .* not \(8, "):
        setattr(layer, name, nn.Parameter(other) if name == "values" else other)
    assert_same_state(layer, state)


def test_a_staging_buffer_that_is_assigned_again_and_again() -> None:
    """Offloading: one buffer, other numbers at every call."""
    layer = SparseLinear.from_dense(pruned_linear(64, 16))
    x = torch.randn(2, 64)
    staging = torch.empty_like(layer.values)
    for seed in range(4):
        staging.copy_(torch.randn(staging.shape, generator=torch.Generator().manual_seed(seed)))
        layer.values.data = staging
        assert_matches(layer(x), F.linear(x.double(), layer.weight.dense().double(), layer.bias.double()))


def test_a_fused_batch_norm_is_in_the_copy_and_not_in_the_original() -> None:
    conv = pruned_conv(in_channels=8, out_channels=6, kernel_size=3, bias=False).eval()
    sparse = SparseConv2d.from_dense(conv)
    norm = nn.BatchNorm2d(6).eval()
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 7, 7)
    fused = fuse_conv_bn_eval(sparse, norm)
    assert type(fused) is SparseConv2d
    with torch.no_grad():
        assert torch.allclose(fused(x), norm(conv(x)), atol=1e-5)
        assert torch.allclose(sparse(x), conv(x), atol=1e-6)


def test_swapping_on_conversion_works_after_a_call() -> None:
    model = nn.Sequential(pruned_linear(64, 32), nn.ReLU(), pruned_linear(32, 64))
    to_sparse(model, when="always")
    x = torch.randn(4, 64)
    expected = model(x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.bfloat16)
        output = model(x.bfloat16())
        model.float()
        assert torch.allclose(model(x), expected, atol=0.05)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert torch.allclose(output.float(), expected, atol=0.05)


def test_functional_call_uses_what_it_is_given() -> None:
    layer = SparseLinear.from_dense(pruned_linear(22, 9))
    x = torch.randn(3, 22)
    doubled = {"values": layer.values.detach() * 2, "bias": layer.bias.detach() * 2}
    assert torch.allclose(functional_call(layer, doubled, (x,)), 2 * layer(x), atol=1e-6)


def test_a_broadcast_reaches_the_layer() -> None:
    layer = SparseLinear.from_dense(pruned_linear(16, 8))
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with torch.no_grad():
            before = layer.weight.dense()
            dist.broadcast(layer.weight, 0)  # of itself: the same numbers, by the way of every collective
            assert torch.equal(layer.weight.dense(), before)
            dist.broadcast(layer.values, 0)
    finally:
        dist.destroy_process_group()


def test_a_view_of_a_weight_follows_the_layer() -> None:
    layer = SparseLinear.from_dense(pruned_linear(22, 9))
    row = layer.weight[2]
    with torch.no_grad():
        layer.values.mul_(3)
    assert torch.equal(row + 0, layer.weight.dense()[2])


def test_writes_from_another_thread_are_seen_by_the_next_call() -> None:
    layer = SparseLinear.from_dense(pruned_linear(256, 128))
    x = torch.randn(8, 256)
    with torch.no_grad():
        unit = layer(x) - layer.bias
        stop = threading.Event()
        wrong: list[int] = []

        def call() -> None:
            while not stop.is_set():
                ratio = float((layer(x) - layer.bias).norm() / unit.norm())
                if not any(abs(ratio - good) < 1e-3 for good in (1, 2, 4)):
                    wrong.append(1)  # a call may meet a write half-way, but no old weight stays

        callers = [threading.Thread(target=call) for _ in range(2)]
        for thread in callers:
            thread.start()
        for factor in (2, 2):
            layer.values.data.mul_(factor)
            ratio = float((layer(x) - layer.bias).norm() / unit.norm())
            assert ratio == pytest.approx({True: 2, False: 4}[ratio < 3], rel=1e-3)
        stop.set()
        for thread in callers:
            thread.join()
        assert torch.allclose(layer(x) - layer.bias, 4 * unit, atol=1e-3)


def test_values_that_want_gradients_train() -> None:
    layer = SparseLinear.from_dense(pruned_linear(16, 4)).requires_grad_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    x, target = torch.randn(64, 16), torch.randn(64, 4)
    start = F.mse_loss(layer(x), target).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert F.mse_loss(copy.deepcopy(layer)(x), target).item() < 0.9 * start
