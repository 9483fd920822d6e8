"""2:4 in transformers' ``Trainer``: one callback, whose masks are in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..pruning import Sparsifier
from .enforced import Enforced, Given

#: In every checkpoint folder, beside the weights and the optimizer's state.
FILE = "sparse24.pt"


class SparsifierCallback(TrainerCallback):
    """Prune when training begins, enforce the masks at every step, save and load them with the checkpoints.

    ``Trainer(..., callbacks=[SparsifierCallback()])``. ``train(resume_from_checkpoint=True)`` goes on with
    the masks of that checkpoint, to the same bits. The share of kept weights, and of mask entries that
    changed, are in the log as ``sparse24/kept`` and ``sparse24/flips``. Where training ends it is verified.

    Args:
        given: a :class:`~sparse24.Sparsifier` or a recipe of the model, or what makes one of it.
        resume_from: the folder that training goes on from, where it is not in ``args.output_dir``.

    Raises:
        TypeError: something else; in ``train``, what the Sparsifier's own methods raise.
        FileNotFoundError: in ``train``: it resumes, and the checkpoint has no masks.
    """

    def __init__(self, given: Given = Sparsifier, *, resume_from: str | Path | None = None) -> None:
        self._enforced = Enforced(given)
        self._resume_from = resume_from

    @property
    def sparsifier(self) -> Sparsifier | None:
        """The Sparsifier, once training has begun."""
        return self._enforced.sparsifier

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        found = self._resumed(args, state) if state.global_step > 0 else None
        saved = None if found is None else torch.load(found, map_location="cpu", weights_only=True)
        self._enforced.begin(kwargs["model"], [kwargs["optimizer"]], saved)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if not args.should_save:  # one process of several writes
            return
        draft = folder / f"{FILE}.draft"
        torch.save(self._enforced.state_dict(), draft)
        draft.replace(folder / FILE)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = self._enforced.metrics()
        if logs is not None:
            logs.update(metrics)
        if state.log_history:
            state.log_history[-1].update(metrics)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._enforced.end()

    def _resumed(self, args: TrainingArguments, state: TrainerState) -> Path:
        folders = [
            Path(folder)
            for folder in (
                self._resume_from,
                args.resume_from_checkpoint,
                Path(str(args.output_dir)) / f"checkpoint-{state.global_step}",
            )
            if folder is not None
        ]
        for folder in folders:
            if (folder / FILE).exists():
                return folder / FILE
        raise FileNotFoundError(
            f"training goes on at step {state.global_step}, but there are no masks ({FILE}) in "
            f"{' or '.join(map(str, folders))}: give SparsifierCallback(resume_from=FOLDER), or begin anew"
        )
