"""The 2:4 estimate of a gradient that is unbiased and has the least variance (Chmiel et al. 2023).

Two of four values are kept, each with probability min(1, |a| / t), t such that these sum to two, and divided
by it. Which two is drawn systematically, so that there are exactly two (or fewer where fewer are not zero).
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mvue24(gradient: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """An estimate of ``gradient`` with at most two of every four rows kept in a column.

    Args:
        gradient: [n, m], floating; rows beyond a multiple of four are kept as they are.
        generator: of the draws; torch's own by default.

    Returns:
        [n, m]; its expectation is ``gradient``.
    """
    whole = len(gradient) // 4 * 4
    groups = gradient[:whole].reshape(whole // 4, 4, -1)
    sizes = groups.abs().float()
    kept = _probabilities(sizes)
    draw = torch.rand(
        (len(sizes), 1, sizes.shape[2]), generator=generator, device=sizes.device, dtype=sizes.dtype
    )
    upper = kept.cumsum(1)
    chosen = ((upper - draw).ceil() > (upper - kept - draw).ceil()) | (kept >= 1)
    estimate = torch.where(chosen & (kept > 0), groups / kept.clamp_min(1e-30).to(groups.dtype), 0)
    return torch.cat([estimate.reshape(whole, -1).to(gradient.dtype), gradient[whole:]])


def _probabilities(sizes: Tensor) -> Tensor:
    """Of keeping each of four, [..., 4, m]: proportional to its size, at most 1, two in all."""
    total = sizes.sum(1, keepdim=True)
    largest = sizes.amax(1, keepdim=True)
    rest = (total - largest).clamp_min(torch.finfo(sizes.dtype).tiny)
    plain = 2 * sizes / total.clamp_min(torch.finfo(sizes.dtype).tiny)
    # One that is larger than all others together is kept for sure, and one of the others beside it.
    certain = torch.where(sizes == largest, torch.ones_like(sizes), sizes / rest)
    return torch.where(2 * largest > total, certain, plain).clamp(max=1)


class _Product(torch.autograd.Function):
    """x @ w.T + b, whose weight's gradient takes the estimate of the output's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        of_input = grad @ weight if ctx.needs_input_grad[0] else None
        of_weight = mvue24(rows).t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        of_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return of_input, of_weight, of_bias


class MvueLinear(nn.Linear):
    """``nn.Linear`` whose weight gradient is computed from a 2:4 estimate of the output's gradient."""

    #: What such a layer is for everybody else: pruned, converted and saved as one.
    _trains_as = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output


def estimate(model: nn.Module, names: Set[str]) -> None:
    """Let the ``nn.Linear`` layers whose weights are named estimate; other kinds of layers do not."""
    for name, module in model.named_modules():
        if (f"{name}.weight" if name else "weight") not in names:
            continue
        if type(module) is nn.Linear:
            module.__class__ = MvueLinear
        elif vars(module).get("_plain") is nn.Linear:  # trained by sparse products
            vars(module)["_plain"] = MvueLinear


def exact(model: nn.Module) -> None:
    """The inverse of :func:`estimate`."""
    for module in model.modules():
        if type(module) is MvueLinear:
            module.__class__ = nn.Linear  # type: ignore[assignment]
        elif vars(module).get("_plain") is MvueLinear:
            vars(module)["_plain"] = nn.Linear
