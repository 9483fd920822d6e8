"""Optimizers that are not the one that steps: wrappers, two-step ones, masters, one for each parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from sparse24 import is_sparse24
from sparse24.pruning.asp import ASP

from .networks import backward, pruned


class Accelerated(Optimizer):
    """As accelerate.optimizer.AcceleratedOptimizer: a subclass that never calls Optimizer.__init__."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


Accelerated.__module__ = "accelerate.optimizer"


class Plain:
    """As the wrappers of mixed precision packages: no Optimizer at all."""

    def __init__(self, optimizer: Any) -> None:
        self._held = [optimizer]
        self.optim = optimizer

    def step(self) -> None:
        self.optim.step()

    def zero_grad(self) -> None:
        self.optim.zero_grad()


def lookahead(optimizer: Optimizer, calls_init: bool = True) -> Optimizer:
    """Slow weights, kept from before pruning, flow back at every step."""

    class Lookahead(Optimizer):
        def __init__(self) -> None:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            if calls_init:
                super().__init__(params, {})
            else:
                self.param_groups = optimizer.param_groups
            self.inner = optimizer
            self.slow = [torch.ones_like(p) for p in params]

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.inner.zero_grad(set_to_none)

        def step(self, closure: Any = None) -> None:
            self.inner.step(closure)
            with torch.no_grad():
                for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                    p.lerp_(slow, 0.5)

    return Lookahead()


def post_local_sgd(optimizer: Optimizer) -> Optimizer:
    from torch.distributed.algorithms.model_averaging.averagers import ModelAverager  # noqa: PLC0415
    from torch.distributed.optim import PostLocalSGDOptimizer  # noqa: PLC0415

    class Alone(ModelAverager):
        def __init__(self) -> None:
            pass

        def average_parameters(self, params: Any) -> None:
            pass

    return PostLocalSGDOptimizer(optimizer, Alone())


def lightning(optimizer: Optimizer) -> Optimizer:
    """As Lightning's: an object of a class made for it, which shares the dicts of what it wraps."""
    kind = type("LightningSGD", (type(optimizer),), {"step": lambda self: self.optimizer.step()})
    wrapper = object.__new__(kind)
    wrapper.__dict__.update(optimizer.__dict__)
    wrapper.optimizer = optimizer
    return wrapper


WRAPPERS: dict[str, Callable[[Optimizer], Any]] = {
    "accelerate": Accelerated,
    "accelerate, twice": lambda optimizer: Accelerated(Accelerated(optimizer)),
    "no optimizer": Plain,
    "no optimizer around accelerate": lambda optimizer: Plain(Accelerated(optimizer)),
    "lookahead": lookahead,
    "lookahead without init": lambda optimizer: lookahead(optimizer, calls_init=False),
    "accelerate around lookahead": lambda optimizer: Accelerated(lookahead(optimizer, calls_init=False)),
    "post-local SGD": post_local_sgd,
    "lightning": lightning,
}


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("wrap", list(WRAPPERS))
def test_a_wrapper_is_enforced_where_it_steps(wrap: str) -> None:
    model, sparsifier = pruned()
    outer = WRAPPERS[wrap](SGD(model.parameters(), lr=0.1, momentum=0.9))
    sparsifier.attach(outer)
    sparsifier.attach(outer)
    before = copy.deepcopy(model)
    for step in range(3):
        outer.zero_grad()
        backward(model, step)
        outer.step()
        sparsifier.verify()
    assert not torch.equal(before[0].weight, model[0].weight)
    ours = sparsifier.optimizers()
    assert len(ours) == (2 if "lookahead" in wrap else 1)
    assert all(len(each._optimizer_step_post_hooks) == 1 for each in ours)
    sparsifier.detach()
    assert not any(each._optimizer_step_post_hooks for each in ours)


def test_asp_takes_wrappers_too() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(8, 8))
    wrapper = Accelerated(SGD(model.parameters(), lr=0.1))
    ASP.prune_trained_model(model, wrapper)
    model(torch.randn(4, 16)).square().mean().backward()
    wrapper.step()
    assert is_sparse24(model[0].weight)
    ASP.release(model)


class NotOne(Optimizer):
    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda model: torch.optim.lr_scheduler.LambdaLR(SGD(model.parameters()), lambda _: 1.0),
         r"not LambdaLR: pass its \.optimizer"),
        (lambda model: NotOne(list(model.parameters())), r"NotOne never called .*pass the one"),
        (lambda model: model, r"torch\.optim\.Optimizer, not Sequential"),
        (lambda model: SGD, r"torch\.optim\.Optimizer, not type"),
        (lambda model: None, r"torch\.optim\.Optimizer, not NoneType"),
    ],
)  # fmt: skip
def test_what_is_no_optimizer_is_refused_with_the_one_to_pass(given: Any, message: str) -> None:
    model, sparsifier = pruned()
    wrong = given(model)
    with pytest.raises(TypeError, match=f"attach needs .*{message}"):
        sparsifier.attach(wrong)
    with pytest.raises(TypeError, match=f"ASP needs .*{message}"):
        ASP.prune_trained_model(model, wrong)
    assert not ASP._sessions
    assert not sparsifier.optimizers()


class Sam(Optimizer):
    """Sharpness-aware minimization: climb to a worse point, step from here by the gradient there."""

    def __init__(self, parameters: Any, base: type[Optimizer], rho: float = 0.5, **options: Any) -> None:
        super().__init__(parameters, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        held = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / norm))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()


def mask_by_hand(model: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        if parameter.grad is not None:
            parameter.grad.mul_(mask)


def test_two_steps_of_a_sharpness_aware_optimizer_are_enforced() -> None:
    model, sparsifier = pruned()
    twin, masks = copy.deepcopy(model), sparsifier.masks
    optimizer, plain = (Sam(net.parameters(), SGD, lr=0.1) for net in (model, twin))
    sparsifier.attach(optimizer)
    for step in range(3):
        backward(model, step)
        optimizer.first_step(zero_grad=True)
        sparsifier.verify()  # the point that it climbs to is 2:4, too
        backward(model, step)
        optimizer.second_step(zero_grad=True)
        sparsifier.verify()
        for half in (plain.first_step, plain.second_step):
            backward(twin, step)
            mask_by_hand(twin, masks)
            half(zero_grad=True)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    sparsifier.detach()
    assert "first_step" not in vars(optimizer)
