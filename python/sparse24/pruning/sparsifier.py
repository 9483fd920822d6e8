"""Prune a network, and keep it pruned while it is trained further.

    sparsifier = Sparsifier(model)
    print(sparsifier.prune())        # masks by magnitude; pruned weights become +0.0
    sparsifier.attach(optimizer)     # from now on every step leaves them at +0.0
    ...                              # the usual training loop
    sparsifier.verify()

Nothing is global: a Sparsifier knows its model and the optimizers it was attached to. Parameters are
looked up by name at every step, so the model may be moved, compiled, wrapped in
``DistributedDataParallel`` or sharded with ``fully_shard`` afterwards. The model's ``state_dict`` is
left alone; the masks have their own.

At a step, gradients of pruned weights are set to zero before the optimizer sees them, and the
weights themselves after it. Hence:

* Momentum and Adam's moments receive zeros from then on. What they held from dense training decays
  and never reaches a pruned weight; kept weights are updated exactly as without the Sparsifier.
* Gradients clipped before ``step()`` are clipped by a norm that counts the pruned entries, as in
  apex.
* An optimizer that evaluates a closure (LBFGS) computes gradients after they were masked; its
  weights are masked all the same.
* A step that ``GradScaler`` skips changes nothing.

More than 300 lines: one class, and a third of them is this contract and that of its methods.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..masks import apply_mask_
from ..report import Report, Row
from .prunable import Candidate, find_candidates, layer_at, named_layers, stored_weight, unwrap
from .rules import MaskRule, rule_of
from .sharding import local, shard_like, to_sharded

Score = str | Callable[[Tensor, str], Tensor]
Select = Callable[[str, nn.Module], bool] | Iterable[str] | None


class Sparsifier:
    """Masks for the weights of one model.

    Args:
        model: any module; ``DistributedDataParallel`` and compiled modules are looked into.
        pattern: "N:M" ("2:4" is what hardware runs), or "transposable": 2:4 along rows and columns.
        score: "magnitude", or ``score(weight, name)`` returning a non-negative tensor of the weight's
            shape, the larger the better to keep. Under ``fully_shard`` it is given the local shard.
        select: what to prune. None: every layer that can be, except output heads and weights tied to
            an embedding (see ``prunable``). Otherwise ``select(layer_name, layer)``, or names and
            ``fnmatch`` patterns of layers or parameters; it overrides those exceptions.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a bad pattern or score, or a name in ``select`` that matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        pattern: str | MaskRule = "2:4",
        score: Score = "magnitude",
        select: Select = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Sparsifier needs a torch.nn.Module, not {type(model).__name__}")
        if isinstance(score, str) and score != "magnitude":
            raise ValueError(f'score must be "magnitude" or a callable(weight, name), not {score!r}')
        if not isinstance(score, str) and not callable(score):
            raise TypeError(f'score must be "magnitude" or a callable, not {type(score).__name__}')
        self._model = unwrap(model)
        self._rule = rule_of(pattern)
        self._score = score
        self._candidates = self._find()
        self._selected = _select(self._model, self._candidates, select)
        self._masks: dict[str, Tensor] = {}
        self._attached: list[tuple[weakref.ref[Optimizer], tuple[RemovableHandle, ...]]] = []

    def _find(self) -> list[Candidate]:
        return find_candidates(self._model)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by parameter name: bool, True = kept; empty before :meth:`prune`."""
        return dict(self._masks)

    def optimizers(self) -> list[Optimizer]:
        """The optimizers that are attached and alive."""
        return [optimizer for known, _ in self._attached if (optimizer := known()) is not None]

    # ---- pruning ------------------------------------------------------------------------------------

    @torch.no_grad()
    def prune(self) -> Report:
        """Compute the masks from the weights as they are, write +0.0 over what they prune.

        May be called again, from the weights as they are then: what was pruned is not put back. All masks
        are computed before the first weight is changed.

        Returns:
            The report, with ``done`` for every pruned layer and a reason for every other.

        Raises:
            TypeError, ValueError: ``score`` returned something unfit; nothing was changed.
        """
        self._masks = self._compute_masks()
        self._mask_weights()
        return self.report()

    def _compute_masks(self) -> dict[str, Tensor]:
        masks = {}
        for candidate, weight in self._prunable():
            mask = self._rule.mask(self._scores(candidate, weight), candidate.dim)
            masks[candidate.name] = to_sharded(mask, weight)
        return masks

    def _scores(self, candidate: Candidate, weight: Tensor) -> Tensor:
        values = local(weight).detach()
        if isinstance(self._score, str):
            return values
        scores = self._score(values, candidate.name)
        if not isinstance(scores, Tensor):
            raise TypeError(f"score({candidate.name}) returned {type(scores).__name__}, not a tensor")
        if scores.shape != values.shape or scores.device != values.device:
            raise ValueError(
                f"score({candidate.name}) must be {tuple(values.shape)} on {values.device}, "
                f"not {tuple(scores.shape)} on {scores.device}"
            )
        if not scores.is_floating_point() or bool((scores < 0).any()):
            raise ValueError(
                f"score({candidate.name}) must be floating and not negative, for it is ranked by magnitude"
            )
        return scores.detach()

    def _parameter(self, name: str) -> nn.Parameter:
        path, _, attribute = name.rpartition(".")
        layer = layer_at(self._model, path)
        parameter = None if layer is None else layer._parameters.get(attribute)
        if parameter is None:
            raise ValueError(f"{name} is no longer a parameter of the model: make a new Sparsifier for it")
        return parameter

    def _prunable(self) -> Iterator[tuple[Candidate, nn.Parameter]]:
        """The weights to prune, as the model holds them now."""
        _reshard(self._model)
        for candidate in self._candidates:
            if not candidate.alias_of and not self._why_not(candidate):
                yield candidate, self._parameter(candidate.name)

    def _why_not(self, candidate: Candidate) -> str:
        """Why a weight is not to be pruned; empty if it is."""
        if candidate.blocked:
            return candidate.blocked
        if (candidate.alias_of or candidate.name) not in self._selected:
            return candidate.skipped or "not selected"
        return self._rule.obstacle(self._parameter(candidate.name), candidate.dim)

    # ---- training -----------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Enforce the masks at every step of ``optimizer``; a second call for it does nothing.

        Several optimizers may be attached, before or after :meth:`prune`.

        Raises:
            TypeError: not a ``torch.optim.Optimizer``.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"attach needs a torch.optim.Optimizer, not {type(optimizer).__name__}")
        if any(known is optimizer for known in self.optimizers()):
            return
        handles = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        )
        self._attached.append((weakref.ref(optimizer), handles))

    def detach(self) -> None:
        """Stop enforcing the masks. The masks and the zeros stay."""
        for _, handles in self._attached:
            for handle in handles:
                handle.remove()
        self._attached.clear()

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for _, parameter, mask in self._masked():
            if parameter.grad is not None:
                apply_mask_(local(parameter.grad), local(mask))

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask_weights()

    @torch.no_grad()
    def _mask_weights(self) -> None:
        for _, parameter, mask in self._masked():
            apply_mask_(local(parameter), local(mask))

    def _masked(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Names, pruned parameters and their masks."""
        _reshard(self._model)
        for name in self._masks:
            parameter = self._parameter(name)
            yield name, parameter, self._mask_of(name, parameter)

    def _mask_of(self, name: str, parameter: Tensor) -> Tensor:
        """The mask of a parameter, which it follows to another device or sharding."""
        mask = self._masks[name]
        if mask.shape != parameter.shape:
            raise ValueError(
                f"{name} is now {tuple(parameter.shape)}, its mask is {tuple(mask.shape)}: prune again"
            )
        self._masks[name] = shard_like(mask, parameter)
        return self._masks[name]

    # ---- checks and state ---------------------------------------------------------------------------

    @torch.no_grad()
    def verify(self) -> Report:
        """Check that every pruned weight is zero.

        Returns:
            The rows of the layers that were checked.

        Raises:
            ValueError: nothing was pruned yet, or a pruned weight is not zero: its layer, its group and
                its value are named.
        """
        if not self._masks:
            raise ValueError("nothing to verify: call prune() or load_state_dict() first")
        dims = {candidate.name: candidate.dim for candidate in self._candidates}
        for name, parameter, mask in self._masked():
            weight = local(parameter)
            wrong = ((weight != 0) & ~local(mask)).nonzero()
            if len(wrong):
                index = wrong[0].tolist()
                group = index[dims[name]] // self._rule.group.m
                raise ValueError(
                    f"{name}{index} is {weight[tuple(index)].item()}, but it was pruned "
                    f"(group {group} along dim {dims[name]}; {len(wrong)} such weights in this layer)"
                )
        rows = self.report().rows
        return Report(tuple(row for row in rows if row.done), action="pruned")

    def report(self) -> Report:
        """One row a weight, before or after :meth:`prune`.

        ``kept`` counts what is not zero now (of the local shard under ``fully_shard``). Pruning leaves
        weights dense in memory, so ``bytes_after`` equals ``bytes_before``; a tensor that two layers
        share is counted with the first.
        """
        _reshard(self._model)
        counted: set[int] = set()
        return Report(tuple(self._row(c, counted) for c in self._candidates), action="pruned")

    def _row(self, candidate: Candidate, counted: set[int]) -> Row:
        weight = stored_weight(layer_at(self._model, candidate.module_name), candidate.attribute)
        done = (candidate.alias_of or candidate.name) in self._masks
        reason = self._why_not(candidate)
        if not reason and candidate.alias_of:
            reason = f"shares its weight with {candidate.alias_of}"
        elif not reason and weight is not None:
            reason = self._rule.remark(weight, candidate.dim) if done else "not pruned yet: call prune()"
        row = _row_of(candidate, weight, done, reason)
        if id(weight) in counted:
            return dataclasses.replace(row, bytes_before=0, bytes_after=0)
        counted.add(id(weight))
        return row

    def state_dict(self) -> dict[str, Any]:
        """``{"pattern": str, "masks": {parameter name: bool tensor}}``; DTensors where weights are."""
        return {"pattern": str(self._rule), "masks": dict(self._masks)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the masks of a checkpoint. Weights are not touched: load the model's own state too.

        With the states of model, optimizer and Sparsifier loaded, training goes on bit for bit as if it
        had not been interrupted. A whole mask is cut to the local shard of a sharded weight.

        Raises:
            TypeError: not a state of a Sparsifier, or a mask that is not a bool tensor.
            ValueError: another pattern, a missing or unknown parameter, another shape, a mask that
                breaks the pattern; nothing was changed.
        """
        self._masks = self._checked_masks(state_dict)

    def _checked_masks(self, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
        if not isinstance(state_dict, Mapping) or set(state_dict) != {"pattern", "masks"}:
            given = (
                sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            )
            raise TypeError(f'a Sparsifier\'s state holds "pattern" and "masks", not {given}')
        if state_dict["pattern"] != str(self._rule):
            raise ValueError(
                f"the masks are {state_dict['pattern']!r}, this Sparsifier is {str(self._rule)!r}"
            )
        masks = state_dict["masks"]
        if not isinstance(masks, Mapping):
            raise TypeError(f'"masks" must map parameter names to tensors, not be a {type(masks).__name__}')
        expected = {candidate.name: (candidate, weight) for candidate, weight in self._prunable()}
        missing, unknown = expected.keys() - masks.keys(), masks.keys() - expected.keys()
        if masks and (missing or unknown):  # an empty state: saved before prune()
            raise ValueError(
                f"the masks do not fit the layers to prune: missing {sorted(missing)}, "
                f"unknown {sorted(unknown)}; use the model and the select that they were saved with"
            )
        return {name: self._checked_mask(*expected[name], mask) for name, mask in masks.items()}

    def _checked_mask(self, candidate: Candidate, weight: Tensor, mask: object) -> Tensor:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"the mask of {candidate.name} must be a bool tensor, not {given}")
        if mask.shape != weight.shape:
            raise ValueError(
                f"the mask of {candidate.name} is {tuple(mask.shape)}, the weight {tuple(weight.shape)}"
            )
        if broken := self._rule.violation(local(mask), candidate.dim):
            raise ValueError(f"the mask of {candidate.name} is not {self._rule}: {broken}")
        return shard_like(mask.detach().clone(), weight)


def _row_of(candidate: Candidate, weight: Tensor | None, done: bool, reason: str) -> Row:
    if weight is None or nn.parameter.is_lazy(weight):
        return Row(candidate.layer, candidate.kind, (), done, reason, 1.0, 0, 0)
    values = local(weight.detach())
    known = values.numel() > 0 and values.device.type != "meta"
    kept = int((values != 0).sum()) / values.numel() if known else 1.0
    size = weight.numel() * weight.element_size()
    return Row(candidate.layer, candidate.kind, tuple(weight.shape), done, reason, kept, size, size)


def _select(model: nn.Module, candidates: Iterable[Candidate], select: Select) -> set[str]:
    """Names of the parameters to prune, shared ones under their first name."""
    if select is None:
        return {c.alias_of or c.name for c in candidates if not c.skipped}
    if callable(select):
        layers = named_layers(model)
        return {c.alias_of or c.name for c in candidates if select(c.module_name, layers[c.module_name])}
    if not isinstance(select, Iterable):
        raise TypeError(f"select must be names, patterns or a function, not {type(select).__name__}")
    patterns = [select] if isinstance(select, str) else list(select)
    selected: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"select must hold names or fnmatch patterns, not {type(pattern).__name__}")
        matches = [
            c
            for c in candidates
            if any(fnmatch.fnmatchcase(name, pattern) for name in (c.name, c.layer, c.module_name))
        ]
        if not matches:
            known = ", ".join(c.layer for c in candidates)
            raise ValueError(f"select {pattern!r} matches no layer with weights; there are: {known}")
        selected.update(c.alias_of or c.name for c in matches)
    return selected


def _reshard(model: nn.Module) -> None:
    """Bring back the shards of FSDP2 where a forward pass has left a gathered copy in their place."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # importing it would cost the others 0.8 s
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
