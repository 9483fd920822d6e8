"""``sparse24.oneshot``: prune a trained network with some unlabelled batches, without training it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..pruning.prunable import find_candidates, layer_at, unwrap
from ..pruning.selection import Select, chosen
from ..report import Report, Row
from .blocks import Call, Trace, calls_of, find_blocks, main_output, quiet, trace
from .matrices import Matrix, input_rows, matrices_of
from .methods import METHODS, output_error, prune_matrix
from .moments import Moments
from .reconstruct import reconstruct as train_block
from .rows import as_row, left_row, merged, row_of

Progress = Callable[[str], None]


class _Plan(NamedTuple):
    """What is to be pruned: layers by name, with the names of their parameters that are."""

    layers: dict[str, nn.Module]
    parameters: set[str]
    left: list[Row]


def oneshot(
    model: nn.Module,
    batches: Iterable[Any],
    method: str = "sparsegpt",
    *,
    refit: int = 10,
    reconstruct: str | None = "component",
    steps: int = 200,
    select: Select = None,
    blocks: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Prune ``model`` to 2:4 in place, calibrated on unlabelled batches: kept weights make up for the others.

    Block by block, each with the inputs that the pruned blocks before it give: masks and weights by
    ``method``, then ``refit`` steps of least squares for every matrix, then the block is trained on the
    outputs of the dense one.

    Args:
        model: any module; it is run in eval mode, and left in the mode that it had.
        batches: at least one: a tensor, a tuple of arguments or a mapping of keyword arguments each, on the
            model's device. Looked through once, and kept.
        method: "sparsegpt", "wanda", "ria", "admm" or "magnitude" (which needs no calibration for its masks).
        refit: steps of conjugate gradients for the kept weights of each matrix; 0: none.
        reconstruct: "component": train each block on the outputs of the dense one; ``None``: do not.
        steps: of Adam for each block.
        select: which layers, as :class:`~sparse24.Sparsifier` takes it.
        blocks: names of the blocks; ``None``: found from the module tree.
        progress: told of each block, with the time that is left.

    Returns:
        One row a weight; what was pruned has the error of its outputs, over their size, as the remark.

    Raises:
        TypeError: no module, or a layer was selected that cannot be calibrated.
        ValueError: an unknown method, no batches, inputs with NaN or Inf, a block that does not exist. The
            model is as it was then, as it is after an interruption.
    """
    _check(model, method, refit, reconstruct, steps)
    kept = list(batches)
    if not kept:
        raise ValueError("oneshot needs at least one batch of inputs to calibrate on, and got none")
    network = unwrap(model)
    plan = _plan(network, select)
    names = find_blocks(network, plan.layers.values()) if blocks is None else list(blocks)
    parts = {name: _block(network, name) for name in names}
    said = progress if progress is not None else _silent
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    walk = _Walk(network, kept, plan, _Way(method, refit, steps if reconstruct else 0))
    try:
        with quiet(network), torch.no_grad():
            rows = walk.run(parts, said)
    except BaseException:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(before[name])
        raise
    order = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    return Report(
        tuple(sorted([*rows, *plan.left], key=lambda row: order.get(row.name, len(order)))), "pruned"
    )


def _silent(_: str) -> None:
    pass


def _check(model: nn.Module, method: str, refit: int, reconstruct: str | None, steps: int) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"oneshot needs a torch.nn.Module, not {type(model).__name__}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if reconstruct not in ("component", None):
        raise ValueError(f"reconstruct must be 'component' or None, not {reconstruct!r}")
    if refit < 0 or steps < 1:
        raise ValueError(f"refit must be 0 or more and steps 1 or more, not {refit} and {steps}")


def _block(model: nn.Module, name: str) -> nn.Module:
    found = layer_at(model, name)
    if found is None:
        raise ValueError(f"the model has no block called {name!r}")
    return found


def _plan(model: nn.Module, select: Select) -> _Plan:
    candidates = find_candidates(model)
    names = chosen(model, candidates, select)
    layers: dict[str, nn.Module] = {}
    parameters, left = set(), []
    for candidate in candidates:
        if candidate.alias_of:
            continue
        if candidate.name not in names or candidate.blocked:
            left.append(left_row(model, candidate))
            continue
        layer_name = candidate.module_name
        if layer_name.endswith(".out_proj"):
            owner = layer_at(model, layer_name.removesuffix(".out_proj"))
            if isinstance(owner, nn.MultiheadAttention):
                layer_name = layer_name.removesuffix(".out_proj")
        layer = layer_at(model, layer_name)
        assert layer is not None
        matrices_of(layer_name, layer)  # TypeError: it cannot be calibrated
        layers[layer_name] = layer
        parameters.add(candidate.name)
    return _Plan(layers, parameters, left)


class _Way(NamedTuple):
    """How matrices are pruned, and blocks trained: 0 steps: they are not."""

    method: str
    refit: int
    steps: int


class _Walk:
    """One pass over the blocks of a network."""

    def __init__(self, model: nn.Module, batches: Sequence[Any], plan: _Plan, way: _Way) -> None:
        self.model, self.batches, self.plan = model, batches, plan
        self.method, self.refit, self.steps = way
        self.unreached: list[str] = []  # layers

    def run(self, parts: Mapping[str, nn.Module], progress: Progress) -> list[Row]:
        seen = trace(self.model, parts, self.batches[0])
        rows: list[Row] = []
        calls: list[Call] = []
        dense: list[Call] = []
        begin = time.perf_counter()
        for done, name in enumerate(seen.order):
            block = parts[name]
            calls, dense = self._calls(name, block, seen, calls, dense)
            targets = self._outputs(block, dense) if self.steps else []
            kept, remarks = self._prune(block, calls)
            outcome = None
            if self.steps and kept and seen.times[name] == 1 and isinstance(targets[0], Tensor):
                outcome = train_block(block, calls, targets, kept, self.steps)
            rows += [
                row_of(m, mask, remark, outcome) for (m, mask), remark in zip(kept, remarks, strict=True)
            ]
            dense = [_handed_on(call, target) for call, target in zip(dense, targets, strict=False)]
            calls = [_handed_on(c, out) for c, out in zip(calls, self._outputs(block, calls), strict=True)]
            left = (time.perf_counter() - begin) / (done + 1) * (len(seen.order) - done - 1)
            progress(f"{name}: block {done + 1} of {len(seen.order)}, {left:.0f} s left")
        missed = [layer for name in parts if name not in seen.order for layer in self._inside(parts[name])]
        return merged(
            [*rows, *(row for name in (*self.unreached, *missed) for row in self._not_reached(name))]
        )

    def _calls(
        self, name: str, block: nn.Module, seen: Trace, calls: list[Call], dense: list[Call]
    ) -> tuple[list[Call], list[Call]]:
        """What the block gets in the pruned network, and in the dense one as far as that is known."""
        if name in seen.follows:
            return calls, dense if self.steps else []
        found = calls_of(self.model, block, self.batches, once=seen.times[name] == 1)
        return found, list(found) if self.steps else []

    def _outputs(self, block: nn.Module, calls: Sequence[Call]) -> list[Any]:
        return [main_output(block(*call.args, **call.kwargs)) for call in calls]

    def _prune(
        self, block: nn.Module, calls: Sequence[Call]
    ) -> tuple[list[tuple[Matrix, Tensor]], list[str]]:
        """Prune the layers of a block; their matrices with masks, and what became of each."""
        layers = {name: self.plan.layers[name] for name in self._inside(block)}
        moments = self._moments(block, layers, calls)
        kept, remarks = [], []
        for name, layer in layers.items():
            if name not in moments:
                self.unreached.append(name)
                continue
            for matrix, stored in zip(matrices_of(name, layer), moments[name], strict=True):
                if matrix.name not in self.plan.parameters:
                    continue
                weight, hessian = matrix.read(), stored.mean(matrix.name)
                mask, updated = prune_matrix(weight, hessian, self.method, self.refit)
                error = output_error(weight, updated, hessian)
                matrix.write(updated)
                kept.append((matrix, mask))
                remarks.append(f"output error {error:.2g}")
        return kept, remarks

    def _moments(
        self, block: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call]
    ) -> dict[str, list[Moments]]:
        """Second moments of the inputs of every matrix; layers that are given one tensor share them."""
        found: dict[str, list[Moments]] = {}
        shared: dict[int, tuple[Any, list[Moments], list[Tensor]]] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                first = args[0] if args else next(iter(kwargs.values()))
                sharing = not isinstance(layer, nn.MultiheadAttention | nn.Conv1d | nn.Conv2d)
                known = shared.get(id(first)) if sharing else None
                if known is not None and found.get(name, known[1]) is known[1]:
                    found[name] = known[1]
                    return
                rows = input_rows(layer, args, kwargs)
                own = found.setdefault(name, [Moments(part.shape[1], part.device) for part in rows])
                for moments, part in zip(own, rows, strict=True):
                    moments.add(part)
                if sharing:
                    shared[id(first)] = (first, own, rows)

            return hook

        handles = [layer.register_forward_pre_hook(note(n), with_kwargs=True) for n, layer in layers.items()]
        try:
            for call in calls:
                shared.clear()
                block(*call.args, **call.kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _inside(self, block: nn.Module) -> list[str]:
        parts = {id(module) for module in block.modules()}
        return [name for name, layer in self.plan.layers.items() if id(layer) in parts]

    def _not_reached(self, name: str) -> list[Row]:
        reason = "no calibration batch reached it: left dense"
        return [
            as_row(matrix, 1.0, done=False, reason=reason)
            for matrix in matrices_of(name, self.plan.layers[name])
            if matrix.name in self.plan.parameters
        ]


def _handed_on(call: Call, output: Any) -> Call:
    """The next block's call, where it takes this one's output and its other arguments."""
    return Call((output, *call.args[1:]), call.kwargs) if call.args else call
