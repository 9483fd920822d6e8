"""What becomes of a weight matrix, by what is known of its inputs: masks, updates of kept weights, errors.

A weight is W [rows, K], float32; what is known of its inputs x is H [K, K], the mean of x x^T. The error of a
pruned matrix Q is tr((W - Q) H (W - Q)^T), the mean squared error of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import masks
from ..ops.sparsegpt import sparsegpt_

#: Of the mean of H's diagonal, added to it before it is inverted (SparseGPT's own choice).
DAMP = 0.01


def output_error(weight: Tensor, pruned: Tensor, moments: Tensor, left: Tensor | None = None) -> float:
    """Squared error of the outputs over their squared size; 0 where all of them are zero.

    Args:
        left: the moments that the error is of, where a bias has taken up its mean; ``None``: ``moments``.
    """
    difference = weight - pruned
    size = float((weight @ moments).mul_(weight).sum())
    error = float((difference @ (moments if left is None else left)).mul_(difference).sum())
    return max(error, 0.0) / size if size > 0 else 0.0


def _mask_of(score: Tensor) -> Tensor:
    return masks.magnitude_mask(score)


def magnitude(weight: Tensor, moments: Tensor) -> Tensor:
    """The mask of the largest magnitudes."""
    return _mask_of(weight)


def wanda(weight: Tensor, moments: Tensor) -> Tensor:
    """The mask of the largest ``|w| ||x_j||`` (Sun et al. 2023)."""
    return _mask_of(weight.abs() * moments.diagonal().clamp_min(0).sqrt())


def ria(weight: Tensor, moments: Tensor) -> Tensor:
    """The mask of relative importance and activations (Zhang et al. 2024), with the exponent 1/2."""
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny
    relative = size / size.sum(0).clamp_min(tiny) + size / size.sum(1, keepdim=True).clamp_min(tiny)
    return _mask_of(relative * moments.diagonal().clamp_min(0).sqrt().sqrt())


def inverse_factor(moments: Tensor, damp: float = DAMP) -> Tensor:
    """U, upper triangular with U^T U = (H + damp * mean(diag H))^-1; inputs that are always zero count as 1.

    H is factored once, in reverse order, and its factor inverted: no inverse of H is formed.

    Raises:
        ValueError: H is not finite.
    """
    damped = moments.clone()
    diagonal = damped.diagonal()
    dead = diagonal <= 0
    diagonal[dead] = 1
    mean = float(diagonal.mean())
    if not mean < float("inf"):
        raise ValueError("the inputs of this layer hold NaN or Inf")
    for attempt in range(8):  # a singular H: ten times the damping, until it can be factored
        trial = damped.flip(0, 1)
        trial.diagonal().add_(damp * mean * 10**attempt)
        factor, problem = torch.linalg.cholesky_ex(trial)
        if not int(problem):
            break
    upper = factor.flip(0, 1)  # H = R R^T, R upper, and so H^-1 = R^-T R^-1
    one = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, one, upper=True)
    return inverse


def sparsegpt(weight: Tensor, moments: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mask and kept weights of SparseGPT (Frantar and Alistarh 2023); for a given mask, the weights."""
    updated = weight.clone()
    updated[:, moments.diagonal() <= 0] = 0
    kept = sparsegpt_(updated, inverse_factor(moments), mask)
    return kept, updated


def refit(weight: Tensor, mask: Tensor, moments: Tensor, steps: int, start: Tensor | None = None) -> Tensor:
    """The kept weights that give the least output error: ``steps`` of conjugate gradients, all rows at once.

    Each row's least-squares problem, preconditioned by the diagonal, shares its products with H. It never
    ends worse than it began.

    Args:
        start: weights to begin with; ``None``: those of ``weight``.
    """
    kept = mask.to(weight.dtype)
    scale = moments.diagonal().clamp_min(DAMP * float(moments.diagonal().mean()) + 1e-30)
    fitted = (weight if start is None else start) * kept
    residual = ((weight - fitted) @ moments) * kept
    preconditioned = residual / scale
    direction = preconditioned.clone()
    size = (residual * preconditioned).sum(1, keepdim=True)
    for _ in range(steps):
        image = (direction @ moments) * kept
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(curvature > 0, size / curvature.clamp_min(1e-30), 0.0)
        fitted = fitted + step * direction
        residual = residual - step * image
        preconditioned = residual / scale
        next_size = (residual * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + torch.where(size > 0, next_size / size.clamp_min(1e-30), 0.0) * direction
        size = next_size
    return fitted


def admm(
    weight: Tensor, moments: Tensor, mask: Tensor | None = None, *, iterations: int = 20, ramp: int = 15
) -> tuple[Tensor, Tensor]:
    """Mask and kept weights by ADMM with a mask that sharpens over ``ramp`` iterations (Boza 2024).

    Inputs are normalised by ||x_j||, damped by .1; rho is 1, and H + rho I is inverted once.
    """
    norm = moments.diagonal().clamp_min(0).sqrt()
    norm = torch.where(norm > 0, norm, 1.0)
    normal = moments / (norm.unsqueeze(0) * norm.unsqueeze(1))
    normal.diagonal().add_(0.1)
    w0 = weight * norm
    target = w0 @ normal
    normal.diagonal().add_(1.0)  # rho
    factor = torch.linalg.cholesky(normal)
    current, dual = w0.clone(), torch.zeros_like(w0)
    kept = mask
    for iteration in range(iterations):
        merged = current + dual
        if mask is None and iteration < ramp:
            kept = _softened(merged, (iteration + 1) / ramp)
        assert kept is not None
        split = merged * kept
        dual = merged - split
        current = torch.cholesky_solve((target + split - dual).t(), factor).t()
    final = mask if mask is not None else _mask_of(current + dual)
    return final, (current + dual) * final / norm


def _softened(weight: Tensor, progress: float) -> Tensor:
    """A mask on the way to 2:4: of the weights that lose, the largest go last, by a cubic schedule."""
    pruned = 1 - (1 - progress) ** 3  # of the half that is pruned in the end
    if pruned >= 1:
        return _mask_of(weight)
    size = weight.abs()
    two = masks.magnitude_mask(size)
    losers = size.masked_fill(two, torch.inf)  # the two that lose, the smaller of them first
    count = int(pruned * int((~two).sum()))
    if count == 0:
        return torch.ones_like(two)
    threshold = losers.flatten().kthvalue(count).values
    return two | (losers > threshold)


#: Methods that choose a mask, and leave the weights to refit.
MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"magnitude": magnitude, "wanda": wanda, "ria": ria}
#: Methods that choose a mask and change the kept weights, or take a mask and change them.
UPDATES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"sparsegpt": sparsegpt, "admm": admm}
METHODS = (*UPDATES, *MASKS)


def _of_size_one(moments: Tensor) -> Tensor:
    """H over the mean of its diagonal, which no method depends on and float32 may: inputs can be minute.

    The identity where that is nothing, or so little that it is only rounding.
    """
    mean = float(moments.diagonal().mean())
    if mean <= 64 * torch.finfo(moments.dtype).tiny:
        return torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    return moments / mean


def prune_matrix(
    weight: Tensor,
    moments: Tensor,
    method: str,
    steps: int,
    mask: Tensor | None = None,
    *,
    left: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask and new weights [rows, K] of a matrix; ``steps`` of :func:`refit` follow the method.

    Args:
        mask: the caller's own, bool [rows, K]: it is kept to.
        left: what weights are fitted to, where a bias takes up the mean of the error: the covariance of the
            inputs. ``None``: ``moments``.
    """
    fitted_to = _of_size_one(moments if left is None else left)
    if method in UPDATES:
        kept, updated = UPDATES[method](weight, fitted_to, mask)
    else:
        kept = MASKS[method](weight, moments) if mask is None else mask
        updated = weight * kept
    if steps:
        updated = refit(weight, kept, fitted_to, steps, updated)
    return kept, torch.where(kept, updated, 0.0)
