"""Several models, optimizers and lifetimes under the one class ASP."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor

from sparse24 import is_sparse24, magnitude_mask
from sparse24.pruning.asp import ASP

from .networks import network, same_state, sgd, train


def test_several_models_in_one_process() -> None:
    teacher, student = network(0), network(1)
    optimizers = [sgd(teacher), sgd(student)]
    ASP.init_model_for_pruning(teacher, verbosity=0)
    ASP.init_model_for_pruning(student, "m4n1_1d", verbosity=0)
    for optimizer in optimizers:
        ASP.init_optimizer_for_pruning(optimizer)
    ASP.compute_sparse_masks()
    for model, optimizer in zip((teacher, student), optimizers, strict=True):
        assert len(optimizer._optimizer_step_post_hooks) == 1
        train(model, optimizer)
        assert is_sparse24(model[3].weight)
    assert ASP.is_sparsity_enabled(teacher)
    with pytest.raises(ValueError, match=r"2 models were initialised: say which one with model="):
        ASP.is_sparsity_enabled()
    ASP.prune_trained_model(third := network(2), sgd(third))
    assert is_sparse24(third[3].weight)
    for model in (teacher, student, third):
        ASP.release(model)
    with pytest.raises(ValueError, match="no such model"):
        ASP.release(teacher)


def test_an_optimizer_that_holds_copies_goes_to_the_latest_model() -> None:
    first, second = network(), network()
    ASP.prune_trained_model(first, sgd(first))
    kept = sgd(first)
    ASP.init_optimizer_for_pruning(kept)
    ASP.init_model_for_pruning(second, verbosity=0)
    masters = sgd(copy.deepcopy(second))
    ASP.init_optimizer_for_pruning(masters)
    ASP.compute_sparse_masks()
    with torch.no_grad():
        second[3].weight.fill_(1)
    masters.step()
    assert is_sparse24(second[3].weight)
    with pytest.raises(ValueError, match="no model for this optimizer"):
        ASP.init_optimizer_for_pruning(sgd(network()))


def test_no_model_is_kept_alive() -> None:
    model = network()
    optimizer = sgd(model)
    ASP.prune_trained_model(model, optimizer)
    alive = weakref.ref(model)
    del model
    assert alive() is None
    assert not ASP._sessions
    with pytest.raises(ValueError, match="is gone: keep a reference"):
        optimizer.step()


def test_calls_out_of_order() -> None:
    model = network()
    with pytest.raises(TypeError, match="Optimizer, not Sequential"):
        ASP.init_optimizer_for_pruning(model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Optimizer, not Sequential"):
        ASP.prune_trained_model(model, model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"call ASP.init_model_for_pruning"):
        ASP.init_optimizer_for_pruning(sgd(model))
    for call in (ASP.compute_sparse_masks, ASP.restore_pruned_weights, ASP.is_sparsity_enabled, ASP.report):
        with pytest.raises(ValueError, match=r"call ASP.init_model_for_pruning"):
            call()
    ASP.init_model_for_pruning(model, verbosity=0)
    with pytest.raises(ValueError, match=r"initialised for pruning already; ASP.release"):
        ASP.prune_trained_model(torch.compile(model, backend="eager"), sgd(model))
    ASP.restore_pruned_weights()
    ASP.compute_sparse_masks()
    for call in (ASP.compute_sparse_masks, ASP.restore_pruned_weights):
        with pytest.raises(ValueError, match="allow_recompute_mask=True"):
            call()


def test_masks_may_be_computed_again_and_taken_back() -> None:
    model = network()
    dense = copy.deepcopy(model)
    calls = []

    def alternate(weight: Tensor) -> Tensor:
        calls.append(weight.clone())
        return weight > 0 if len(calls) <= 2 else weight < 0

    ASP.init_model_for_pruning(model, alternate, verbosity=0, allow_recompute_mask=True)
    optimizer = sgd(model)
    ASP.init_optimizer_for_pruning(optimizer)
    ASP.compute_sparse_masks()
    assert (model[3].weight >= 0).all()
    ASP.compute_sparse_masks()
    assert all(torch.equal(calls[i], calls[i + 2]) for i in range(2))
    assert (model[3].weight <= 0).all()
    state = ASP.state_dict(model)
    state["3.__weight_mma_mask"] = state["3.__weight_mma_mask"].float()  # a function's masks are free
    ASP.load_state_dict(model, state)
    ASP.restore_pruned_weights()
    assert same_state(model, dense)
    assert not ASP.is_sparsity_enabled()
    train(model, optimizer)
    assert model[3].weight.all()


def test_a_failed_recomputation_leaves_the_old_masks() -> None:
    model = network()

    def once(weight: Tensor) -> Tensor | None:
        return magnitude_mask(weight) if is_first else None

    is_first = True
    ASP.init_model_for_pruning(model, once, verbosity=0, allow_recompute_mask=True)  # type: ignore[arg-type]
    ASP.compute_sparse_masks()
    before = copy.deepcopy(model)
    is_first = False
    with pytest.raises(TypeError, match="NoneType"):
        ASP.compute_sparse_masks()
    assert same_state(model, before)
    assert ASP.is_sparsity_enabled()


def test_a_layer_that_becomes_prunable_joins_at_the_next_computation() -> None:
    model = network()
    model[0].requires_grad_(False)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    ASP.compute_sparse_masks()
    assert model[0].weight.all()
    model[0].requires_grad_(True)
    ASP.compute_sparse_masks()
    assert is_sparse24(model[0].weight)
