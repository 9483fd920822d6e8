"""Three lines in loops as people write them: every optimizer of torch, and what is done around a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from sparse24 import Sparsifier

from .networks import mlp

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.05),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
    "LAMB, a user's": lambda p: Lamb(p, 0.01),
}


class Lamb(Optimizer):
    """A user's class: trust ratios of whole layers, plain loops."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                v = state.setdefault("v", torch.zeros_like(p)).lerp_(p.grad.square(), 0.01)
                update = m / (v.sqrt() + 1e-6) + 0.01 * p
                ratio = float(p.norm() / update.norm().clamp_min(1e-6)) or 1.0
                p.sub_(update, alpha=group["lr"] * min(ratio, 10.0))


def loss(model: nn.Module, step: int) -> Tensor:
    x = torch.randn(8, 14, generator=torch.Generator().manual_seed(step))
    return F.cross_entropy(model(x).float(), x[:, :3].argmax(1))


def check(model: nn.Module, sparsifier: Sparsifier, before: dict[str, Tensor]) -> None:
    """Pruned weights are +0.0, kept ones have learned."""
    sparsifier.verify()
    assert sparsifier.masks
    for name, mask in sparsifier.masks.items():
        weight = model.get_parameter(name).detach()
        assert not weight[~mask].signbit().any()
        assert not torch.equal(weight[mask], before[name][mask])
        assert bool(weight.isfinite().all())


def start() -> tuple[nn.Module, Sparsifier, dict[str, Tensor]]:
    """Dense steps first, so that an optimizer's state has something to move pruned weights with."""
    model = mlp()
    return model, Sparsifier(model), {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_leaves_pruned_weights_alone(name: str) -> None:
    model, sparsifier, _ = start()
    optimizer: Any = OPTIMIZERS[name](list(model.parameters()))

    def step(number: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(model, number)
            value.backward()
            return value

        if name == "LBFGS":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()

    for number in range(3):
        step(number)
    sparsifier.prune()
    sparsifier.attach(optimizer)
    before = copy.deepcopy({n: p.detach() for n, p in model.named_parameters()})
    for number in range(3, 8):
        step(number)
    check(model, sparsifier, before)


def accumulated(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    for part in range(3):
        (loss(model, 10 * step + part) / 3).backward()
    optimizer.step()
    optimizer.zero_grad()


def scaled(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """The second step overflows and is skipped."""
    scaler: Any = model.__dict__.setdefault("scaler", torch.amp.GradScaler("cpu", init_scale=16.0))
    optimizer.zero_grad()
    scaler.scale(loss(model, step)).backward()
    if step == 4:
        next(model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()


def cast(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(model, step)
    value.backward()
    optimizer.step()


def checkpointed(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss(lambda x: checkpoint(model, x, use_reentrant=False), step).backward()  # type: ignore[arg-type]
    optimizer.step()


def regrouped(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    """The second layer joins later, in a group of its own."""
    if step == 4:
        held = optimizer.param_groups[0]["params"]
        moved = [p for p in held if p.shape == (16, 20)]
        optimizer.param_groups[0]["params"] = [p for p in held if p.shape != (16, 20)]
        optimizer.add_param_group({"params": moved, "lr": 0.02})
    accumulated(model, optimizer, step)


def averaged(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    average: Any = model.__dict__.setdefault("average", AveragedModel(model))
    accumulated(model, optimizer, step)
    average.update_parameters(model)


LOOPS = [accumulated, scaled, cast, checkpointed, regrouped, averaged]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_loop_leaves_pruned_weights_alone(loop: Any, name: str) -> None:
    model, sparsifier, _ = start()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    for number in range(3):
        accumulated(model, optimizer, number)
    sparsifier.prune()
    sparsifier.attach(optimizer)
    before = copy.deepcopy({n: p.detach() for n, p in model.named_parameters()})
    for number in range(3, 8):
        loop(model, optimizer, number)
    check(model, sparsifier, before)
    if loop is averaged:  # an average of masked weights is masked
        twin: Any = model.__dict__["average"].module
        for key, mask in sparsifier.masks.items():
            assert not twin.get_parameter(key)[~mask].any()


def test_a_compiled_model_and_step() -> None:
    model, sparsifier, _ = start()
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = OPTIMIZERS["AdamW"](list(model.parameters()))
    sparsifier.prune()
    sparsifier.attach(optimizer)
    before = copy.deepcopy({n: p.detach() for n, p in model.named_parameters()})
    for number in range(4):
        accumulated(compiled, optimizer, number)
    check(model, sparsifier, before)


def test_frozen_layers_stay_as_they_are() -> None:
    model: Any = mlp()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["AdamW"]([p for p in model.parameters() if p.requires_grad])
    sparsifier.attach(optimizer)
    before = model[0].weight.detach().clone()
    for number in range(3):
        accumulated(model, optimizer, number)
    sparsifier.verify()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_parametrized_weights_are_left_alone_by_name(wrap: Any) -> None:
    model = nn.Sequential(wrap(nn.Linear(14, 20)), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    report = {row.name: row for row in Sparsifier(model).prune()}
    assert not report["0"].done
    assert "parametriz" in report["0"].reason
    assert report["2"].done


def test_an_optimizer_from_before_a_cast_is_refused_or_followed() -> None:
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](list(model.parameters()))
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double()  # new parameters: the optimizer holds the old ones
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    with pytest.raises(ValueError, match=r"holds copies of the parameters|none of the model's parameters"):
        Sparsifier(nn.Sequential(model, nn.Linear(4, 4))).attach(optimizer)
    with pytest.raises(ValueError, match="masks do not fit"):
        Sparsifier(nn.Sequential(nn.Linear(14, 20))).load_state_dict(sparsifier.state_dict())
