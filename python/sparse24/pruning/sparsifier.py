"""Prune a network, and keep it pruned while it is trained further.

    sparsifier = Sparsifier(model)
    print(sparsifier.prune())        # masks by magnitude; pruned weights become +0.0
    sparsifier.attach(optimizer)     # from now on every step leaves them at +0.0
    ...                              # the usual training loop
    sparsifier.verify()

Nothing is global: a Sparsifier knows its model and the optimizers it was attached to. Parameters are
looked up by name at every step, so the model may be moved, compiled, wrapped in
``DistributedDataParallel`` or sharded with ``fully_shard`` afterwards. The model's ``state_dict`` is
left alone; the masks have their own, and take a bit a weight in memory. A copy or a pickle of the
Sparsifier together with its model and optimizer is attached as this one is.

At a step, gradients of pruned weights are set to zero before the optimizer sees them, and the
weights themselves after it: those that this optimizer holds, and no others. Hence:

* Momentum and Adam's moments receive zeros from then on. What they held from dense training decays
  and never reaches a pruned weight; kept weights are updated exactly as without the Sparsifier.
* Gradients clipped before ``step()`` are clipped by a norm that counts the pruned entries, as in
  apex, unless :meth:`Sparsifier.mask_gradients` is called before.
* An optimizer that evaluates a closure (LBFGS) computes gradients after they were masked; its
  weights are masked all the same.
* A step that ``GradScaler`` skips changes nothing.

More than 300 lines: one class, and a third of them is this contract and that of its methods.
"""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..masks import kept_share
from ..report import Report, Row
from .packed import PackedMask
from .prunable import Candidate, find_candidates, layer_at, stored_weight, unwrap
from .rules import MaskRule, rule_of
from .selection import Select, chosen
from .sharding import is_sharded, local, refuse_flat, reshard, shard_like, to_sharded
from .slow_roots import warn_of_slow_roots
from .steps import Attachment, Masters, Stepped, find_masters, stepping

Score = str | Callable[[Tensor, str], Tensor]


class Sparsifier:
    """Masks for the weights of one model.

    Args:
        model: any module; ``DistributedDataParallel`` and compiled modules are looked into.
        pattern: "N:M" ("2:4" is what hardware runs), or "transposable": 2:4 along rows and columns.
        score: "magnitude", or ``score(weight, name)`` returning a non-negative tensor of the weight's
            shape, the larger the better to keep. Under ``fully_shard`` it is given the local shard.
        select: what to prune. None: every layer that runs sparse afterwards, except output heads, adapters
            and weights tied to an embedding (see ``prunable``). Otherwise ``select(layer_name, layer)``,
            or names and ``fnmatch`` patterns of layers or parameters; it overrides those exceptions.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a bad pattern or score, a name in ``select`` that matches nothing, or a model in
            ``FullyShardedDataParallel`` (``fully_shard`` is supported).
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
        refuse_flat(model)
        self._model = unwrap(model)
        self._rule = rule_of(pattern)
        self._score = score
        self._candidates = self._find()
        self._selects_all = select is None
        self._selected = chosen(self._model, self._candidates, select)
        self._masks: dict[str, PackedMask] = {}
        self._steps_without_masks = 0
        self._attached: list[weakref.ref[Attachment]] = []

    def _find(self) -> list[Candidate]:
        return find_candidates(self._model)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by parameter name: bool, True = kept, unpacked for the caller; empty before :meth:`prune`."""
        return {name: mask.to_bool() for name, mask in self._masks.items()}

    def optimizers(self) -> list[Optimizer]:
        """The optimizers that are attached and alive."""
        return [optimizer for optimizer, _ in self._steppers()]

    def _steppers(self) -> list[tuple[Optimizer, Masters]]:
        """The optimizers that are attached and alive, and where each holds copies of weights."""
        attached = [attachment for known in self._attached if (attachment := known()) is not None]
        return [(optimizer, each.masters) for each in attached if (optimizer := each.optimizer) is not None]

    def __getstate__(self) -> dict[str, Any]:
        """Everything, with optimizers for the hooks on them: a copy is attached to their copies."""
        return {**self.__dict__, "_attached": self._steppers()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        of_0_1 = {"_selects_all": False, "_steps_without_masks": 0}  # which held masks as bool tensors
        self.__dict__.update(of_0_1 | state, _attached=[])
        self._masks = {
            name: PackedMask(mask) if isinstance(mask, Tensor) else mask for name, mask in self._masks.items()
        }
        for optimizer, masters in state["_attached"]:
            self._attached.append(weakref.ref(Attachment(self, optimizer, masters)))

    # ---- pruning ------------------------------------------------------------------------------------

    @torch.no_grad()
    def prune(self, from_zeros: bool = False) -> Report:
        """Compute the masks from the weights as they are, write +0.0 over what they prune.

        May be called again, from the weights as they are then: what was pruned is not put back. All masks
        are computed before the first weight is changed.

        Args:
            from_zeros: prune every weight that is zero now, too. For a network that is sparser than the
                pattern: its masks would otherwise keep zeros (a third of them, at 75 % sparsity), which
                regrow in training.

        Returns:
            The report, with ``done`` for every pruned layer and a reason for every other.

        Raises:
            TypeError, ValueError: ``score`` returned something unfit, or the model is in
                ``FullyShardedDataParallel`` by now; nothing was changed.
        """
        self._masks = self._compute_masks(from_zeros)
        self._mask_weights()
        return self.report()

    def _compute_masks(self, from_zeros: bool = False) -> dict[str, PackedMask]:
        masks = {}
        for candidate, weight in self._prunable():
            mask = self._rule.mask(self._scores(candidate, weight), candidate.dim)
            if from_zeros:
                mask &= local(weight) != 0
            masks[candidate.name] = PackedMask(to_sharded(mask, weight))
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
            refuse_flat(self._model)
            raise ValueError(f"{name} is no longer a parameter of the model: make a new Sparsifier for it")
        return parameter

    def _prunable(self) -> Iterator[tuple[Candidate, nn.Parameter]]:
        """The weights to prune, as the model holds them now."""
        refuse_flat(self._model)
        reshard(self._model)
        for candidate in self._candidates:
            if not candidate.alias_of and not self._why_not(candidate):
                yield candidate, self._parameter(candidate.name)

    def _stored(self) -> list[Tensor | None]:
        """What the model holds for each candidate now; None: nothing, or nothing yet."""
        found = [stored_weight(layer_at(self._model, c.module_name), c.attribute) for c in self._candidates]
        return [None if each is None or nn.parameter.is_lazy(each) else each for each in found]

    def _why_not(self, candidate: Candidate) -> str:
        """Why a weight is not to be pruned; empty if it is."""
        if candidate.blocked:
            return candidate.blocked
        if (candidate.alias_of or candidate.name) in self._selected:
            return self._rule.obstacle(self._parameter(candidate.name), candidate.dim)
        if candidate.skipped or not self._selects_all:
            return candidate.skipped or "not selected"
        weight = stored_weight(layer_at(self._model, candidate.module_name), candidate.attribute)
        obstacle = "" if weight is None else self._rule.obstacle(weight, candidate.dim)
        return obstacle or f"would stay dense: {candidate.dense}; select it by name to prune it"

    # ---- training -----------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Enforce the masks at every step of ``optimizer``; a second call for it does nothing.

        Several optimizers may be attached, before or after :meth:`prune`; each enforces the masks of what
        it holds. One that wraps another (of Accelerate, of torch.distributed, sharpness-aware) is enforced
        where the one inside steps. Where the optimizer steps float32 copies of the model's 16-bit weights,
        copies and weights are masked; they are told by shape, order and numbers.

        Raises:
            TypeError: no ``torch.optim.Optimizer`` that steps, nor a wrapper of one.
            ValueError: it holds nothing of this model, or copies of which it cannot be told whose they are;
                the model is in ``FullyShardedDataParallel``. Nothing was attached.
        """
        known = self.optimizers()
        new = [each for each in stepping(optimizer, "attach") if not any(each is k for k in known)]
        if not new:
            return
        refuse_flat(self._model)
        reshard(self._model)
        masters = [find_masters(self._model, each, self._maskable()) for each in new]
        for each, copies in zip(new, masters, strict=True):
            self._attached.append(weakref.ref(Attachment(self, each, copies)))
            warn_of_slow_roots(each)

    def _maskable(self) -> dict[str, Tensor]:
        """The weights that may ever be masked here, by name: a checkpoint may have masks for any of them."""
        found = {}
        for candidate in self._candidates:
            weight = stored_weight(layer_at(self._model, candidate.module_name), candidate.attribute)
            if weight is None or candidate.alias_of or candidate.blocked:
                continue
            if not self._rule.obstacle(weight, candidate.dim):
                found[candidate.name] = weight
        return found

    def detach(self) -> None:
        """Stop enforcing the masks. The masks and the zeros stay."""
        for known in self._attached:
            if (attachment := known()) is not None:
                attachment.remove()
        self._attached.clear()

    def _stepped(self, held: Sequence[Tensor], masters: Masters) -> list[Stepped]:
        """The masked weights among what an optimizer holds."""
        if any(is_sharded(tensor) for tensor in held):
            reshard(self._model)
        places = {id(tensor): place for place, tensor in enumerate(held)}
        found = []
        for name in self._masks:
            parameter = self._parameter(name)
            place = places.get(id(parameter), masters.get(name))
            if place is not None:
                found.append(Stepped(name, parameter, held[place]))
        if not found:
            refuse_flat(self._model)
        return found

    def _is_current(self, stepped: Sequence[Stepped]) -> bool:
        """Whether these are still the model's parameters."""
        if any(is_sharded(each.held) for each in stepped[:1]):
            reshard(self._model)
        return all(self._parameter(each.name) is each.parameter for each in stepped)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights now, as each step does before it.

        For a clipping by a norm that leaves them out: ``backward()``, this, ``clip_grad_norm_``, ``step()``.
        Gradients of loss scaling may be scaled still: it does not matter.

        Raises:
            ValueError: nothing was pruned yet.
        """
        if not self._masks:
            raise ValueError("no masks to apply to gradients: call prune() or load_state_dict() first")
        for _, parameter, mask in self._masked():
            if parameter.grad is not None:
                mask.apply_(parameter.grad)

    @torch.no_grad()
    def _mask_gradients(self, stepped: Sequence[Stepped]) -> None:
        self._warn_without_masks()
        for name, parameter, held in stepped:
            if held.grad is not None:
                self._mask_of(name, parameter).apply_(held.grad)

    @torch.no_grad()
    def _mask_stepped(self, stepped: Sequence[Stepped]) -> None:
        for name, parameter, held in stepped:
            mask = self._mask_of(name, parameter)
            mask.apply_(parameter)
            if held is not parameter:
                mask.apply_(held)

    def _warn_without_masks(self) -> None:
        if self._masks:
            return
        self._steps_without_masks += 1
        if self._steps_without_masks == 1:
            warnings.warn(
                "a Sparsifier is attached to this optimizer, but has no masks, so this step may fill zeros: "
                "call prune() or load_state_dict() first, or detach() (said once)",
                stacklevel=6,
            )

    @torch.no_grad()
    def _mask_weights(self) -> None:
        for _, parameter, mask in self._masked():
            mask.apply_(parameter)

    def _masked(self) -> Iterator[tuple[str, nn.Parameter, PackedMask]]:
        """Names, pruned parameters and their masks."""
        reshard(self._model)
        for name in self._masks:
            parameter = self._parameter(name)
            yield name, parameter, self._mask_of(name, parameter)

    def _mask_of(self, name: str, parameter: Tensor) -> PackedMask:
        """The mask of a parameter, which it follows to another device or sharding."""
        mask = self._masks[name]
        if mask.shape != parameter.shape:
            refuse_flat(self._model)
            raise ValueError(
                f"{name} is now {tuple(parameter.shape)}, its mask is {tuple(mask.shape)}: prune again"
            )
        self._masks[name] = mask.follow(parameter)
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
            wrong = ((weight != 0) & ~mask.local_bool()).nonzero()
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
        reshard(self._model)
        counted: set[int] = set()
        return Report(tuple(self._row(c, counted) for c in self._candidates), action="pruned")

    def _row(self, candidate: Candidate, counted: set[int]) -> Row:
        weight = stored_weight(layer_at(self._model, candidate.module_name), candidate.attribute)
        done = (candidate.alias_of or candidate.name) in self._masks
        reason = self._why_not(candidate)
        if not reason and candidate.alias_of:
            reason = f"shares its weight with {candidate.alias_of}"
        elif not reason and weight is not None:
            remark = self._rule.remark(weight, candidate.dim) if done else "not pruned yet: call prune()"
            dense = candidate.dense or ("" if self._rule.group.is_within_24 else f"{self._rule} is not 2:4")
            stays = f"stays dense: {dense}" if dense else ""
            reason = "; ".join(filter(None, (remark, stays)))
        row = _row_of(candidate, weight, done, reason)
        if id(weight) in counted:
            return dataclasses.replace(row, bytes_before=0, bytes_after=0)
        counted.add(id(weight))
        return row

    def state_dict(self) -> dict[str, Any]:
        """``{"pattern": str, "masks": {parameter name: bool tensor}}``; DTensors where weights are."""
        return {"pattern": str(self._rule), "masks": self.masks}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the masks of a checkpoint. Weights are not touched: load the model's own state too.

        With the states of model, optimizer and Sparsifier loaded, training goes on bit for bit as if it
        had not been interrupted. A whole mask is cut to the local shard of a sharded weight. Without a
        ``select`` the checkpoint decides: masks of layers that are left alone by default are taken over.

        Raises:
            TypeError: not a state of a Sparsifier, or a mask that is not a bool tensor.
            ValueError: another pattern, a missing or unknown parameter, another shape, a mask that
                breaks the pattern; nothing was changed.
        """
        checked = self._checked_masks(state_dict)
        self._selected |= checked.keys()
        self._masks = {name: PackedMask(mask) for name, mask in checked.items()}

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
        expected.update(self._taken_over(masks.keys() - expected.keys()))
        missing, unknown = expected.keys() - masks.keys(), masks.keys() - expected.keys()
        if masks and (missing or unknown):  # an empty state: saved before prune()
            raise ValueError(
                f"the masks do not fit the layers to prune: missing {sorted(missing)}, "
                f"unknown {sorted(unknown)}; use the model and the select that they were saved with"
            )
        return {name: self._checked_mask(*expected[name], mask) for name, mask in masks.items()}

    def _taken_over(self, names: Set[str]) -> dict[str, tuple[Candidate, nn.Parameter]]:
        """Which of the weights that are left alone by default a checkpoint's masks may be for.

        Version 0.1 pruned more by default: what would stay dense, heads inside wrappers, adapters.
        """
        found = [c for c in self._candidates if c.name in names and not c.alias_of and not c.blocked]
        weights = [(c, self._parameter(c.name)) for c in found if self._selects_all]
        return {c.name: (c, weight) for c, weight in weights if not self._rule.obstacle(weight, c.dim)}

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
    size = weight.numel() * weight.element_size()
    kept = kept_share(local(weight.detach()))
    return Row(candidate.layer, candidate.kind, tuple(weight.shape), done, reason, kept, size, size)
