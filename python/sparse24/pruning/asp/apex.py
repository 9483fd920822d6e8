"""The class ASP, which stands in front of the sessions of all models."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from ...report import Report
from ..permute import PermutationReport
from ..prunable import unwrap
from ..steps import parameters_of, stepping
from . import checkpoints
from .patterns import MaskFunction, apex_rule
from .session import CustomLayers, Session

_WHITELIST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


class ASP:
    """Prune to 2:4 once, and keep pruned while training; see the package for what differs from apex.

    The methods are class methods and work in place, as in apex: those with apex's names return None (but
    for ``is_sparsity_enabled``), so ``model = ASP.prune_trained_model(...)`` loses the model. What they
    know of a model goes when the model does.
    Methods with ``model=None`` mean the only model that was initialised.
    """

    _sessions: ClassVar[list[Session]] = []

    # ---- apex's names -------------------------------------------------------------------------------

    @classmethod
    def init_model_for_pruning(  # noqa: PLR0917  apex's order
        cls,
        model: nn.Module,
        mask_calculator: str | MaskFunction = "m4n2_1d",
        verbosity: int = 3,
        whitelist: Sequence[type[nn.Module]] = _WHITELIST,
        allowed_layer_names: Sequence[str] | None = None,
        disallowed_layer_names: Sequence[str] = (),
        allow_recompute_mask: bool = False,
        custom_layer_dict: CustomLayers | None = None,
        allow_permutation: bool = False,
        example_inputs: Any = None,
    ) -> None:
        """Choose the weights of ``model`` to prune; nothing is pruned yet. Returns None.

        Args:
            model: wrappers (``DistributedDataParallel``, ``torch.compile``) are looked into.
            mask_calculator: "m4n2_1d" (2:4 along the input channels; any "m<M>n<N>_1d"),
                "m4n2_2d_best" (along both), "m4n2_2d_greedy", or a function of a weight that returns
                its mask (non-zero = kept).
            verbosity: 0 is silent, 1 prints what is skipped, 2 what is pruned, 3 what will be.
            whitelist: the types of layers to prune, subclasses included.
            allowed_layer_names: if given, only these; output heads and tied weights among them too.
            disallowed_layer_names: never these.
            allow_recompute_mask: keep pruned values (on the CPU), so that masks can be computed again
                or taken back.
            custom_layer_dict: further types, each with the names of its weights [out, in, ...].
            allow_permutation: when masks are computed first, permute channels before, so that they keep
                more (see :func:`sparse24.permute`; for m4n2_1d). Outputs stay the same.
            example_inputs: for ``allow_permutation``: a tensor, a tuple of arguments or a mapping of
                keyword arguments, as the model takes them.

        Raises:
            TypeError: not a module, or a mask calculator that is neither a name nor a function.
            ValueError: the model was initialised already; an unknown pattern, layer name or layer type;
                ``allow_permutation=True`` without ``example_inputs``, or with another pattern.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"ASP needs a torch.nn.Module, not {type(model).__name__}")
        if allow_permutation and example_inputs is None:
            raise ValueError(
                "allow_permutation=True needs example_inputs=, a batch as the model takes it: its graph is "
                "captured with it, and outputs are compared"
            )
        if allow_permutation and mask_calculator != "m4n2_1d":
            raise ValueError(
                f"allow_permutation=True is for mask_calculator='m4n2_1d', not {mask_calculator!r}"
            )
        base = unwrap(model)
        if any(session.owner() is base for session in cls._sessions):
            raise ValueError("this model was initialised for pruning already; ASP.release(model) undoes it")
        custom_layers = custom_layer_dict or {}
        known = (*_WHITELIST, *custom_layers)
        if unknown := [layer_type.__name__ for layer_type in whitelist if not issubclass(layer_type, known)]:
            raise ValueError(f"whitelist has {', '.join(unknown)}, whose weights custom_layer_dict must name")
        session = Session(
            base,
            apex_rule(mask_calculator),
            on_model_gone=cls._forget,
            verbosity=verbosity,
            whitelist=(*whitelist, *custom_layers),
            allowed=allowed_layer_names,
            disallowed=disallowed_layer_names,
            allow_recompute_mask=allow_recompute_mask,
            custom_layers=custom_layers,
            example_inputs=example_inputs if allow_permutation else None,
        )
        cls._sessions.append(session)
        _print_choice(session)

    @classmethod
    def init_optimizer_for_pruning(cls, optimizer: Optimizer) -> None:
        """Enforce the masks at every step of ``optimizer``, in place; returns None.

        A second call for it does nothing. It is attached to the models whose parameters it holds; if it
        holds none of theirs (master copies, say), to the latest model that has no optimizer yet.

        Raises:
            TypeError: no ``torch.optim.Optimizer`` that steps, nor a wrapper of one.
            ValueError: no model was initialised that it could belong to.
        """
        held = {id(held) for each in stepping(optimizer, "ASP") for held in parameters_of(each)}
        sessions = [
            session
            for session in cls._sessions
            if any(id(parameter) in held for parameter in session.parameters())
        ]
        sessions = sessions or [s for s in cls._sessions if not s.optimizers()][-1:]
        if not sessions:
            raise ValueError(
                "no model for this optimizer: call ASP.init_model_for_pruning(model) before "
                "ASP.init_optimizer_for_pruning(optimizer)"
            )
        for session in sessions:
            session.attach(optimizer)

    @classmethod
    def compute_sparse_masks(cls, model: nn.Module | None = None) -> None:
        """Prune in place: ``model``, or every model that was initialised and not yet pruned. Returns None.

        Computing masks again needs ``allow_recompute_mask=True``: pruned weights are put back first.

        Raises:
            TypeError, ValueError: no such model; pruned before, and not to be recomputed; a mask
                function returned something unfit. Nothing was changed.
        """
        pending = [session for session in cls._sessions if not session.masks]
        for session in pending if model is None and pending else [cls._session(model)]:
            session.prune()
            if session.verbosity >= 2 and session.permutation is not None:
                print(f"[ASP] {session.permutation.summary}")
            if session.verbosity >= 2:
                for row in session.report().done:
                    print(f"[ASP] Enabled {1 - row.kept:.2%} sparsity for {row.name} of size={row.shape}")

    @classmethod
    def restore_pruned_weights(cls, model: nn.Module | None = None) -> None:
        """Put back what was pruned, in place, and prune no more until masks are computed again.

        Returns None.

        Raises:
            ValueError: no such model, or ``allow_recompute_mask`` was not set.
        """
        cls._session(model).restore()

    @classmethod
    def is_sparsity_enabled(cls, model: nn.Module | None = None) -> bool:
        """Whether masks are in force.

        Raises:
            ValueError: no such model.
        """
        return bool(cls._session(model).masks)

    @classmethod
    def prune_trained_model(cls, model: nn.Module, optimizer: Optimizer) -> None:
        """Prune ``model`` in place, to m4n2_1d, and keep it so at every step of ``optimizer``.

        Returns None, as apex's does: ``model = ASP.prune_trained_model(model, ...)`` loses the model. It
        is :meth:`init_model_for_pruning`, :meth:`init_optimizer_for_pruning` and
        :meth:`compute_sparse_masks`, all that a training script needs.

        Raises:
            TypeError, ValueError: as the three calls; nothing was changed.
        """
        stepping(optimizer, "ASP")
        cls.init_model_for_pruning(model, mask_calculator="m4n2_1d", verbosity=2)
        session = cls._session(model)
        try:
            session.attach(optimizer)
            cls.compute_sparse_masks(model)
        except BaseException:
            cls.release(model)
            raise

    # ---- beyond apex --------------------------------------------------------------------------------

    @classmethod
    def report(cls, model: nn.Module | None = None) -> Report:
        """One row a weight: pruned or not, and why."""
        return cls._session(model).report()

    @classmethod
    def permutation_report(cls, model: nn.Module | None = None) -> PermutationReport | None:
        """What ``allow_permutation=True`` did to every weight; None: nothing yet, or it was not set."""
        return cls._session(model).permutation

    @classmethod
    def release(cls, model: nn.Module) -> None:
        """Forget ``model`` and stop enforcing its masks; its weights stay as they are.

        Raises:
            ValueError: ``model`` was not initialised.
        """
        session = cls._session(model)
        session.detach()
        cls._sessions.remove(session)

    @classmethod
    def state_dict(cls, model: nn.Module) -> dict[str, Any]:
        """``model.state_dict()`` with the masks under apex's keys, for a checkpoint that apex can load.

        ``<layer>.__<parameter>_mma_mask``: bool, True = kept, all True before pruning. With
        ``allow_recompute_mask`` also ``<layer>.__<parameter>_mma_pruned_p``: the pruned values.

        Raises:
            ValueError: ``model`` was not initialised.
        """
        return checkpoints.written(model, cls._session(model))

    @classmethod
    def load_state_dict(cls, model: nn.Module, state_dict: Mapping[str, Any]) -> None:
        """Load weights and masks from :meth:`state_dict` or from apex.

        The checkpoint decides what is masked: layers that ASP leaves alone here, but has a mask for
        there (apex prunes output heads), are masked from now on. Where a mask prunes, the weight is
        made +0.0.

        Raises:
            TypeError: a mask that is not a tensor.
            ValueError: ``model`` was not initialised; keys or shapes that do not fit it; a mask that
                breaks the pattern; pruned values missing under ``allow_recompute_mask``. Nothing was
                changed.
        """
        checkpoints.load(model, cls._session(model), state_dict)

    # ---- sessions -----------------------------------------------------------------------------------

    @classmethod
    def _forget(cls, owner: weakref.ref[nn.Module]) -> None:
        cls._sessions[:] = [session for session in cls._sessions if session.owner is not owner]

    @classmethod
    def _session(cls, model: nn.Module | None) -> Session:
        if model is not None:
            base = unwrap(model) if isinstance(model, nn.Module) else model
            found = [session for session in cls._sessions if session.owner() is base]
        else:
            found = list(cls._sessions)
        if not found:
            raise ValueError("no such model: call ASP.init_model_for_pruning(model) first")
        if len(found) > 1:
            raise ValueError(f"{len(found)} models were initialised: say which one with model=")
        return found[0]


def _print_choice(session: Session) -> None:
    for row in session.report():
        will_be_pruned = row.reason.startswith("not pruned yet")
        if will_be_pruned and session.verbosity >= 3:
            print(f"[ASP] Sparsifying {row.name} of size={row.shape}")
        elif not will_be_pruned and session.verbosity >= 1:
            print(f"[ASP] Not sparsifying {row.name} of size={row.shape}: {row.reason}")
