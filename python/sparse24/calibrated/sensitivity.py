"""Which layers suffer most from 2:4, and what keeping them dense would cost in time."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..choose.example import calls_of, record
from ..choose.measured import Chooser
from ..log import progress as logged
from ..masks import magnitude_mask
from ..nn.convertible import why_not_sparse
from ..pruning.layers import is_transposed_linear, stays_dense
from ..pruning.prunable import unwrap
from ..pruning.running import quiet, run_batch
from ..pruning.selection import Select
from ..pruning.sharding import refuse_sharded
from ..report import Row
from ..timing import Pair, in_units, interleaved_medians
from .blocks import checked_batches, main_output, run_first
from .matrices import Matrix, matrices_of
from .plan import Plan, plan_for
from .trade_off import Sensitivity

Progress = Callable[[str], None]


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    select: Select = None,
    times: bool = True,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure in one pass what 2:4 by magnitude does to the outputs of each layer. The model is not changed.

    Args:
        model: any module; it runs in eval mode.
        batches: as :func:`sparse24.oneshot` takes them, on the model's device.
        select: which layers, as :class:`~sparse24.Sparsifier` takes it.
        times: on a CPU, time each layer on the calls of the first batch, dense and compressed, as
            ``to_sparse(example_inputs=...)`` does. Without times a layer's saving is taken to be the number
            of its multiply-adds.
        progress: told of each batch, and of each layer that is timed; the logger "sparse24" is by default.

    Returns:
        A report with errors; ``skip(budget)`` names layers to keep dense, ``trade_off()`` and ``plot(path)``
        show what that costs.

    Raises:
        TypeError: no module, or a batch of another kind.
        ValueError: no batches, or the model cannot be called with them; weights or outputs with NaN or Inf.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sensitivity needs a torch.nn.Module, not {type(model).__name__}")
    kept, said = checked_batches(batches), progress or logged
    refuse_sharded(model, "sensitivity")
    network = unwrap(model)
    plan = plan_for(network, select, (), None)
    seen = {name: _Seen() for name in plan.layers}
    with quiet(network), torch.no_grad():
        run_first(network, kept[0])  # a clear error where the model cannot be called
        with _watched(plan, seen):
            for number, batch in enumerate(kept):
                run_batch(network, batch)
                said(f"sensitivity: batch {number + 1} of {len(kept)}")
        measured, whole = _times(network, plan, kept[0], said) if times else ({}, math.nan)
    for name, each in seen.items():
        if not math.isfinite(each.lost) or not math.isfinite(each.size):
            raise ValueError(f"the outputs of {name} hold NaN or Inf: calibrate on batches without them")
    reached = {name: each for name, each in seen.items() if each.times}
    errors = {name: each.error for name, each in reached.items()}
    if measured:
        costs = {n: measured[n].dense - measured[n].sparse if n in measured else 0.0 for n in errors}
    else:
        costs = {name: float(each.operations) for name, each in reached.items()}
    rows = [*_rows(plan, errors, measured), *plan.left]
    order = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    rows.sort(key=lambda row: order.get(row.name, len(order)))
    return Sensitivity(tuple(rows), "measured", errors, measured, whole, costs)


@dataclasses.dataclass
class _Seen:
    """What was seen of a layer."""

    lost: float = 0.0  #: squared error of its outputs
    size: float = 0.0  #: squared size of them
    times: int = 0
    operations: int = 0

    @property
    def error(self) -> float:
        return self.lost / self.size if self.size > 0 else 0.0


@contextmanager
def _watched(plan: Plan, seen: dict[str, _Seen]) -> Iterator[None]:
    """Every call of a layer is made once more with its weights pruned, and the outputs compared."""
    again: set[str] = set()

    def hook(name: str, matrices: Sequence[Matrix]) -> Callable[..., None]:
        def compare(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if name in again:
                return
            again.add(name)
            try:
                with _pruned(matrices):
                    forward: Callable[..., Any] = type(layer).forward
                    other = main_output(forward(layer, *args, **kwargs))
            finally:
                again.discard(name)
            dense, own = main_output(output), seen[name]
            own.lost += float((dense.float() - other.float()).square().sum())
            own.size += float(dense.float().square().sum())
            own.times += 1
            rows = matrices[0].parameter.shape[0 if matrices[0].kind != "conv1d" else 1]
            own.operations += sum(m.parameter[m.rows].numel() for m in matrices) * (
                dense.numel() // max(rows, 1)
            )

        return compare

    handles = []
    for name, layer in plan.layers.items():
        matrices = [m for m in matrices_of(name, layer) if m.name in plan.parameters]
        handles.append(layer.register_forward_hook(hook(name, matrices), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _pruned(matrices: Sequence[Matrix]) -> Iterator[None]:
    """The weights pruned by magnitude, and afterwards bit for bit as before."""
    parameters = {id(m.parameter): m.parameter for m in matrices}
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    try:
        for matrix in matrices:
            weight = matrix.read()
            matrix.write(torch.where(magnitude_mask(weight), weight, 0.0))
        yield
    finally:
        for key, parameter in parameters.items():
            parameter.copy_(before[key])


def _times(model: nn.Module, plan: Plan, batch: Any, said: Progress) -> tuple[dict[str, Pair], float]:
    """Seconds of each layer's calls in a batch, dense and compressed, and of the dense network; CPU only."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        return {}, math.nan
    chooser = Chooser(sum(p.nbytes for p in model.parameters()))
    seen = record(model, plan.layers, calls_of([tuple(batch) if isinstance(batch, list) else batch]))
    found = {}
    for name, layer in plan.layers.items():
        twin = _twin(name, layer, plan)
        if not seen[name] or twin is None:
            continue
        said(f"sensitivity: times of {name}")
        pairs = [(chooser.time(twin, call), count) for call, count in seen[name].items()]
        found[name] = Pair(sum(p.dense * n for p, n in pairs), sum(p.sparse * n for p, n in pairs))
    whole = interleaved_medians([lambda: run_batch(model, batch)], seconds=0.5, min_rounds=3)[0]
    return found, whole


def _twin(name: str, layer: nn.Module, plan: Plan) -> nn.Module | None:
    """A pruned copy of a layer; ``None``: it cannot be compressed, and so saves nothing."""
    kinds = nn.Linear | nn.Conv2d | nn.Conv3d | nn.MultiheadAttention
    if stays_dense(layer) or not (isinstance(layer, kinds) or is_transposed_linear(layer)):
        return None
    twin = copy.deepcopy(layer)
    for matrix in (m for m in matrices_of(name, twin) if m.name in plan.parameters):
        weight = matrix.read()
        matrix.write(torch.where(magnitude_mask(weight), weight, 0.0))
    return None if why_not_sparse(twin, None) else twin


def _rows(plan: Plan, errors: dict[str, float], times: dict[str, Pair]) -> Iterator[Row]:
    for name, layer in plan.layers.items():
        for parameter_name in dict.fromkeys(m.name for m in matrices_of(name, layer)):
            if parameter_name not in plan.parameters:
                continue
            weight = next(m.parameter for m in matrices_of(name, layer) if m.name == parameter_name)
            reason = "no batch reached it"
            if name in errors:
                reason = f"output error {errors[name]:.2g}"
            if name in times:
                pair = times[name]
                reason += f"; dense {in_units(pair.dense)}, sparse {in_units(pair.sparse)}"
            size = weight.numel() * weight.element_size()
            yield Row(
                parameter_name,
                type(layer).__name__,
                tuple(weight.shape),
                name in errors,
                reason,
                1.0,
                size,
                size,
            )
