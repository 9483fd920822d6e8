"""Masks that change while a network trains: each phase, each option, and where it goes on."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse24 import Sparsifier, is_sparse24, magnitude_mask, transposable_mask
from sparse24.pruning import recipes
from sparse24.pruning.recipes.mvue import MvueLinear

from ..networks import mlp, same_state

NAMES = ("0.weight", "2.weight")


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, width: int = 14) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, width, generator=generator)
        y = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def written_out(
    make: Callable[[nn.Module], torch.optim.Optimizer], steps: int, decay: float, decoupled: bool
) -> dict[str, Tensor]:
    """SR-STE as its paper has it, with masked weights in the forward by hand."""
    model = mlp()
    optimizer = make(model)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 14, generator=generator)
        y = torch.randint(3, (8,), generator=generator)
        masks = {name: magnitude_mask(model.get_parameter(name)) for name in NAMES}
        masked = {
            name: torch.where(mask, model.get_parameter(name), 0.0).detach().requires_grad_()
            for name, mask in masks.items()
        }
        optimizer.zero_grad()
        output = torch.func.functional_call(model, {**dict(model.named_parameters()), **masked}, (x,))
        F.cross_entropy(output, y).backward()
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            pruned = torch.where(mask, 0.0, weight.detach())
            weight.grad = masked[name].grad
            if decoupled:
                weight.data.sub_(pruned, alpha=optimizer.param_groups[0]["lr"] * decay)
            else:
                weight.grad.add_(pruned, alpha=decay)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("decoupled", [False, True])
def test_sr_ste_is_the_published_rule(
    make: Callable[[nn.Module], torch.optim.Optimizer], decoupled: bool
) -> None:
    model = mlp()
    optimizer = make(model)
    recipe = recipes.sr_ste(model, decay=0.05, decoupled=decoupled)
    recipe.attach(optimizer)
    train(model, optimizer, range(6))
    dense = written_out(make, 6, 0.05, decoupled)
    for name in NAMES:
        expected = torch.where(magnitude_mask(dense[name]), dense[name], 0.0)
        torch.testing.assert_close(model.get_parameter(name), expected)
        torch.testing.assert_close(recipe.state_dict()["masters"][name], dense[name])
    torch.testing.assert_close(model.get_parameter("4.weight"), dense["4.weight"])
    assert all(is_sparse24(model.get_parameter(name)) for name in NAMES)


def test_finish_leaves_what_a_pruned_network_is() -> None:
    model = mlp()
    optimizer = sgd(model)
    recipe = recipes.sr_ste(model)
    recipe.attach(optimizer)
    train(model, optimizer, range(4))
    assert recipe.phase == "sparse"
    recipe.finish()
    assert recipe.phase == "frozen"
    masks = recipe.sparsifier.masks
    train(model, optimizer, range(4, 8))
    recipe.sparsifier.verify()
    assert all(torch.equal(mask, recipe.sparsifier.masks[name]) for name, mask in masks.items())
    assert not recipe.state_dict()["masters"]


def test_masks_change_at_refreshes_alone_and_not_after_the_freeze() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    recipe = recipes.repruning(model, every=3, freeze=9, begin=2)
    recipe.attach(optimizer)
    seen: list[dict[str, Tensor]] = []
    for step in range(12):
        train(model, optimizer, range(step, step + 1))
        seen.append(recipe.sparsifier.masks)
        assert is_sparse24(model[0].weight) == (step >= 1)
    changed = [
        step
        for step in range(2, 12)
        if any(not torch.equal(seen[step][name], seen[step - 1][name]) for name in NAMES)
    ]
    assert seen[0] == {}
    assert set(changed) <= {4, 7, 8}  # steps 5 and 8 were made, and the freeze after 9
    assert changed
    assert recipe.phase == "frozen"


def test_a_warm_up_is_pruning_in_the_middle() -> None:
    model, twin = mlp(), mlp()
    optimizer, plain = adamw(model), adamw(twin)
    recipe = recipes.warm_up(model, steps=5)
    recipe.attach(optimizer)
    train(model, optimizer, range(9))
    train(twin, plain, range(5))
    sparsifier = Sparsifier(twin)
    sparsifier.prune()
    sparsifier.attach(plain)
    train(twin, plain, range(5, 9))
    assert same_state(model, twin)


def test_a_dense_finish_goes_on_from_the_dense_weights() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = sgd(model)
    recipe = recipes.transposable(model, refresh=2, dense_from=6, decay=0.01, mvue=True)
    recipe.attach(optimizer)
    assert type(model[0]) is MvueLinear
    for step in range(5):
        train(model, optimizer, range(step, step + 1), width=16)
        weight = model[0].weight
        assert is_sparse24(weight)
        assert is_sparse24(weight, dim=0)
        if step % 2:  # a refresh
            master = recipe.state_dict()["masters"]["0.weight"]
            assert torch.equal(recipe.sparsifier.masks["0.weight"], transposable_mask(master))
    train(model, optimizer, range(5, 8), width=16)
    assert recipe.phase == "finished"
    assert not is_sparse24(model[0].weight)
    assert type(model[0]) is nn.Linear
    assert not optimizer._optimizer_step_pre_hooks
    assert recipe.sparsifier.masks == {}


def test_second_moments_stay_what_the_warm_up_made_them() -> None:
    model = mlp()
    optimizer = adamw(model)
    recipe = recipes.sr_ste(model, begin=3, fixed_moments=True)
    recipe.attach(optimizer)
    train(model, optimizer, range(3))
    before = {p: s["exp_avg_sq"].clone() for p, s in optimizer.state.items()}
    train(model, optimizer, range(3, 6))
    for name, parameter in model.named_parameters():
        same = torch.equal(optimizer.state[parameter]["exp_avg_sq"], before[parameter])
        assert same == (name in NAMES)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("until", [2, 5, 9])
@pytest.mark.parametrize("attach_first", [False, True])
def test_an_interrupted_run_goes_on_bit_for_bit(
    make: Callable[[nn.Module], torch.optim.Optimizer], until: int, attach_first: bool
) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, recipes.DynamicSparsity]:
        model = mlp()
        return model, make(model), recipes.DynamicSparsity(
            Sparsifier(model), begin=3, refresh=2, freeze=8, decay=0.01
        )  # fmt: skip

    whole, optimizer, recipe = start()
    recipe.attach(optimizer)
    train(whole, optimizer, range(11))

    model, optimizer, recipe = start()
    recipe.attach(optimizer)
    train(model, optimizer, range(until))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), recipe.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)

    again, optimizer, recipe = start()
    if attach_first:
        recipe.attach(optimizer)
        train(again, optimizer, range(20, 24))
    for each, state in zip((again, optimizer, recipe), states, strict=True):
        each.load_state_dict(state)
    if not attach_first:
        recipe.attach(optimizer)
    train(again, optimizer, range(until, 11))
    assert same_state(whole, again)
    assert recipe.phase == "frozen"


BAD: dict[str, tuple[Callable[[nn.Module], Any], type[Exception], str]] = {
    "no sparsifier": (recipes.DynamicSparsity, TypeError, "over a Sparsifier, not Sequential"),
    "an end before the begin": (
        lambda m: recipes.DynamicSparsity(Sparsifier(m), begin=5, freeze=2),
        ValueError,
        "not begin=5, refresh=1, freeze=2",
    ),
    "two ends": (
        lambda m: recipes.DynamicSparsity(Sparsifier(m), freeze=5, dense_from=7),
        ValueError,
        "one of them",
    ),
    "decay": (lambda m: recipes.DynamicSparsity(Sparsifier(m), decay=-1), ValueError, "not -1"),
    "moments without a warm-up": (
        lambda m: recipes.sr_ste(m, fixed_moments=True),
        ValueError,
        "give begin=",
    ),
    "a closure": (
        lambda m: recipes.sr_ste(m).attach(torch.optim.LBFGS(m.parameters())),
        TypeError,
        "LBFGS computes gradients inside a step",
    ),
    "an optimizer of something else": (
        lambda m: recipes.sr_ste(m).attach(torch.optim.SGD(nn.Linear(4, 4).parameters(), lr=1)),
        ValueError,
        r"does not step 0\.weight \(and 1 more weights",
    ),
    "a state of something else": (
        lambda m: recipes.sr_ste(m).load_state_dict({}),
        TypeError,
        "a recipe's state holds",
    ),
    "another recipe's state": (
        lambda m: recipes.sr_ste(m).load_state_dict(recipes.warm_up(mlp(), steps=3).state_dict()),
        ValueError,
        "begin=3 there, 0 here",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_refused_and_nothing_changes(case: str) -> None:
    call, kind, says = BAD[case]
    model = mlp()
    before = copy.deepcopy(model)
    with pytest.raises(kind, match=says):
        call(model)
    assert same_state(model, before)


def test_a_sparsifier_that_is_in_use_and_a_second_recipe_are_refused() -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    with pytest.raises(ValueError, match="has masks or an optimizer already"):
        recipes.DynamicSparsity(sparsifier)
    sparsifier.attach(optimizer)
    with pytest.raises(ValueError, match="another recipe or Sparsifier is attached"):
        recipes.sr_ste(model).attach(optimizer)
    sparsifier.detach()
    recipe = recipes.sr_ste(model)
    recipe.attach(optimizer)
    with pytest.raises(ValueError, match="attached already"):
        recipe.attach(optimizer)
    with pytest.raises(ValueError, match="one at a time"):
        recipes.warm_up(model, steps=2).attach(optimizer)
    recipe.detach()
    recipes.warm_up(model, steps=2).attach(optimizer)


def test_a_state_with_other_shapes_changes_nothing() -> None:
    model = mlp()
    recipe = recipes.sr_ste(model)
    recipe.attach(sgd(model))
    state = recipe.state_dict()
    state["masters"]["0.weight"] = torch.zeros(3, 3)
    other = recipes.sr_ste(mlp())
    with pytest.raises(ValueError, match=r"0\.weight is \(3, 3\), here it is \(20, 14\)"):
        other.load_state_dict(state)
    assert other.sparsifier.masks == {}
    assert other.step == 0
