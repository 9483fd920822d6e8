"""Whole networks pruned in one shot: what becomes of them, and that nothing is left between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from reference import relative_error
from sparse24.calibrated import oneshot
from sparse24.calibrated.blocks import find_blocks, trace

from .networks import NETWORKS, Residual, Roundabout, Stack, correlated, encoder, network, run

pytestmark = pytest.mark.usefixtures("seeded")


def error_of(name: str, **options: Any) -> float:
    torch.manual_seed(3)
    model, batches = network(name)
    fresh = NETWORKS[name][1]()
    model.eval()
    dense = run(model, fresh)
    report = oneshot(model, batches, **options)
    assert report.done
    return relative_error(run(model, fresh), dense)


@pytest.mark.parametrize("name", NETWORKS)
def test_calibration_beats_magnitude(name: str) -> None:
    plain = error_of(name, method="magnitude", refit=0, reconstruct=None)
    refitted = error_of(name, method="sparsegpt", reconstruct=None)
    assert refitted < plain
    assert error_of(name, method="sparsegpt", steps=60) < plain


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "ria", "admm", "magnitude"])
def test_the_weights_are_those_that_a_sparsifier_prunes(name: str, method: str) -> None:
    model, batches = network(name)
    twin = copy.deepcopy(model)
    report = oneshot(model, batches, method=method, reconstruct=None)
    done = {row.name for row in report.done}
    unreached = {row.name for row in report.left if "no calibration batch" in row.reason}
    pruned = {row.name for row in sparse24.Sparsifier(twin).prune().done}
    assert done | unreached == {name if name.endswith("weight") else f"{name}.weight" for name in pruned}
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in done:
            assert sparse24.is_sparse24(parameter.detach())
            assert not torch.signbit(parameter[parameter == 0]).any()
    assert sparse24.to_sparse(model, when="always").done


def test_what_no_batch_reaches_is_named_and_dense() -> None:
    model, batches = network("stack")
    before = model.unused.weight.detach().clone()
    report = {row.name: row for row in oneshot(model, batches, reconstruct=None)}
    assert not report["unused.weight"].done
    assert "no calibration batch reached it" in report["unused.weight"].reason
    assert torch.equal(model.unused.weight, before)
    assert report["shared.weight"].done
    assert not report["head.weight"].done


def test_the_model_is_left_as_it_was_used() -> None:
    model, batches = network("images")
    model.train()
    model.stem[1].eval()
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    running = model.stem[1].running_mean.clone()
    random = torch.get_rng_state()
    oneshot(model, batches, steps=5)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.stem[1].training
    assert torch.equal(model.stem[1].running_mean, running)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_training_a_block_never_makes_it_worse() -> None:
    model, batches = network("stack")
    report = oneshot(model, batches, method="magnitude", refit=0, steps=40)
    trained = [row.reason for row in report.done if "trained" in row.reason]
    assert trained
    for reason in trained:
        errors = reason.split("of the block")[1].split(", trained")
        before, after = (float(part.split()[-1]) for part in errors)
        assert after < before


@pytest.mark.parametrize("how", ["nan", "interrupt"])
def test_a_failure_leaves_every_weight_as_it_was(how: str) -> None:
    model, batches = network("stack")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if how == "interrupt" and len(said) == 3:
            raise KeyboardInterrupt

    if how == "nan":
        batches[1]["x"][0, 0, 0] = torch.nan
    error = ValueError if how == "nan" else KeyboardInterrupt
    with pytest.raises(error):
        oneshot(model, batches, reconstruct=None, progress=stop)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"batches": []}, ValueError, "needs at least one batch of inputs"),
        ({"method": "obs"}, ValueError, "method 'obs' is not one of sparsegpt, admm, magnitude"),
        ({"reconstruct": "layer"}, ValueError, "must be 'component', 'network' or None"),
        ({"refit": -1}, ValueError, "refit must be 0 or more"),
        ({"steps": 0}, ValueError, "steps 1 or more"),
        ({"blocks": ["block"]}, ValueError, "no block called 'block'"),
        ({"select": ["nothing*"]}, ValueError, "matches no layer"),
        ({"model": 3}, TypeError, "needs a torch.nn.Module, not int"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_and_change_nothing(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    model, batches = network("stack")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(error, match=text):
        oneshot(**{"model": model, "batches": batches, **change})
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_blocks_are_found_by_structure() -> None:
    def blocks(model: nn.Module) -> list[str]:
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.MultiheadAttention)]
        return find_blocks(model, layers)

    assert blocks(Stack()) == ["embed", "shared", "unused", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert blocks(encoder()) == ["layers.0", "layers.1"]
    assert blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))) == ["0", "2"]
    assert blocks(Residual(8)) == [""]
    stack = Stack()  # of a list that holds one layer to prune, its part is the block
    assert find_blocks(stack, [stack.blocks[1].up]) == ["blocks.1"]


def test_blocks_that_follow_each_other_are_fed_directly() -> None:
    model, batches = network("stack")
    parts = {
        name: model.get_submodule(name) for name in ("embed", "shared", "blocks.0", "blocks.1", "blocks.2")
    }
    seen = trace(model, parts, batches)
    assert seen.follows == {"blocks.1": "blocks.0", "blocks.2": "blocks.1"}
    assert seen.times["shared"] == 2
    assert seen.order == ["embed", "shared", "blocks.0", "blocks.1", "blocks.2"]


def test_blocks_that_are_not_called_give_way_to_what_is() -> None:
    model = Roundabout()
    batches = [(correlated(8, 16), i == 5) for i in range(8)]
    report = oneshot(model, batches, select=["*"], steps=3)
    assert [row.name for row in report.done] == [
        "blocks.0.a.weight", "blocks.1.inner.weight", "blocks.2.weight", "late.weight",
    ]  # fmt: skip
    assert all(sparse24.is_sparse24(p.detach()) for p in model.parameters() if p.dim() == 2)


def test_blocks_of_16_bits_learn_as_those_of_32() -> None:
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(3)
        model, batches = network("stack")
        model.to(dtype)
        batches = [{"x": batch["x"].to(dtype)} for batch in batches]
        report = oneshot(model, batches, method="magnitude", refit=0, steps=60)
        assert all(p.dtype == dtype for p in model.parameters())
        texts = [row.reason.split("trained ")[1] for row in report.done if "trained" in row.reason]
        errors[dtype] = sum(map(float, texts)) / len(texts)
    assert errors[torch.bfloat16] < 1.2 * errors[torch.float32]


def test_blocks_can_be_trained_under_autocast() -> None:
    model, batches = network("stack")
    seen: list[torch.dtype | None] = []

    def look(*_: Any) -> None:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    handle = model.blocks[1].register_forward_pre_hook(look)
    report = oneshot(model, batches, method="magnitude", steps=8, autocast=torch.bfloat16)
    handle.remove()
    assert torch.bfloat16 in seen
    assert None in seen  # masks, and what judges, are as exact as before
    assert any("trained" in row.reason for row in report.done)
