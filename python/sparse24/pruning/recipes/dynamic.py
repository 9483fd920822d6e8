"""Masks that change while a network trains: from scratch, with a warm-up, a freeze, or a dense finish.

While masks may change, the parameters hold the masked weights, so that forward, evaluation and checkpoints of
the model are 2:4, and the dense weights (masters) wait here. Gradients of masked weights are dense: an
optimizer's step is made on the masters with them (the straight-through estimator), and its result is masked
again. No layer is wrapped, so whatever reads a weight sees the masked one.

More than 300 lines: one class, and a third of them is its contract.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...log import LOGGER
from ..packed import PackedMask
from ..sharding import is_sharded, local, reshard, to_sharded
from ..sparsifier import Sparsifier
from ..steps import Attachment, parameters_of, stepping
from .mvue import estimate, exact

Phase = Literal["dense", "sparse", "frozen", "finished"]
_SETTINGS = ("begin", "refresh", "freeze", "dense_from", "decay", "decoupled", "fixed_moments")


class DynamicSparsity:
    """What becomes of a Sparsifier's masks, step by step of one optimizer.

    ====================== ==========================================================================
    steps                  what happens
    ====================== ==========================================================================
    before ``begin``       "dense": nothing (a dense warm-up)
    from ``begin`` on      "sparse": the model computes with masked weights, gradients go straight
                           through to the dense ones, masks are made anew every ``refresh`` steps
    from ``freeze`` on     "frozen": the masks stay, as after ``Sparsifier.prune``: a sparse network
    from ``dense_from`` on "finished": the dense weights come back: a dense network
    ====================== ==========================================================================

    Args:
        sparsifier: which weights, by which pattern and score; it has no masks yet.
        begin: steps before masks are made.
        refresh: steps between two masks.
        freeze: the step from which on masks stay; ``None``: until :meth:`finish`.
        dense_from: the step from which on the network is dense again; not together with ``freeze``.
        decay: SR-STE's lambda (Zhou et al. 2021): pruned weights shrink, by ``decay`` times themselves in the
            gradient, so that masks settle.
        decoupled: the remedy for Adam, whose second moments would swallow it: pruned weights shrink by
            learning rate times ``decay``, beside the gradient.
        fixed_moments: STEP's remedy for Adam (Lu et al. 2023): second moments of masked weights stay what the
            dense warm-up (``begin``) made them while masks change, for sparse gradients would spoil them.
        mvue: in ``Linear`` layers, make the output gradient 2:4 along the tokens where the weight's gradient
            is computed, by the unbiased estimate of least variance (Chmiel et al. 2023): what sparse hardware
            needs for that product. Here it is arithmetic, at no gain in speed.

    Raises:
        TypeError: no Sparsifier.
        ValueError: steps out of order, a Sparsifier that has masks or is attached, a negative decay.
    """

    def __init__(
        self,
        sparsifier: Sparsifier,
        *,
        begin: int = 0,
        refresh: int = 1,
        freeze: int | None = None,
        dense_from: int | None = None,
        decay: float = 0.0,
        decoupled: bool = False,
        fixed_moments: bool = False,
        mvue: bool = False,
    ) -> None:
        if not isinstance(sparsifier, Sparsifier):
            raise TypeError(f"a recipe is over a Sparsifier, not {type(sparsifier).__name__}")
        if sparsifier.masks or sparsifier.optimizers():
            raise ValueError(
                "the Sparsifier has masks or an optimizer already: make a new one for the recipe"
            )
        last = freeze if freeze is not None else dense_from
        if begin < 0 or refresh < 1 or (last is not None and last < begin):
            raise ValueError(
                "begin must be 0 or more, refresh 1 or more, and the end not before begin: not "
                f"begin={begin}, refresh={refresh}, freeze={freeze}, dense_from={dense_from}"
            )
        if freeze is not None and dense_from is not None:
            raise ValueError("freeze ends in a sparse network, dense_from in a dense one: give one of them")
        if decay < 0:
            raise ValueError(f"decay must be 0 or more, not {decay}")
        if fixed_moments and begin == 0:
            raise ValueError("fixed_moments keeps what a dense warm-up made: give begin=, its steps")
        self.sparsifier = sparsifier
        self.begin, self.refresh, self.freeze, self.dense_from = begin, refresh, freeze, dense_from
        self.decay, self.decoupled, self.fixed_moments, self.mvue = decay, decoupled, fixed_moments, mvue
        self.step = 0  #: steps of the optimizer that were made
        self.flips = 0.0  #: share of the masks' entries that the last refresh changed
        self._masters: dict[str, Tensor] = {}
        self._moments: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._optimizer: Optimizer | None = None
        self._known: dict[str, Tensor] = {}  # the weights to prune, while the model's parameters are these
        self._stored: list[Tensor | None] = []
        self._chosen = 0

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that it is attached to."""
        return self._optimizer

    @property
    def phase(self) -> Phase:
        """What the next step does: "dense", "sparse", "frozen" or "finished"."""
        if self.step < self.begin:
            return "dense"
        if self.freeze is not None and self.step >= self.freeze:
            return "frozen"
        if self.dense_from is not None and self.step >= self.dense_from:
            return "finished"
        return "sparse"

    def attach(self, optimizer: Optimizer) -> None:
        """Follow the steps of ``optimizer``, once, before its first step or after :meth:`load_state_dict`.

        Raises:
            TypeError: no ``torch.optim.Optimizer`` that steps, or one that evaluates closures inside a step
                (LBFGS), which would see the dense weights, or steps twice (sharpness-aware).
            ValueError: attached already, or another recipe or Sparsifier enforces masks there.
        """
        if self._optimizer is not None:
            raise ValueError("this recipe is attached already: detach() it first")
        inner = stepping(optimizer, "attach")[0]
        if isinstance(inner, torch.optim.LBFGS) or any(
            callable(getattr(inner, name, None)) for name in ("first_step", "ascent_step")
        ):
            raise TypeError(
                f"{type(inner).__name__} computes gradients inside a step, where the weights are dense: a "
                "recipe whose masks change needs an optimizer that takes one gradient a step"
            )
        held = {id(p) for p in parameters_of(inner)}
        owners = (getattr(hook, "__self__", None) for hook in inner._optimizer_step_pre_hooks.values())
        if any(isinstance(owner, DynamicSparsity | Attachment) for owner in owners):
            raise ValueError("another recipe or Sparsifier is attached to this optimizer: one at a time")
        missing = [n for n, p in self._weights().items() if id(p) not in held]
        if missing:
            raise ValueError(
                f"this {type(inner).__name__} does not step {missing[0]} (and {len(missing) - 1} more "
                "weights that the Sparsifier would prune): pass the optimizer of the model's parameters"
            )
        self._optimizer = inner
        if self.phase in ("dense", "sparse"):
            if self.mvue:
                estimate(self.sparsifier._model, set(self._weights()))
            self._handles = [
                inner.register_step_pre_hook(self._before),
                inner.register_step_post_hook(self._after),
            ]
            if self.phase == "sparse" and not self._masters:
                self._enter()
        elif self.phase == "frozen":
            self.sparsifier.attach(inner)

    def detach(self) -> None:
        """Follow no more steps; weights and masks stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizer = [], None
        exact(self.sparsifier._model)
        self.sparsifier.detach()

    def finish(self) -> None:
        """Freeze now, if the masks still change: from here on they stay, and are enforced."""
        if self.phase == "sparse" and self._masters:
            self._freeze()
            self.freeze = self.step

    # ---- one step ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._masters:
            return
        rates = (
            {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]} if self.decoupled else {}
        )
        for name, weight in self._weights().items():
            master = self._masters[name]
            weight.copy_(master)
            if not self.decay or (weight.grad is None and not self.decoupled):
                continue
            pruned = local(master).masked_fill(self._mask(name, weight).local_bool(), 0)
            if self.decoupled:
                local(weight).sub_(pruned, alpha=float(rates[id(weight)]) * self.decay)
            else:
                local(weight.grad).add_(pruned, alpha=self.decay)  # type: ignore[arg-type]

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.step += 1
        if not self._masters:
            if self.phase == "sparse":
                self._enter()
            elif self.phase == "frozen":  # begin and freeze are one step: a warm-up
                self._enter()
                self._freeze()
            return
        if self.fixed_moments:
            self._put_back(optimizer)
        if self.phase == "finished":
            self._leave()
            return
        if self.phase == "frozen" or (self.step - self.begin) % self.refresh == 0:
            self._renew()
        for name, weight in self._weights().items():
            self._masters[name].copy_(weight)
            self._mask(name, weight).apply_(weight)
        if self.phase == "frozen":
            self._freeze()

    @torch.no_grad()
    def _enter(self) -> None:
        self._renew()
        for name, weight in self._weights().items():
            self._masters[name] = weight.detach().clone()
            self._mask(name, weight).apply_(weight)
        if self.fixed_moments and self._optimizer is not None:
            found = {name: self._second_moment(w) for name, w in self._weights().items()}
            self._moments = {name: moment.clone() for name, moment in found.items() if moment is not None}

    def _renew(self) -> None:
        """Masks of the weights as the parameters hold them, which are dense now."""
        old, new = self.sparsifier._masks, self.sparsifier._compute_masks()
        if old:
            changed = [old[n].local_bool() != new[n].local_bool() for n in new]
            self.flips = sum(int(c.sum()) for c in changed) / max(sum(c.numel() for c in changed), 1)
            LOGGER.debug("step %d: %.4f of the masks changed", self.step, self.flips)
        self.sparsifier._masks = new

    def _freeze(self) -> None:
        self._masters, self._moments = {}, {}
        self._unhook()
        if self._optimizer is not None:
            self.sparsifier.attach(self._optimizer)

    def _leave(self) -> None:
        """The parameters are dense after the optimizer's step, and stay so."""
        self._masters, self._moments = {}, {}
        self.sparsifier._masks = {}
        self._unhook()

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        exact(self.sparsifier._model)

    def _put_back(self, optimizer: Optimizer) -> None:
        for name, weight in self._weights().items():
            moment = self._second_moment(weight)
            if moment is not None and name in self._moments:
                moment.copy_(self._moments[name])

    def _second_moment(self, weight: Tensor) -> Tensor | None:
        assert self._optimizer is not None
        found: Tensor | None = self._optimizer.state.get(weight, {}).get("exp_avg_sq")
        return found

    def _weights(self) -> dict[str, Tensor]:
        """The weights to prune by name: looked up again where the model holds others now, or more may be."""
        if any(map(is_sharded, self._known.values())):
            reshard(self.sparsifier._model)
        if not self._is_current():
            self._known = {candidate.name: weight for candidate, weight in self.sparsifier._prunable()}
            self._stored, self._chosen = self.sparsifier._stored(), len(self.sparsifier._selected)
        return self._known

    def _is_current(self) -> bool:
        stored, chosen = self.sparsifier._stored(), len(self.sparsifier._selected)
        same = len(stored) == len(self._stored) and all(map(operator.is_, stored, self._stored))
        return same and chosen == self._chosen

    def _mask(self, name: str, weight: Tensor) -> PackedMask:
        return self.sparsifier._mask_of(name, weight)

    # ---- state ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where it is, with masks and dense weights: beside the model's and the optimizer's own states."""
        return {
            "step": self.step,
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "masks": self.sparsifier.state_dict(),
            "masters": {name: tensor.clone() for name, tensor in self._masters.items()},
            "moments": {name: tensor.clone() for name, tensor in self._moments.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was, the model's own state being loaded. It stays attached where it is.

        Raises:
            TypeError: not a recipe's state.
            ValueError: other settings, or masks or weights that do not fit; nothing was changed.
        """
        wanted = {"step", "settings", "masks", "masters", "moments"}
        if not isinstance(state_dict, Mapping) or set(state_dict) != wanted:
            raise TypeError(f"a recipe's state holds {', '.join(sorted(wanted))}")
        own = {name: getattr(self, name) for name in _SETTINGS}
        given = dict(state_dict["settings"])
        if own | {"freeze": None} != given | {"freeze": None} or (
            own["freeze"] != given["freeze"] and own["freeze"] is not None
        ):
            changed = [f"{n}={given.get(n)!r} there, {own[n]!r} here" for n in own if own[n] != given.get(n)]
            raise ValueError(f"the state is that of another recipe: {'; '.join(changed)}")
        weights = self._weights()
        for key in ("masters", "moments"):
            for name, tensor in state_dict[key].items():
                if name not in weights or weights[name].shape != tensor.shape:
                    here = tuple(weights[name].shape) if name in weights else "no weight to prune"
                    raise ValueError(f"the state's {name} is {tuple(tensor.shape)}, here it is {here}")
        optimizer = self._optimizer
        self.sparsifier.load_state_dict(state_dict["masks"])
        self.detach()
        self.step, self.freeze = int(state_dict["step"]), given["freeze"]
        for key in ("masters", "moments"):
            kept = {n: _like(tensor, weights[n]) for n, tensor in state_dict[key].items()}
            setattr(self, f"_{key}", kept)
        if optimizer is not None:
            self.attach(optimizer)


def _like(tensor: Tensor, weight: Tensor) -> Tensor:
    """A copy on the device of a weight, placed as it is."""
    return to_sharded(local(tensor).to(local(weight).device).clone(), weight)
