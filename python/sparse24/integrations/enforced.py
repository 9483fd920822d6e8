"""What callbacks of training libraries share: a Sparsifier or recipe that is begun, saved and logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..pruning import Sparsifier
from ..pruning.recipes import DynamicSparsity

Kind = Sparsifier | DynamicSparsity
#: A Sparsifier or recipe, or what makes one of the model, as the classes and named recipes do.
Given = Kind | Callable[[nn.Module], Kind]


class Enforced:
    """A Sparsifier or a recipe over one training.

    Args:
        given: it, or what makes it of the model when training begins: ``Sparsifier`` itself is that, too.

    Raises:
        TypeError: neither.
    """

    def __init__(self, given: Given) -> None:
        if not isinstance(given, Sparsifier | DynamicSparsity) and not callable(given):
            raise TypeError(
                f"the callback takes a Sparsifier, a recipe, or a function of the model that makes one, not "
                f"{type(given).__name__}"
            )
        self._given = given
        self.kind: Kind | None = given if isinstance(given, Sparsifier | DynamicSparsity) else None

    def begin(
        self, model: nn.Module, optimizers: Iterable[Optimizer], state: Mapping[str, Any] | None = None
    ) -> None:
        """Make it, load or make its masks, and attach it.

        Args:
            state: of :meth:`state_dict`, where a training goes on.

        Raises:
            TypeError, ValueError: as the Sparsifier's or the recipe's own methods.
        """
        if self.kind is None:
            made: Any = self._given(model)  # type: ignore[operator]
            if not isinstance(made, Sparsifier | DynamicSparsity):
                raise TypeError(f"what makes a Sparsifier or a recipe returned {type(made).__name__}")
            self.kind = made
        kind = self.kind
        if state is not None:
            kind.load_state_dict(state)
        elif isinstance(kind, Sparsifier) and not kind.masks:
            kind.prune()
        if isinstance(kind, DynamicSparsity) and kind.optimizer is not None:
            return  # a second call to train goes on
        for optimizer in optimizers:
            kind.attach(optimizer)

    def end(self) -> None:
        """Check what was pruned. A recipe may go on in a longer training: its weights are masked now."""
        if self.sparsifier is not None and self.sparsifier.masks:
            self.sparsifier.verify()

    @property
    def sparsifier(self) -> Sparsifier | None:
        """The Sparsifier, once training has begun."""
        return self.kind.sparsifier if isinstance(self.kind, DynamicSparsity) else self.kind

    def state_dict(self) -> dict[str, Any]:
        """Of the Sparsifier or recipe; empty before training begins."""
        return {} if self.kind is None else self.kind.state_dict()

    def metrics(self) -> dict[str, float]:
        """``sparse24/kept``, the share of the weights to prune that masks keep (1 without masks), and of a
        recipe ``sparse24/flips``, the share of mask entries that the last refresh changed."""
        sparsifier = self.sparsifier
        if sparsifier is None:
            return {}
        masks = list(sparsifier.masks.values())
        kept = sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) if masks else 1.0
        flips = {"sparse24/flips": self.kind.flips} if isinstance(self.kind, DynamicSparsity) else {}
        return {"sparse24/kept": kept, **flips}
