"""2:4 in Lightning: one callback, whose masks are in its checkpoints."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..pruning import Sparsifier
from .enforced import Enforced, Given


class SparsifierCallback(Callback):
    """Prune when ``fit`` begins, enforce the masks at every step, save and load them with the checkpoints.

    ``Trainer(..., callbacks=[SparsifierCallback()])``; ``fit(model, ckpt_path=...)`` goes on with the masks
    of that checkpoint. The share of kept weights, and of mask entries that changed, are logged each epoch as
    ``sparse24/kept`` and ``sparse24/flips``. Where ``fit`` ends it is verified.

    Args:
        given: a :class:`~sparse24.Sparsifier` or a recipe of the model, or what makes one of it.

    Raises:
        TypeError: something else; in ``fit``, what the Sparsifier's own methods raise.
        ValueError: in ``fit``: it resumes, and the checkpoint was written without this callback.
    """

    def __init__(self, given: Given = Sparsifier) -> None:
        self._enforced = Enforced(given)
        self._loaded: dict[str, Any] | None = None

    @property
    def sparsifier(self) -> Sparsifier | None:
        """The Sparsifier, once training has begun."""
        return self._enforced.sparsifier

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > 0 and self._loaded is None:
            raise ValueError(
                f"training goes on at step {trainer.global_step}, but its checkpoint has no masks: it was "
                "written without SparsifierCallback"
            )
        self._enforced.begin(pl_module, trainer.optimizers, self._loaded)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log_dict(self._enforced.metrics())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._enforced.end()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning saves: of the Sparsifier or recipe."""
        return self._enforced.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What Lightning loads, before ``fit`` begins."""
        self._loaded = state_dict or None
