"""Train the kept weights of one pruned block until its outputs are those of the dense one.

No labels: the targets are outputs of the dense network on calibration data, the inputs those that the block
gets in the pruned network ("local reconstruction"). The learning rate is chosen by a short search, judged on
calls that are held out; where training does not help there, the block is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Call, main_output
from .plan import Way
from .rows import Outcome

RATES = (3e-4, 1e-3, 3e-3)
#: One call of so many is held out.
HELD_OUT = 8
#: Steps of the search for a learning rate, as a share of all.
SEARCH = 0.1
CHECKS = 8  #: times that the held-out calls are looked at while it trains
PATIENCE = 3  #: checks in a row without a better error that end it


class _Masked:
    """The parameters of a block that are trained, and those of their weights that stay pruned."""

    def __init__(self, block: nn.Module, masks: Mapping[int, Tensor], fixed: Set[int]) -> None:
        self.trained = [p for p in block.parameters() if p.is_floating_point() and id(p) not in fixed]
        self.pruned = [(p, ~masks[id(p)]) for p in self.trained if id(p) in masks]

    def save(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.trained]

    @torch.no_grad()
    def restore(self, saved: Sequence[Tensor]) -> None:
        for parameter, numbers in zip(self.trained, saved, strict=True):
            parameter.copy_(numbers)

    def masters(self) -> list[Tensor]:
        """What an optimizer steps: float32 copies of narrower parameters, which would round it away."""
        return [p if p.dtype == torch.float32 else p.detach().float() for p in self.trained]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, masters: Sequence[Tensor]) -> None:
        """One step with the gradients of the parameters."""
        self._mask_gradients()
        copied = [(p, m) for p, m in zip(self.trained, masters, strict=True) if m is not p]
        for parameter, master in copied:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        optimizer.step()
        for parameter, master in copied:
            parameter.copy_(master)

    def _mask_gradients(self) -> None:
        for parameter, pruned in self.pruned:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0)


#: The tensor of what a block gives that is compared.
Output = Callable[[Any], Any]


def _error(block: nn.Module, output: Output, call: Call, target: Tensor) -> Tensor:
    found = output(block(*call.args, **call.kwargs))
    return F.mse_loss(found.float(), target.float())


@torch.no_grad()
def _mean_error(block: nn.Module, output: Output, calls: Sequence[Call], targets: Sequence[Tensor]) -> float:
    errors = [float(_error(block, output, c, t)) * t.numel() for c, t in zip(calls, targets, strict=True)]
    return sum(errors) / max(sum(t.numel() for t in targets), 1)


def reconstruct(
    block: nn.Module,
    calls: Sequence[Call],
    targets: Sequence[Tensor],
    way: Way,
    *,
    masks: Mapping[int, Tensor],
    fixed: Set[int],
    rates: Sequence[float] = RATES,
    output: Output = main_output,
) -> Outcome | None:
    """Train a block in place: weights that are kept, biases, and what normalises.

    Args:
        block: pruned; in eval mode.
        calls: what it gets in the pruned network.
        targets: what the dense one gave there.
        way: how many steps of Adam, one call each, and the dtype to cast to for them.
        masks: of its pruned parameters, by their ``id``.
        fixed: parameters that are not trained, by their ``id``.
        rates: learning rates to search among.
        output: what of a block's output is compared with the target.

    Returns:
        What it brought; ``None``: there was nothing to train.
    """
    some = len(calls) > 1  # one call alone is trained on and judged by
    held = [i for i in range(len(calls)) if not some or i % HELD_OUT == 0]
    train = [i for i in range(len(calls)) if not some or i % HELD_OUT != 0]
    judge = [calls[i] for i in held], [targets[i] for i in held]
    parameters, steps = _Masked(block, masks, fixed), way.steps
    if not parameters.trained:
        return None
    wanted = [p.requires_grad for p in parameters.trained]
    size = sum(float(t.float().square().sum()) for t in judge[1]) / sum(t.numel() for t in judge[1])
    best, saved = _mean_error(block, output, *judge), parameters.save()
    first, rate = best, 0.0
    start, lesson = saved, _Lesson(block, output, calls, targets, train, way.autocast)
    with torch.enable_grad():
        try:
            for parameter in parameters.trained:
                parameter.requires_grad_(True)
            short = max(int(SEARCH * steps), 1)
            found = {}
            for candidate in rates:
                parameters.restore(start)
                _train(parameters, lesson, candidate, short)
                found[candidate] = _mean_error(block, output, *judge)
            likely = min(found, key=lambda r: found[r] if math.isfinite(found[r]) else math.inf)
            parameters.restore(start)

            waited = 0

            def check() -> bool:
                nonlocal best, saved, rate, waited
                error = _mean_error(block, output, *judge)
                waited += 1
                if error < best:
                    best, saved, rate, waited = error, parameters.save(), likely, 0
                return waited < PATIENCE

            _train(parameters, lesson, likely, steps, check)
        finally:
            parameters.restore(saved)
            for parameter, was in zip(parameters.trained, wanted, strict=True):
                parameter.requires_grad_(was)
                parameter.grad = None
    scale = size if size > 0 else 1.0
    return Outcome(first / scale, best / scale, rate)


class _Lesson(NamedTuple):
    """What a block is trained on."""

    block: nn.Module
    output: Output
    calls: Sequence[Call]
    targets: Sequence[Tensor]
    numbers: Sequence[int]  #: of the calls to train on
    autocast: torch.dtype | None


def _train(
    parameters: _Masked,
    lesson: _Lesson,
    rate: float,
    steps: int,
    check: Callable[[], bool] | None = None,
) -> None:
    """Adam with a cosine schedule, a call a step in random order, as long as ``check`` says so."""
    masters = parameters.masters()
    optimizer = torch.optim.Adam(masters, lr=rate, fused=True)
    generator = torch.Generator().manual_seed(24)
    order: list[int] = []
    device = parameters.trained[0].device.type
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        if not order:
            shuffled = torch.randperm(len(lesson.numbers), generator=generator).tolist()
            order = [lesson.numbers[i] for i in shuffled]
        i = order.pop()
        for parameter in parameters.trained:
            parameter.grad = None
        with torch.autocast(device, lesson.autocast, enabled=lesson.autocast is not None):
            loss = _error(lesson.block, lesson.output, lesson.calls[i], lesson.targets[i])
        torch.autograd.backward(loss)
        parameters.step(optimizer, masters)
        if check is not None and (step + 1) % max(steps // CHECKS, 1) == 0 and not check():
            return
