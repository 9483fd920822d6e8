"""Permute the channels of a network so that 2:4 keeps more of its weights; its outputs stay the same."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ... import ops
from ..prunable import Candidate, find_candidates, layer_at, unwrap
from ..rules import rule_of
from ..running import quiet
from ..selection import Select, chosen
from ..sharding import refuse_flat, refuse_sharded
from .capture import RefusedError, capture, training
from .channels import Channels, Solution
from .outputs import Outputs, difference, outputs_of, tolerance_of
from .reordered import Reordered
from .report import PermutationReport, PermutedRow
from .scores import Score, check_score, score_of
from .search import Outcome, Target, axes_of_inputs, matrix_of, moved, search
from .walk import Axis, Walk


def permute_network(
    model: nn.Module,
    example_inputs: Any,
    *,
    score: Score = "magnitude",
    select: Select = None,
    names: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[PermutationReport, Reordered]:
    """What :func:`sparse24.permute` does, for a score that needs no batches; and how to take it back.

    Args:
        names: parameters that will be pruned, with the dim of their input channels each; ``None``: ``select``
            says.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"permute needs a torch.nn.Module, not {type(model).__name__}")
    check_score(score)
    if not isinstance(example_inputs, Tensor | Mapping | tuple | list) or len(example_inputs) == 0:
        given = (
            type(example_inputs).__name__
            if not isinstance(example_inputs, Tensor | Mapping | tuple | list)
            else "none"
        )
        raise ValueError(
            "permute needs example_inputs: a tensor, a tuple of positional arguments or a mapping of named "
            f"ones, not {given}"
        )
    refuse_flat(model)
    refuse_sharded(model, "permute")
    network = unwrap(model)
    candidates = [c for c in find_candidates(network) if not c.alias_of]
    if names is None:
        wanted, obstacles = _wanted(network, candidates, select)
    else:
        wanted, obstacles = dict(names), {}
    weights = {name: _named(network, name) for name in wanted}
    # Several searches in a row ask for the scores of one weight; those of all would be another network.
    scores = lru_cache(maxsize=1)(lambda name: score_of(score, weights[name], name))
    targets = [Target(name, weights[name], dim, partial(scores, name)) for name, dim in wanted.items()]
    for target in targets:
        target.score()  # refused before anything is done
    candidates = [replace(c, blocked=c.blocked or obstacles.get(c.name, "")) for c in candidates]
    return _Permutation(network, example_inputs, candidates, targets, seed).run()


def _wanted(
    model: nn.Module, candidates: Sequence[Candidate], select: Select
) -> tuple[dict[str, int], dict[str, str]]:
    """The weights that will be pruned, with their dims of input channels; what is in the way of others."""
    selected, rule = chosen(model, candidates, select), rule_of("2:4")
    wanted, obstacles = {}, {}
    for candidate in candidates:
        weight = _parameter(model, candidate.name)
        if candidate.name not in selected or candidate.blocked or weight is None:
            continue
        if obstacle := rule.obstacle(weight, candidate.dim):
            obstacles[candidate.name] = obstacle
        else:
            wanted[candidate.name] = candidate.dim
    return wanted, obstacles


def _named(model: nn.Module, name: str) -> Tensor:
    weight = _parameter(model, name)
    if weight is None:
        raise ValueError(f"the model has no parameter called {name!r}")
    return weight


def _parameter(model: nn.Module, name: str) -> Tensor | None:
    layer, _, attribute = name.rpartition(".")
    owner = layer_at(model, layer)
    return None if owner is None else owner._parameters.get(attribute)


class _Kept(NamedTuple):
    """What 2:4 keeps of a weight's score before and after, of all of it."""

    before: float
    after: float
    whole: float


class _Found(NamedTuple):
    """What is known of a network's channels."""

    channels: Channels
    solution: Solution
    outcome: Outcome


class _Permutation:
    """One run over a network."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        candidates: Sequence[Candidate],
        targets: Sequence[Target],
        seed: int,
    ) -> None:
        self._model, self._example = model, example
        self._candidates, self._targets, self._seed = candidates, targets, seed
        self._axes: dict[int, list[Axis]] = {}
        self._reached: set[int] = set()

    def run(self) -> tuple[PermutationReport, Reordered]:
        with quiet(self._model), torch.no_grad():
            before = self._first_outputs()
            try:
                captured = capture(self._model, self._example)
            except RefusedError as error:
                return self._nothing(f"no graph of it holds for other inputs, too: {error}"), Reordered()
            walk = Walk(self._model)
            walk.run(captured)
            self._walk_training(walk)
            self._axes, self._reached = walk.axes, walk.reached
            solution = walk.channels.solve()
            outcome = search(self._targets, walk.axes, solution, self._seed)
            found = _Found(walk.channels, solution, outcome)
            if not outcome.orders:
                return self._report(found, self._kept(solution, outcome), "", 0.0), Reordered()
            return self._apply(before, found, tolerance_of(captured, before))

    def _first_outputs(self) -> Outputs:
        try:
            return outputs_of(self._model, self._example)
        except (
            TypeError,
            IndexError,
            KeyError,
            RuntimeError,
            ValueError,
            AttributeError,
            NotImplementedError,
        ) as error:
            raise ValueError(
                f"the model does not run on example_inputs: {type(error).__name__}: {error}. They are a "
                "tensor, a tuple of positional arguments or a mapping of named ones, as the model takes them"
            ) from error

    def _walk_training(self, walk: Walk) -> None:
        """What only training runs (auxiliary heads) reads channels, too."""
        if all(id(p) in walk.reached for p in self._model.parameters()):
            return
        with training(self._model), contextlib.suppress(RefusedError):
            walk.run(capture(self._model, self._example))

    def _apply(self, before: Outputs, found: _Found, tolerance: float) -> tuple[PermutationReport, Reordered]:
        _, solution, outcome = found
        kept = self._kept(solution, outcome)  # scores are of the weights as they are now
        done = Reordered()
        try:
            for axis in (axis for axes in self._axes.values() for axis in axes):
                done.reorder(axis, moved(axis, solution, outcome.orders))
            apart = difference(before, outputs_of(self._model, self._example, doubled=before.doubled))
        except BaseException:
            done.undo()
            raise
        if not apart <= tolerance:
            done.undo()
            limit = f"more than {tolerance:.0e}: all is as it was"
            why = f"the outputs differed by {apart:.1e} of their size, {limit}"
            return self._nothing(why), done
        where = "float64" if before.doubled else "the network's dtype"
        remark = f"outputs differ by {apart:.1e} of their size ({where})"
        return self._report(found, kept, remark, apart), done

    # ---- the report ----------------------------------------------------------------------------------

    def _kept(self, solution: Solution, outcome: Outcome) -> dict[str, _Kept]:
        found = {}
        for target in self._targets:
            numbers = [0.0, 0.0, 0.0]
            axes = axes_of_inputs(target, self._axes)
            channels = torch.arange(target.weight.shape[target.dim]).numpy()
            for axis in axes or [Axis(target.weight, target.dim, channels)]:
                matrix = matrix_of(target, axis)
                order = moved(axis, solution, outcome.orders) if axes else channels
                before = after = ops.kept_sum(matrix)
                if (order != np.arange(len(order))).any():
                    after = ops.kept_sum(matrix, torch.from_numpy(order))
                whole = float(matrix.sum(dtype=torch.float64))
                numbers = [a + b for a, b in zip(numbers, (before, after, whole), strict=True)]
            found[target.name] = _Kept(*numbers)
        return found

    def _report(
        self, found: _Found, kept: Mapping[str, _Kept], remark: str, apart: float
    ) -> PermutationReport:
        return self._tabled(kept, {t.name: self._reason(t, found) for t in self._targets}, remark, apart)

    def _nothing(self, why: str) -> PermutationReport:
        """A report of a network that was left as it is."""
        self._axes = {}
        solution, outcome = Channels().solve(), Outcome({}, {})
        return self._tabled(self._kept(solution, outcome), {t.name: why for t in self._targets}, why, 0.0)

    def _tabled(
        self, kept: Mapping[str, _Kept], reasons: Mapping[str, str], remark: str, apart: float
    ) -> PermutationReport:
        rows = []
        for candidate in self._candidates:
            weight = _parameter(self._model, candidate.name)
            shape = () if weight is None or nn.parameter.is_lazy(weight) else tuple(weight.shape)
            size = 0 if not shape or weight is None else weight.numel() * weight.element_size()
            numbers = kept.get(candidate.name)
            if numbers is None:
                why = candidate.blocked or candidate.dense or candidate.skipped or "left out by select"
                share = (float("nan"), float("nan"))
                reason = f"will not be pruned: {why}"
            else:
                whole = numbers.whole or 1.0
                share = (numbers.before / whole, numbers.after / whole)
                reason = reasons[candidate.name]
            done = numbers is not None and not reason
            rows.append(
                PermutedRow(
                    candidate.name, candidate.kind, shape, done, reason, share[1], size, size, share[0]
                )
            )
        sums = [sum(each[i] for each in kept.values()) for i in range(3)]
        return PermutationReport(
            tuple(rows), "permuted", sums[0], sums[1], sums[2], difference=apart, remark=remark
        )

    def _reason(self, target: Target, found: _Found) -> str:
        """Why the input channels of a target were left; empty if they were permuted."""
        channels, solution, outcome = found
        axes = axes_of_inputs(target, self._axes)
        if not axes:
            reached = id(target.weight) in self._reached
            return "it has one input channel" if reached else "the example inputs do not reach it"
        classes: set[int] = set()
        fixed: list[int] = []
        for axis in axes:
            classes |= set(solution.class_of[axis.elements].tolist())
            fixed += solution.reason_of[axis.elements[solution.class_of[axis.elements] < 0]].tolist()
        if classes & outcome.orders.keys():
            return ""
        searched = [outcome.reasons[number] for number in sorted(classes) if number in outcome.reasons]
        stated = [channels.reasons[index] for index in fixed if index >= 0]
        if searched:
            return searched[0]
        if stated:
            return f"its input channels stay: {max(dict.fromkeys(stated), key=stated.count)}"
        return "no eight of its input channels in groups of four may change places"
