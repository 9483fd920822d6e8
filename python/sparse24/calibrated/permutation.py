"""``sparse24.permute``: an order of a network's channels in which 2:4 keeps more of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..pruning.permute import PermutationReport, Score, permute_network
from ..pruning.prunable import unwrap
from ..pruning.running import quiet, run_batch
from ..pruning.selection import Select
from .blocks import checked_batches
from .matrices import Matrix, input_rows, matrices_of
from .methods import inverse_factor
from .moments import Moments
from .plan import Plan, plan_for

#: Scores that need calibration batches.
CALIBRATED = ("wanda", "hessian")


def permute(
    model: nn.Module,
    example_inputs: Any,
    score: Score = "magnitude",
    *,
    batches: Iterable[Any] | None = None,
    select: Select = None,
    seed: int = 0,
) -> PermutationReport:
    """Reorder the channels of ``model`` in place, so that 2:4 keeps more of it. Its outputs stay the same.

    Call it before pruning, and before an optimizer holds state of the parameters. The model's operators are
    captured by ``torch.export`` (``torch.fx`` where that refuses), and channels are followed through them:
    sums, concatenations, normalisation, grouped and depthwise convolutions, heads of attention (channels stay
    in their head), gated feed-forwards. What an operator without a rule sees stays in place, and the report
    says so. The order is found by iterated linear assignment. Afterwards outputs on the example inputs are
    compared, in float64 where that fits into memory; where they differ everything is put back, bit for bit.

    It holds for the ways through ``forward`` that the example inputs take, in eval mode, and in training mode
    where that reaches parameters that eval mode does not. Whoever else reads a parameter sees it reordered.

    Args:
        model: any module; it is run in eval mode, and left in the mode that it had.
        example_inputs: a tensor, a tuple of arguments or a mapping of keywords, on the model's device.
        score: what to keep: "magnitude"; "wanda", ``|w| ||x_j||`` (Sun et al. 2023); "hessian", the loss of
            pruning a weight alone, ``w^2 / [H^-1]_jj`` (Hassibi and Stork 1992), H the second moments of the
            layer's inputs. Or, floating, finite and not negative, of each weight's shape: a mapping of
            tensors by the parameter's name, or ``score(weight, name)``.
        batches: to calibrate "wanda" and "hessian" on, as :func:`~sparse24.oneshot` takes them; weights that
            no batch reaches go by magnitude.
        select: which layers will be pruned, as :class:`~sparse24.Sparsifier` takes it. Others are permuted
            with them where they share channels, and do not count.
        seed: of the search. The same seed gives the same order on one machine.

    Returns:
        One row a weight: what 2:4 keeps of its score before and after, or why its input channels stay.

    Raises:
        TypeError: no module; a score of no such kind, or that gives no floating tensors.
        ValueError: an unknown score, batches missing or not wanted, example inputs that the model does not
            run on, weights or scores with NaN or Inf, scores of another shape. The model is then as it was,
            as it is after an interruption.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"permute needs a torch.nn.Module, not {type(model).__name__}")
    if isinstance(score, str):
        if score not in ("magnitude", *CALIBRATED):
            raise ValueError(f"score {score!r} is not one of magnitude, {', '.join(CALIBRATED)}")
        if (score in CALIBRATED) != (batches is not None):
            if batches is None:
                raise ValueError(f"score {score!r} needs batches to calibrate on")
            raise ValueError(f"score {score!r} takes no batches; wanda and hessian do")
    elif batches is not None:
        raise ValueError("a score that is given takes no batches; wanda and hessian do")
    if isinstance(score, str) and batches is not None:
        score = _calibrated(unwrap(model), checked_batches(batches), score, select)
    return permute_network(model, example_inputs, score=score, select=select, seed=seed)[0]


def _calibrated(
    model: nn.Module, batches: list[Any], score: str, select: Select
) -> Callable[[Tensor, str], Tensor]:
    """Scores of every weight that will be pruned, from what its layer sees."""
    plan = plan_for(model, select, (), None)
    with quiet(model), torch.no_grad():
        factors = _factors(model, plan, batches, score)

    def scored(weight: Tensor, name: str) -> Tensor:
        whole = torch.zeros(weight.shape, device=weight.device)
        for matrix, factor in factors[name]:
            importance = matrix.read().abs() * factor
            if score == "hessian":
                importance = importance.square()
            target = whole.t() if matrix.kind == "conv1d" else whole
            part = matrix.to_parameter(importance)
            target[matrix.rows] = part.t() if matrix.kind == "conv1d" else part
        return whole

    return scored


def _factors(
    model: nn.Module, plan: Plan, batches: list[Any], score: str
) -> dict[str, list[tuple[Matrix, Tensor]]]:
    """By parameter: its matrices, each with what its columns' magnitudes are multiplied by."""
    matrices = {name: matrices_of(name, layer) for name, layer in plan.layers.items()}
    seen: dict[str, list[Moments | _Squares]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = input_rows(layer, args, kwargs)
            own = seen.setdefault(name, [_sums(score, part) for part in rows])
            for moments, part in zip(own, rows, strict=True):
                moments.add(part)

        return hook

    handles = [layer.register_forward_pre_hook(note(n), with_kwargs=True) for n, layer in plan.layers.items()]
    try:
        for batch in batches:
            run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[tuple[Matrix, Tensor]]] = {}
    for name, parts in matrices.items():
        for i, matrix in enumerate(parts):
            if matrix.name not in plan.parameters:
                continue
            own = seen[name][i] if name in seen else None
            columns = matrix.read().shape[1]
            factor = torch.ones(columns, device=matrix.parameter.device)
            if own is not None and own.rows:
                own.check(matrix.name)
                factor = _factor(own)
            found.setdefault(matrix.name, []).append((matrix, factor))
    return found


def _sums(score: str, rows: Tensor) -> Moments | _Squares:
    return (Moments if score == "hessian" else _Squares)(rows.shape[1], rows.device)


def _factor(moments: Moments | _Squares) -> Tensor:
    if isinstance(moments, _Squares):
        return moments.norms
    inverse = inverse_factor(moments.second).square().sum(0)  # the diagonal of H^-1
    return inverse.rsqrt()


class _Squares:
    """Sums of squares of the columns of all rows that were added: all that Wanda asks of H."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self._sum = torch.zeros(columns, device=device)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        self._sum += rows.square().sum(0)
        self.rows += len(rows)

    def check(self, name: str) -> None:
        if not bool(self._sum.isfinite().all()):
            raise ValueError(f"the inputs of {name} hold NaN or Inf: calibrate on batches without them")

    @property
    def norms(self) -> Tensor:
        """The root of the mean square of every column."""
        return (self._sum / max(self.rows, 1)).sqrt()
