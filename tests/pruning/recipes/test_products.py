"""Training by sparse products: gradients of the masked weights, whatever is around a layer."""

from __future__ import annotations

import copy
import gc
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sparse24
from emulated import EmulatedStream, Emulator
from reference import TOLERANCE, relative_error
from sparse24 import SparseLinear, Sparsifier
from sparse24.ops.cuda import operators as cuda_ops
from sparse24.pruning import recipes
from sparse24.pruning.recipes import products

from ..networks import same_state
from .masked import network, pruned, twins

pytestmark = pytest.mark.usefixtures("seeded")


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("pattern", ["2:4", "transposable"])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (40, 16), (2, 3, 16)])
def test_outputs_and_gradients_are_those_of_the_masked_weights(pattern: str, shape: tuple[int, ...]) -> None:
    dense, model, _ = twins(pattern)
    x = torch.randn(shape)
    assert relative_error(model(x), dense.double()(x.double())) <= TOLERANCE[torch.float32]
    for found, expected in zip(gradients(model, x), gradients(dense, x.double()), strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found, expected) <= 4 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("pattern", ["2:4", "transposable"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_and_autocast(pattern: str, dtype: torch.dtype) -> None:
    dense, model, _ = twins(pattern)
    x = torch.randn(40, 16)
    reference = gradients(copy.deepcopy(dense).double(), x.double())
    with torch.autocast("cpu", dtype):
        assert model[0](x).dtype == dtype
        found = gradients(model, x)
        plain = gradients(dense, x)
    for ours, theirs, expected in zip(found, plain, reference, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, expected) <= 1.5 * relative_error(theirs, expected) + 2e-3
    lower = copy.deepcopy(dense).to(dtype)
    _, sparsifier = pruned(pattern, lower)
    recipes.sparse_products(sparsifier, when="always")
    assert lower[0](x.to(dtype)).grad_fn.name().startswith("Product")
    for ours, expected in zip(gradients(lower, x.to(dtype)), reference, strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, expected) < 8 * TOLERANCE[dtype]


def sparse_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    linear = products._linear

    def counted(input: Tensor, values: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(values.shape))
        return linear(input, values, *rest)

    monkeypatch.setattr(products, "_linear", counted)
    return seen


def test_products_are_sparse_forward_and_backward_where_the_mask_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = sparse_calls(monkeypatch)
    for pattern, backward in (("2:4", []), ("transposable", [(32, 12), (16, 16)])):
        _, model, _ = twins(pattern)
        gradients(model, torch.randn(6, 16))
        assert seen == [(32, 8), (24, 16), *backward]
        seen.clear()
        model.eval()(torch.randn(6, 16))
        assert seen == []


def test_a_frozen_weight_and_a_first_layer_cost_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = twins("transposable")
    model[0].requires_grad_(False)
    seen = sparse_calls(monkeypatch)
    model(torch.randn(6, 16)).sum().backward()
    assert seen == [(32, 8), (24, 16)]
    assert model[0].weight.grad is None


@pytest.mark.parametrize("pattern", ["2:4", "transposable"])
@pytest.mark.parametrize("writes", ["a fused step", "through .data"])
def test_every_write_to_the_weight_is_followed(pattern: str, writes: str) -> None:
    dense, model, sparsifier = twins(pattern)
    steps = []
    for each in (dense, model):
        follower = sparsifier if each is model else pruned(pattern, each)[1]
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.01, fused=True)
        follower.attach(optimizer)
        steps.append((each, optimizer, follower))
    for step in range(4):
        x = torch.randn(12, 16, generator=torch.Generator().manual_seed(step))
        for each, optimizer, _ in steps:
            if writes == "through .data":
                each[0].weight.data.mul_(1.5)
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    sparsifier.verify()
    for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_new_masks_are_followed_and_what_they_prune_does_not_count() -> None:
    dense, model, sparsifier = twins("2:4")
    model(torch.randn(3, 16))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.randn_like(layer.weight))
    x = torch.randn(7, 16)
    masks = sparsifier.masks
    by_hand = torch.tanh(F.linear(x, model[0].weight * masks["0.weight"], model[0].bias))
    torch.testing.assert_close(torch.tanh(model[0](x)), by_hand)  # before a step has masked the weight
    sparsifier.prune()
    torch.testing.assert_close(model(x), copy.deepcopy(model).eval()(x))
    sparsifier.load_state_dict({"pattern": "2:4", "masks": {}})
    with torch.no_grad():
        model[0].weight.fill_(1)
    torch.testing.assert_close(model[0](x), F.linear(x, model[0].weight, model[0].bias))
    del dense


def test_groups_that_keep_less_than_two() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:, :6] = 0
    sparsifier = Sparsifier(model, select=["0", "2"])
    sparsifier.prune(from_zeros=True)
    recipes.sparse_products(sparsifier, when="always")
    with torch.no_grad():
        model[0].weight.fill_(1)  # as an optimizer without hooks would leave it
    x = torch.randn(5, 16)
    expected = F.linear(x, sparsifier.masks["0.weight"].float(), model[0].bias)
    torch.testing.assert_close(model[0](x), expected)


@pytest.mark.parametrize("attach_first", [False, True])
def test_the_transposable_recipe_trains_by_sparse_products(
    attach_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for sparse in (False, True):
        torch.manual_seed(3)
        model = network()
        recipe = recipes.transposable(model, refresh=2, dense_from=6, decay=0.01, select=["0", "2"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if sparse and not attach_first:
            recipes.sparse_products(recipe, when="always")
        recipe.attach(optimizer)
        if sparse and attach_first:
            recipes.sparse_products(recipe, when="always")
        seen = sparse_calls(monkeypatch)
        torch.manual_seed(5)
        counts = []
        for step in range(8):
            x = torch.randn(12, 16, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            counts.append(len(seen))
            seen.clear()
        assert counts == ([3] * 6 + [0, 0] if sparse else [0] * 8)
        if sparse:
            recipes.dense_products(recipe)
        assert type(model[0]) is nn.Linear
        states.append(model)
    for ours, theirs in zip(*(m.parameters() for m in states), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_checkpointing_recomputes_by_the_same_products() -> None:
    dense, model, _ = twins("transposable")
    x = torch.randn(9, 16)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=False)

    for found, expected in zip(gradients(Checkpointed(), x), gradients(dense, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_in_distributed_data_parallel(tmp_path: Path) -> None:
    dense, model, _ = twins("transposable")
    x = torch.randn(9, 16)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = gradients(nn.parallel.DistributedDataParallel(model), x)
    finally:
        dist.destroy_process_group()
    for ours, expected in zip(found, gradients(dense, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_compiled_exported_and_transformed_layers_compute_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, model, _ = twins("transposable")
    x = torch.randn(9, 16)
    seen = sparse_calls(monkeypatch)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for found, expected in zip(gradients(compiled, x), gradients(dense, x), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), dense(x))
    torch.testing.assert_close(torch.func.vmap(model)(x), dense(x))
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), dense(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), dense(x))
    assert seen == []


def test_copies_pickles_and_weights_of_others_compute_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, model, sparsifier = twins("2:4")
    x = torch.randn(9, 16)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    seen = sparse_calls(monkeypatch)
    for other in (copy.deepcopy(model), torch.load(saved, weights_only=False)):
        with torch.no_grad():
            other[0].weight.fill_(1)
        torch.testing.assert_close(other[0](x), F.linear(x, other[0].weight, other[0].bias))
    full = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(model, full, (x,)), torch.func.functional_call(dense, full, (x,))
    )
    assert seen == []
    assert list(model.state_dict()) == list(dense.state_dict())
    assert same_state(model, dense)
    del sparsifier  # nobody is left who would know the masks
    gc.collect()
    torch.testing.assert_close(model(x), dense(x))
    assert seen == []


def test_what_comes_after_training_takes_the_layers_as_what_they_are() -> None:
    dense, model, sparsifier = twins("2:4")
    again = Sparsifier(model)
    assert [row.reason for row in again.report()] == [row.reason for row in Sparsifier(dense).report()]
    report = sparse24.to_sparse(model.eval(), when="always")
    assert [row.done for row in report] == [True, True, False]
    assert type(model[0]) is SparseLinear
    x = torch.randn(9, 16)
    torch.testing.assert_close(model(x), dense(x))
    del sparsifier


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_the_products_are_those_of_its_backend(
    dtype: torch.dtype, emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the emulator, through what is registered for a GPU."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 128)).to(dtype)
    sparsifier = Sparsifier(model, pattern="transposable", select=["*"])
    sparsifier.prune()
    reference = copy.deepcopy(model).double()
    recipes.sparse_products(sparsifier, when="always")
    monkeypatch.setattr(products, "_linear", lambda *args: cuda_ops.KERNELS["linear"](*args, stream=stream))
    x = torch.randn(32, 64).to(dtype)
    for found, expected in zip(gradients(model, x), gradients(reference, x.double()), strict=True):
        assert relative_error(found, expected) < 8 * TOLERANCE[dtype]
    assert emulator.launches() == 4
    with torch.no_grad():
        model[0].weight.mul_(2)
        reference[0].weight.mul_(2)
    assert relative_error(model(x), reference(x.double())) < 8 * TOLERANCE[dtype]
    assert emulator.launches() == 6
    del model, found
    gc.collect()
