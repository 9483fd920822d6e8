"""What ASP knows of one model: which weights its rules choose, their masks, and what these pruned."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...report import Report
from ..packed import PackedMask
from ..permute import PermutationReport, Reordered, permute_network
from ..prunable import Candidate, find_candidates, named_layers
from ..sharding import local, shard_like, to_sharded
from ..sparsifier import Sparsifier
from .patterns import ApexRule

#: Further types of layers, each with the names of its weights [out, in, ...].
CustomLayers = Mapping[type[nn.Module], Sequence[str]]


class Session(Sparsifier):
    """A Sparsifier by ASP's rules, which can also put back what it pruned.

    It holds the model weakly: ASP's table of sessions keeps no model alive.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: ApexRule,
        *,
        on_model_gone: Callable[[weakref.ref[nn.Module]], None],
        verbosity: int,
        whitelist: tuple[type[nn.Module], ...],
        allowed: Sequence[str] | None,
        disallowed: Sequence[str],
        allow_recompute_mask: bool,
        custom_layers: CustomLayers,
        example_inputs: Any = None,
    ) -> None:
        self.owner = weakref.ref(model, on_model_gone)
        self.verbosity = verbosity
        self.allow_recompute_mask = allow_recompute_mask
        self.pruned: dict[str, Tensor] = {}  #: values before pruning where pruned, on the CPU
        self._inner = rule.inner
        self._adopted: set[str] = set()  #: weights that a checkpoint has masks for
        self._whitelist = whitelist
        self._allowed = allowed
        self._disallowed = disallowed
        self._custom_layers = custom_layers
        self._example_inputs = example_inputs  #: to permute channels with; None: they are not
        self.permutation: PermutationReport | None = None
        proxy: Any = weakref.proxy(model)
        super().__init__(proxy, pattern=rule)
        # apex's set: also what would stay dense, which the report says.
        self._selected = {c.alias_of or c.name for c in self._candidates if not c.skipped}

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the model, while it lives."""
        model = self.owner()
        return iter(()) if model is None else model.parameters()

    def _find(self) -> list[Candidate]:
        layers = named_layers(self._model)
        if unknown := {*(self._allowed or ()), *self._disallowed} - layers.keys():
            raise ValueError(f"no layer of the model is called {', '.join(sorted(unknown))}")
        candidates = find_candidates(self._model, self._custom_layers)
        return [self._listed(candidate, layers[candidate.module_name]) for candidate in candidates]

    def _listed(self, candidate: Candidate, layer: nn.Module) -> Candidate:
        if candidate.module_name in self._disallowed:
            reason = "in disallowed_layer_names"
        elif not isinstance(layer, self._whitelist):
            reason = "not of a type in whitelist"
        elif self._allowed is not None:
            reason = "" if candidate.module_name in self._allowed else "not in allowed_layer_names"
        else:
            reason = candidate.skipped.replace("select it by name", "put it into allowed_layer_names")
        return dataclasses.replace(candidate, skipped=reason)

    def _why_not(self, candidate: Candidate) -> str:
        if (candidate.alias_of or candidate.name) in self._adopted and not candidate.blocked:
            return self._inner.obstacle(self._parameter(candidate.name), candidate.dim)
        return super()._why_not(candidate)

    def _parameter(self, name: str) -> nn.Parameter:
        self._need_owner()
        return super()._parameter(name)

    def _need_owner(self) -> None:
        if self.owner() is None:
            raise ValueError("the model given to init_model_for_pruning is gone: keep a reference to it")

    def _masked(self) -> Iterator[tuple[str, nn.Parameter, PackedMask]]:
        self._need_owner()
        return super()._masked()

    def _scores(self, candidate: Candidate, weight: Tensor) -> Tensor:
        if candidate.name in self.pruned:
            return self._dense(candidate.name, weight)
        return super()._scores(candidate, weight)

    def _dense(self, name: str, weight: Tensor) -> Tensor:
        """The local part of ``weight`` with what was pruned put back."""
        mask = self._mask_of(name, weight).local_bool()
        return torch.where(mask, local(weight.detach()), self._pruned_part(name, weight))

    def _pruned_part(self, name: str, weight: Tensor) -> Tensor:
        """What was pruned of the local part of ``weight``, on its device; elsewhere 0."""
        part, pruned = local(weight.detach()), self.pruned.get(name)
        if pruned is None:
            return torch.zeros_like(part)
        if pruned.shape != part.shape:  # pruned before it was sharded
            pruned = local(shard_like(pruned, weight))
        return pruned.to(part.device)

    @torch.no_grad()
    def prune(self, from_zeros: bool = False) -> Report:
        if self._masks and not self.allow_recompute_mask:
            raise ValueError(
                "the masks were computed already, and what they pruned was not kept: pass "
                "allow_recompute_mask=True to init_model_for_pruning"
            )
        permutation, reordered = self._permute()
        try:
            masks = self._compute_masks(from_zeros)
        except BaseException:
            reordered.undo()
            raise
        self.permutation = permutation
        self.restore()
        if self.allow_recompute_mask:
            self.pruned = {
                name: local(self._parameter(name)).masked_fill(mask.local_bool(), 0).cpu()
                for name, mask in masks.items()
            }
        self._masks = masks
        self._mask_weights()
        return self.report()

    def _permute(self) -> tuple[PermutationReport | None, Reordered]:
        """Permute channels, once, before the first masks; and how to take that back."""
        model = self.owner()
        if self._example_inputs is None or self.permutation is not None or self._masks or model is None:
            return self.permutation, Reordered()
        for optimizer, masters in self._steppers():
            if masters or any(optimizer.state.get(p) for p in model.parameters()):
                raise ValueError(
                    f"allow_permutation=True: {type(optimizer).__name__} holds state or copies of weights, "
                    "whose channels would not be permuted: compute masks before its first step"
                )
        names = {candidate.name: candidate.dim for candidate, _ in self._prunable()}
        return permute_network(model, self._example_inputs, names=names)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was pruned, and prune no more."""
        if self._masks and not self.allow_recompute_mask:
            raise ValueError(
                "the pruned weights were not kept: pass allow_recompute_mask=True to init_model_for_pruning"
            )
        for name, parameter, _ in self._masked():
            local(parameter).copy_(self._dense(name, parameter))
        self._masks, self.pruned = {}, {}
        self._steps_without_masks += 1  # meant to be dense from now on: no warning

    def mask_state(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Mask and, where they are kept, pruned values by parameter name; before pruning: True and 0."""
        state: dict[str, tuple[Tensor, Tensor | None]] = {}
        for candidate, weight in self._prunable():
            if candidate.name in self._masks:
                mask = self._mask_of(candidate.name, weight).to_bool()
            else:
                mask = to_sharded(torch.ones_like(local(weight), dtype=torch.bool), weight)
            pruned = to_sharded(self._pruned_part(candidate.name, weight), weight)
            state[candidate.name] = (mask, pruned if self.allow_recompute_mask else None)
        return state

    def checked_state(
        self, masks: Mapping[str, Tensor], pruned: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Masks and pruned values of a checkpoint, as this session holds them; changes nothing.

        Both are empty where every mask is all True: saved before pruning.
        """
        known = {candidate.name: candidate for candidate in self._candidates}
        if unknown := masks.keys() - known.keys():
            raise ValueError(f"the checkpoint has masks for {sorted(unknown)}, which the model does not have")
        masks = {name: mask for name, mask in masks.items() if not known[name].alias_of}
        if missing := {candidate.name for candidate, _ in self._prunable()} - masks.keys():
            raise ValueError(
                f"the checkpoint has no masks for {sorted(missing)}: initialise the model with the whitelist "
                "and the layer names that it was saved with"
            )
        checked = {name: self._adopted_mask(known[name], mask) for name, mask in masks.items()}
        if all(bool(local(mask).all()) for mask in checked.values()):
            return {}, {}
        for name, mask in checked.items():
            if broken := self._rule.violation(local(mask), known[name].dim):
                raise ValueError(f"the mask of {name} is not {self._rule}: {broken}")
        if not self.allow_recompute_mask:
            return checked, {}
        return checked, {name: self._checked_pruned(name, pruned.get(name)) for name in checked}

    def _adopted_mask(self, candidate: Candidate, mask: Tensor) -> Tensor:
        if candidate.blocked:
            raise ValueError(f"the checkpoint has a mask for {candidate.name}: {candidate.blocked}")
        weight = self._parameter(candidate.name)
        if reason := self._inner.obstacle(weight, candidate.dim):
            raise ValueError(f"the checkpoint has a mask for {candidate.name}: {reason}")
        if mask.shape != weight.shape:
            raise ValueError(
                f"the mask of {candidate.name} is {tuple(mask.shape)}, the weight {tuple(weight.shape)}"
            )
        return shard_like(mask.detach() != 0, weight)

    def _checked_pruned(self, name: str, pruned: Tensor | None) -> Tensor:
        weight = self._parameter(name)
        if pruned is None or pruned.shape != weight.shape:
            given = "no pruned values" if pruned is None else f"pruned values of shape {tuple(pruned.shape)}"
            raise ValueError(
                f"allow_recompute_mask=True needs the pruned values of {name}, {tuple(weight.shape)}, "
                f"but the checkpoint has {given}"
            )
        return local(shard_like(pruned.detach(), weight)).to(device="cpu", dtype=weight.dtype, copy=True)

    def adopt(self, masks: dict[str, Tensor], pruned: dict[str, Tensor]) -> None:
        """Go on with the masks of a checkpoint, also of weights that ASP would have left alone."""
        self._masks = {name: PackedMask(mask) for name, mask in masks.items()}
        self.pruned, self._adopted = pruned, set(masks)
        self._mask_weights()
