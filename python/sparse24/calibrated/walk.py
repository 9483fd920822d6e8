"""One pass over the blocks of a network: each is pruned with the inputs that those before it now give."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..report import Row
from .blocks import Call, Trace, calls_of, main_output, reached_blocks
from .journal import Done, Journal
from .matrices import Matrix, input_rows, matrices_of
from .methods import output_error, prune_matrix
from .moments import Moments
from .plan import Plan, Way
from .reconstruct import reconstruct as train_block
from .rows import Outcome, as_row, merged, row_of
from .shelf import Several, Shelf
from .together import Together
from .whole import train_whole

Progress = Callable[[str], None]


class _Inputs(NamedTuple):
    """The calls that a block gets in the pruned network, and in the dense one as far as that is known."""

    pruned: Several
    dense: Several


class Walk:
    """Blocks of ``model``, in the order in which it calls them.

    Args:
        before: the parameters as they were, by name.
        together: the processes that hold the model in shards; ``None``: this one has all of it.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        plan: Plan,
        way: Way,
        *,
        shelf: Shelf,
        journal: Journal,
        before: Mapping[str, Callable[[], Tensor]],
        together: Together | None = None,
    ) -> None:
        self.model, self.batches, self.plan, self.way = model, batches, plan, way
        self.shelf, self.journal, self.before, self.together = shelf, journal, before, together
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.masks: dict[str, Tensor] = {}  # whole, of the parameters that are pruned

    def run(self, parts: Mapping[str, nn.Module], progress: Progress) -> list[Row]:
        """Prune the blocks ``parts``, or what is called of them; the rows of their weights."""
        parts, seen = reached_blocks(self.model, parts, self.batches, self.plan.layers.values())
        if self.together is not None:
            self.together.settle()
            self.together.refuse_difference("blocks, in the order of their calls", (seen.order, seen.times))
        self._shared = _in_several(parts.values())
        rows: list[Row] = []
        unreached: list[str] = []
        inputs: _Inputs | None = None
        begin, resumed = time.perf_counter(), len(self.journal.done)
        for number, name in enumerate(seen.order):
            block = parts[name]
            if number < resumed:
                done = self._taken_up(number, name, block)
            else:
                if inputs is None or name not in seen.follows:
                    inputs = self._caught(number, name, parts, seen)
                done, inputs = self._prune_block(name, block, seen.times[name] == 1, inputs)
            rows += done.rows
            unreached += done.unreached
            if number >= resumed:
                each = (time.perf_counter() - begin) / (number + 1 - resumed)
                left = each * (len(seen.order) - number - 1)
                progress(f"{name}: block {number + 1} of {len(seen.order)}, {left:.0f} s left")
            else:
                progress(f"{name}: block {number + 1} of {len(seen.order)}, done before")
        missed = [layer for name in parts if name not in seen.order for layer in self._inside(parts[name])]
        return merged([*rows, *(row for name in (*unreached, *missed) for row in self._not_reached(name))])

    def train_together(
        self, parts: Mapping[str, nn.Module], targets: Several, progress: Progress
    ) -> Outcome | None:
        """Train the parameters of all blocks on what the dense network gave for the batches."""
        inside = {id(p) for block in parts.values() for p in block.parameters()}
        masks = {id(p): self.masks[n] for n, p in self.model.named_parameters() if n in self.masks}
        fixed = {id(p) for p in self.model.parameters()} - inside
        return train_whole(
            self.model, self.batches, targets, self.way, masks=masks, fixed=fixed, said=progress
        )

    def _prune_block(
        self, name: str, block: nn.Module, is_called_once: bool, inputs: _Inputs
    ) -> tuple[Done, _Inputs]:
        """Prune and train one block; what was done, and the inputs of a block that follows it."""
        targets = self._outputs(block, inputs.dense) if self.way.steps else Several()
        kept, remarks, unreached = self._prune(block, inputs.pruned)
        self._note_masks(kept)
        outcome: Outcome | None = None
        if self.way.steps and kept and is_called_once and isinstance(targets[0], Tensor):
            masks = {
                id(p): self.masks[n] for p in block.parameters() if (n := self.names[id(p)]) in self.masks
            }
            outcome = train_block(block, inputs.pruned, targets, self.way, masks=masks, fixed=self._shared)
        rows = [row_of(m, mask, remark, outcome) for (m, mask), remark in zip(kept, remarks, strict=True)]
        mine = {self.names[id(p)]: p for p in block.parameters()}
        pruned = {n: self.masks[n] for n in mine if n in self.masks}
        done = Done(name, rows, unreached)
        self.journal.add(done, mine, pruned)
        outputs = self._outputs(block, inputs.pruned)
        return done, _Inputs(self._handed_on(inputs.pruned, outputs), self._handed_on(inputs.dense, targets))

    def _taken_up(self, number: int, name: str, block: nn.Module) -> Done:
        """A block that an earlier run has pruned."""
        done = self.journal.done[number]
        assert done.block == name  # the digest of the run covers the model
        tensors, masks = self.journal.tensors(number)
        for parameter in block.parameters():
            parameter.copy_(tensors[self.names[id(parameter)]])
        self.masks |= {n: mask.to(self.model.get_parameter(n).device) for n, mask in masks.items()}
        return done

    def _caught(self, number: int, name: str, parts: Mapping[str, nn.Module], seen: Trace) -> _Inputs:
        """The inputs of a block, from runs of the network up to it.

        Where it follows others that an earlier run has pruned, the dense inputs come from their dense
        weights, as they would have without the interruption.
        """
        once = (
            seen.times[name] == 1 and self.together is None
        )  # a forward that is left half-way stays gathered
        calls = self.shelf.keep_all(calls_of(self.model, parts[name], self.batches, once=once))
        if self.together is not None:
            self.together.settle()
        if not self.way.steps:
            return _Inputs(calls, Several())
        chain = []
        while name in seen.follows:
            name = seen.follows[name]
            chain.append(parts[name])
        if not chain:
            return _Inputs(calls, calls)
        parameters = {p for block in chain for p in block.parameters()}
        pruned = {p: p.detach().clone() for p in parameters}
        try:
            for parameter in parameters:
                parameter.copy_(self.before[self.names[id(parameter)]]())
            block = parts[seen.order[number]]
            return _Inputs(calls, self.shelf.keep_all(calls_of(self.model, block, self.batches, once=once)))
        finally:
            for parameter, numbers in pruned.items():
                parameter.copy_(numbers)

    def _outputs(self, block: nn.Module, calls: Iterable[Call]) -> Several:
        with self._callable_alone(block):
            return self.shelf.keep_all(main_output(block(*call.args, **call.kwargs)) for call in calls)

    def _callable_alone(self, block: nn.Module) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.together is None else self.together.callable_alone(block)

    def _handed_on(self, calls: Iterable[Call], outputs: Iterable[Any]) -> Several:
        """The next block's calls, where it takes this one's outputs and its other arguments."""
        return self.shelf.keep_all(
            Call((output, *call.args[1:]), call.kwargs) if call.args else call
            for call, output in zip(calls, outputs, strict=False)
        )

    def _prune(
        self, block: nn.Module, calls: Sequence[Call]
    ) -> tuple[list[tuple[Matrix, Tensor]], list[str], list[str]]:
        """Prune the layers of a block: matrices with masks, what became of each, layers not reached."""
        layers = {
            name: self.plan.layers[name]
            for name in self._inside(block)
            if not all(m.name in self.masks for m in self._matrices(name))
        }
        moments = self._moments(block, layers, calls)
        if self.together is not None:
            moments = self.together.sum_up(moments)
        kept, remarks, unreached = [], [], []
        for name, layer in layers.items():
            if name not in moments:
                unreached.append(name)
                continue
            for matrix, stored in zip(matrices_of(name, layer), moments[name], strict=True):
                if matrix.name not in self.plan.parameters or matrix.name in self.masks:
                    continue
                mask, error = self._prune_matrix(matrix, stored)
                kept.append((matrix, mask))
                remarks.append(f"output error {error:.2g}")
        return kept, remarks, unreached

    def _prune_matrix(self, matrix: Matrix, stored: Moments) -> tuple[Tensor, float]:
        """Prune one matrix; its mask, and the error of its outputs over their size."""
        stored.check(matrix.name)
        weight, moments = matrix.read(), stored.second
        left = stored.covariance if self.way.bias and matrix.bias is not None else None
        own = self.plan.mask_of(matrix)
        mask, updated = prune_matrix(weight, moments, self.way.method, self.way.refit, own, left=left)
        if self.together is not None:
            mask, updated = self.together.agreed(mask), self.together.agreed(updated)
        matrix.write(updated)
        if left is not None and stored.rows:
            change = (weight - updated) @ stored.mean
            matrix.shift(change if self.together is None else self.together.agreed(change))
        return mask, output_error(weight, updated, moments, left)

    def _note_masks(self, kept: Sequence[tuple[Matrix, Tensor]]) -> None:
        for matrix, part in kept:
            shape, device = matrix.parameter.shape, part.device
            whole = self.masks.setdefault(matrix.name, torch.ones(shape, dtype=torch.bool, device=device))
            target = whole.t() if matrix.kind == "conv1d" else whole
            mask = matrix.to_parameter(part)
            target[matrix.rows] = mask.t() if matrix.kind == "conv1d" else mask

    def _moments(
        self, block: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call]
    ) -> dict[str, list[Moments]]:
        """Moments of the inputs of every matrix; layers that are given one tensor share them."""
        found: dict[str, list[Moments]] = {}
        shared: dict[int, tuple[Any, list[Moments]]] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                first = args[0] if args else next(iter(kwargs.values()))
                sharing = not isinstance(layer, nn.MultiheadAttention | nn.Conv1d | nn.Conv2d | nn.Conv3d)
                known = shared.get(id(first)) if sharing else None
                if known is not None and found.get(name, known[1]) is known[1]:
                    found[name] = known[1]
                    return
                rows = input_rows(layer, args, kwargs)
                own = found.setdefault(name, [Moments(part.shape[1], part.device) for part in rows])
                for moments, part in zip(own, rows, strict=True):
                    moments.add(part)
                if sharing:
                    shared[id(first)] = (first, own)

            return hook

        handles = [layer.register_forward_pre_hook(note(n), with_kwargs=True) for n, layer in layers.items()]
        try:
            with self._callable_alone(block):
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

    def _matrices(self, name: str) -> list[Matrix]:
        """The matrices of a layer that are to be pruned."""
        return [m for m in matrices_of(name, self.plan.layers[name]) if m.name in self.plan.parameters]

    def _not_reached(self, name: str) -> list[Row]:
        reason = "no calibration batch reached it: left dense"
        return [as_row(matrix, 1.0, done=False, reason=reason) for matrix in self._matrices(name)]


def _in_several(blocks: Iterable[nn.Module]) -> set[int]:
    """Parameters, by id, that more than one block has: what one of them learns would change the others."""
    counts = Counter(id(p) for block in blocks for p in block.parameters())
    return {key for key, count in counts.items() if count > 1}
