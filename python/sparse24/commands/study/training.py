"""One training, as every row and way runs it: the same batches in the same order for the same seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from ...pruning import recipes
from .rows import Training

Loss = Callable[[nn.Module, torch.Generator], Tensor]
#: Told of the step that was done.
Watch = Callable[[int], None]


def optimizer_of(model: nn.Module, training: Training) -> Optimizer:
    """As the training says; biases, norms and embeddings do not decay."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": training.decay}, {"params": others, "weight_decay": 0.0}]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, training.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, training.rate, fused=True)


def fit(
    model: nn.Module,
    loss: Loss,
    training: Training,
    seed: int,
    *,
    attach: Callable[[Optimizer], object] | None = None,
    steps: int | None = None,
    watch: Watch | None = None,
) -> nn.Module:
    """Train in place and return the network, in eval mode.

    Args:
        seed: of the batches, dropout included.
        attach: told of the optimizer before the first step.
        steps: fewer than the training's: the whole course of learning rates, in so many.
    """
    optimizer = optimizer_of(model, training)
    if attach is not None:
        attach(optimizer)
    total = training.steps
    rates = recipes.rates_of(
        optimizer, lambda o: OneCycleLR(o, training.rate, total_steps=total + 1, pct_start=0.1), total
    )
    schedule = recipes.Replay(optimizer, rates, steps or total)
    draw = torch.Generator().manual_seed(1_000_003 * seed + 17)
    torch.manual_seed(seed)
    model.train()
    for step in range(steps or total):
        with autocast(training):
            value = loss(model, draw)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0 if training.optimizer == "sgd" else 1.0)
        optimizer.step()
        schedule.step()
        if watch is not None:
            watch(step + 1)
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise FloatingPointError(f"the training diverged (rate {training.rate:g}, seed {seed})")
    return model.eval()


def autocast(training: Training) -> contextlib.AbstractContextManager[object]:
    """What the training's dtype asks for, in training and in judging."""
    if training.dtype == "bf16":
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()
