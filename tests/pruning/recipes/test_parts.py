"""What recipes are put together from: estimates of gradients, carried masks, learning rates, a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

from sparse24 import Sparsifier
from sparse24.pruning import recipes
from sparse24.pruning.recipes.mvue import MvueLinear, estimate, exact, mvue24

from ..networks import mlp, same_state

# ---- MVUE -------------------------------------------------------------------------------------------


def test_the_estimate_is_2_4_and_its_mean_is_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(8, 5, generator=generator)
    gradient[:4, 0] = torch.tensor([0.0, 0.0, 3.0, 0.0])
    gradient[:4, 1] = torch.tensor([10.0, 0.1, -0.2, 0.3])  # one is larger than the others together
    gradient[:4, 2] = 0
    draws = torch.stack([mvue24(gradient, generator) for _ in range(20000)])
    assert int((draws.reshape(-1, 2, 4, 5) != 0).sum(2).max()) == 2
    deviation = draws.std(0) / 20000**0.5
    assert bool(((draws.mean(0) - gradient).abs() <= 5 * deviation + 1e-6).all())
    assert torch.equal(draws[:, :4, 0], gradient[:4, 0].expand(20000, 4))
    assert bool((draws[:, 0, 1] == 10).all())


def test_no_other_unbiased_choice_of_two_has_less_variance() -> None:
    """Of a^2 (1 / p - 1), the p of the estimate are the least under sum p = 2, p <= 1: checked by a grid."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([mvue24(values[:, None], generator)[:, 0] for _ in range(40000)])
    ours = float(draws.var(0).sum())
    steps = torch.linspace(0.05, 1, 20)
    grid = torch.cartesian_prod(steps, steps, steps)
    last = 2 - grid.sum(1)
    legal = grid[(last > 0.04) & (last <= 1)]
    p = torch.cat([legal, (2 - legal.sum(1))[:, None]], 1)
    best = float((values.square() * (1 / p - 1)).sum(1).min())
    assert ours == pytest.approx(best, rel=0.05)


def test_layers_estimate_the_gradient_of_the_weight_alone() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    twin, x = copy.deepcopy(model), torch.randn(12, 8, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    estimate(model, {"2.weight"})
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, MvueLinear]
    model(x).square().sum().backward()
    twin(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(model[2].bias.grad, twin[2].bias.grad)
    assert not torch.allclose(model[2].weight.grad, twin[2].weight.grad)
    exact(model)
    assert type(model[2]) is nn.Linear


# ---- phases -----------------------------------------------------------------------------------------


class Detector(nn.Module):
    """A backbone under another name, one of its layers wider, and new heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(14, 20), nn.ReLU(), nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU()
        )
        self.narrow = nn.Linear(3, 8)
        self.boxes = nn.Linear(8, 4)


def phase_one() -> Sparsifier:
    sparsifier = Sparsifier(mlp())
    sparsifier.prune()
    return sparsifier


@pytest.mark.parametrize("as_state", [False, True])
def test_masks_go_on_to_another_network(as_state: bool) -> None:
    before, model = phase_one(), Detector()
    masks = before.state_dict() if as_state else before
    sparsifier, report = recipes.carry(masks, model, names={"": "backbone."})
    assert sparsifier.masks.keys() == {"backbone.0.weight"}
    assert torch.equal(sparsifier.masks["backbone.0.weight"], before.masks["0.weight"])
    sparsifier.verify()
    remarks = {row.name: row.reason for row in report}
    assert remarks["backbone.0"] == "carried; 14 input channels: the last group has 2 and keeps 2"
    assert remarks["backbone.2"] == "changed: its mask is 16x20: left dense"
    assert remarks["backbone.4"] == "new here: left dense (prune_new=True prunes it)"
    assert remarks["narrow"] == "3 input channels (dim 1): 2:4 needs 4 or more"
    assert remarks["boxes"].startswith("an output head")


def test_new_layers_are_pruned_where_that_is_wanted() -> None:
    model = Detector()
    sparsifier, report = recipes.carry(phase_one(), model, names={"": "backbone."}, prune_new=True)
    assert sparsifier.masks.keys() == {"backbone.0.weight", "backbone.2.weight", "backbone.4.weight"}
    sparsifier.verify()
    remarks = {row.name: row.reason for row in report}
    assert remarks["backbone.2"] == "changed: its mask is 16x20; pruned anew"
    assert remarks["backbone.4"] == "new here, pruned by magnitude"


def test_masks_without_a_place_are_told() -> None:
    model = nn.Sequential(nn.Linear(14, 20))
    _, report = recipes.carry(phase_one(), model)
    assert [(row.name, row.kind) for row in report if "no such weight" in row.reason] == [
        ("2.weight", "mask")
    ]


def test_nothing_that_fits_and_no_masks_are_refused() -> None:
    model = Detector()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"none of the 2 masks fits.*\(the first: 0\.weight\).*backbone"):
        recipes.carry(phase_one(), model)
    with pytest.raises(TypeError, match="needs a Sparsifier or its state_dict"):
        recipes.carry({"weights": 3}, model)
    assert same_state(model, before)


# ---- learning rates ---------------------------------------------------------------------------------


def optimizer(groups: int = 1) -> torch.optim.Optimizer:
    parameters = [{"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1 * (i + 1)} for i in range(groups)]
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda o: CosineAnnealingLR(o, 90),
    "one cycle": lambda o: OneCycleLR(o, 0.3, total_steps=91),
    "warm-up": lambda o: SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=10), CosineAnnealingLR(o, 80)], milestones=[10]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_as_many_steps_are_the_same_curve_and_fewer_the_whole_of_it(schedule: str) -> None:
    make = SCHEDULES[schedule]
    own = optimizer(2)
    before = [group["lr"] for group in own.param_groups]
    rates = recipes.rates_of(own, make, 90)
    assert [group["lr"] for group in own.param_groups] == before

    def played(steps: int) -> list[list[float]]:
        other = optimizer(2)
        replay, seen = recipes.Replay(other, rates, steps), []
        for _ in range(steps):
            seen.append([group["lr"] for group in other.param_groups])
            other.step()
            replay.step()
        return seen

    assert played(90) == [pytest.approx(each) for each in rates]
    short = played(15)
    assert short[0] == pytest.approx(rates[0])
    assert short[-1] == pytest.approx(rates[-1])
    for step, each in enumerate(short):
        place = step * 89 / 14
        between = torch.tensor(rates)[int(place) : int(place) + 2, 0]
        assert between.min() - 1e-6 <= each[0] <= between.max() + 1e-6


def test_a_replay_resumes_and_stays_at_its_end() -> None:
    own = optimizer()
    replay = recipes.Replay(own, [0.3, 0.2, 0.1], 5)
    for _ in range(2):
        own.step()
        replay.step()
    state, at = replay.state_dict(), own.param_groups[0]["lr"]
    again = recipes.Replay(optimizer(), [0.9], 2)
    again.load_state_dict(state)
    assert again.get_lr() == pytest.approx([at])
    for _ in range(9):
        own.step()
        replay.step()
    assert own.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: recipes.rates_of(optimizer(), SCHEDULES["cosine"], 0), "steps must be positive, not 0"),
        (lambda: recipes.Replay(optimizer(), [], 5), "not 0 and 5"),
        (lambda: recipes.Replay(optimizer(), [0.1], 0), "not 1 and 0"),
        (lambda: recipes.Replay(optimizer(2), [[0.1]], 5), "for 1 parameter groups, and the optimizer has 2"),
        (lambda: recipes.distillation(torch.zeros(2, 3), torch.zeros(2, 4)), "one shape"),
        (lambda: recipes.distillation(torch.zeros(2, 3), torch.zeros(2, 3), 0), "positive, not 0"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


# ---- distillation -----------------------------------------------------------------------------------


def test_the_teacher_pulls_and_is_not_pulled() -> None:
    torch.manual_seed(3)
    student = torch.randn(2, 5, 7, requires_grad=True)
    teacher = torch.randn(2, 5, 7, requires_grad=True)
    loss = recipes.distillation(student, teacher, 3.0)
    p, q = (F.softmax(x.detach().double() / 3, -1) for x in (teacher, student))
    assert loss.item() == pytest.approx(float((p * (p / q).log()).sum(-1).mean() * 9), rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert recipes.distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
