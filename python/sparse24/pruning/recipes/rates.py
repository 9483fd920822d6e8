"""The learning rates of a first training again, in as many steps or in fewer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def rates_of(
    optimizer: Optimizer, schedule: Callable[[Optimizer], LRScheduler], steps: int
) -> list[list[float]]:
    """The learning rates that a schedule gives: a list a step, a rate a parameter group.

    Args:
        optimizer: its groups count; it is not changed.
        schedule: makes the scheduler of the first training, as
            ``lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=n)``.
        steps: calls of ``scheduler.step()`` in it.

    Raises:
        ValueError: ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be positive, not {steps}")
    groups = [
        {**{k: copy.copy(v) for k, v in group.items() if k != "params"}, "params": [torch.zeros(1)]}
        for group in optimizer.param_groups
    ]
    twin = torch.optim.SGD(groups, lr=1.0)
    scheduler = schedule(twin)
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in twin.param_groups])
        twin.step()
        scheduler.step()
    return rates


class Replay(LRScheduler):
    """Give an optimizer the learning rates of another training, stretched over ``steps`` steps.

    Shortened retraining, as 15 epochs for a training of 90: the whole curve, warm-up and end, in fewer steps.
    Call ``step()`` after each step of the optimizer; beyond the end the last rate stays.

    Args:
        optimizer: as many groups as the curve has rates.
        rates: of :func:`rates_of`, or kept from the first training: a list a step, a rate a group; or a rate
            a step, for all groups.
        steps: of the training to come.

    Raises:
        ValueError: no rates, another number of groups, or ``steps`` that is not positive.
    """

    def __init__(
        self, optimizer: Optimizer, rates: Sequence[float] | Sequence[Sequence[float]], steps: int
    ) -> None:
        groups = len(optimizer.param_groups)
        curve = [[float(r)] * groups if isinstance(r, int | float) else [float(x) for x in r] for r in rates]
        if not curve or steps < 1:
            raise ValueError(
                f"a replay needs rates and a positive number of steps, not {len(curve)} and {steps}"
            )
        if any(len(each) != groups for each in curve):
            raise ValueError(
                f"the rates are for {len(curve[0])} parameter groups, and the optimizer has {groups}"
            )
        self.curve, self.steps = curve, steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Any]:
        """A rate a group for the step to come."""
        last = len(self.curve) - 1
        place = min(self.last_epoch / max(self.steps - 1, 1), 1.0) * last
        below = min(int(place), last)
        above, share = min(below + 1, last), place - below
        return [
            low + (high - low) * share for low, high in zip(self.curve[below], self.curve[above], strict=True)
        ]
