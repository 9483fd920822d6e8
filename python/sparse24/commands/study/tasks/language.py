"""Language: bits a byte of text, and the kind of noun that a definition is of, after masked pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score  # type: ignore[import-untyped]
from torch import Tensor, nn

from ...bench.tasks import bytes as byte_models
from ..networks.language import Bert, MaskedModel
from ..sources import Sources
from .pairs import byte_pairs
from .task import Phase, Task, windows

CONTEXT = 256
_JUDGED = 16  #: one file of so many is judged by
_MASK, _CLASS, _FIRST = 1, 2, 3


class Bytes(Task):
    """The next byte of the documentation of Python; files of their own judge."""

    metric, data = "bits a byte", "Python documentation"
    higher_is_better = False

    def __init__(
        self,
        sources: Sources,
        quick: bool,
        make: Callable[[], nn.Module],
        context: int = CONTEXT,
        batch: int = 12,
    ) -> None:
        files = sources.texts()
        self._judge = byte_models.joined(files[::_JUDGED])
        self._train = byte_models.joined([text for i, text in enumerate(files) if i % _JUDGED])
        self._make, self._context, self._batch = make, context, batch
        self._windows = 8 if quick else 256

    def network(self) -> nn.Module:
        return self._make()

    def _some(self, text: Tensor, count: int, draw: torch.Generator) -> Tensor:
        return byte_models.windows(text, count, draw, self._context)

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        return byte_models.nats(model, self._some(self._train, self._batch, draw))

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        some = self._some(self._judge, self._windows, torch.Generator().manual_seed(24))
        parts = torch.split(some, 32)
        return (
            sum(float(byte_models.nats(model, part)) * len(part) for part in parts) / len(some) / math.log(2)
        )

    def calibration(self) -> Sequence[Tensor]:
        return torch.split(self._some(self._train, 64, torch.Generator().manual_seed(0))[:, :-1], 8)


class Nouns(Task):
    """Which of WordNet's 26 kinds of noun a definition is of, from few labels; F1 is the mean over kinds."""

    metric, data = "F1, %", "WordNet"
    batch = 32

    def __init__(self, sources: Sources, quick: bool, make: Callable[[int, int], Bert]) -> None:
        glosses = sources.glosses()[:: 100 if quick else 1]
        texts = [text for text, _ in glosses]
        tokenizer: Any = byte_pairs(texts[:: 1 if quick else 4], 600 if quick else 3000)
        rows = [[_CLASS, *(n + _FIRST for n in tokenizer.encode(text).ids[:38])] for text in texts]
        longest = max(map(len, rows))
        x = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        y = torch.tensor([kind - 3 for _, kind in glosses])
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        judged = order[: len(x) // 20]
        labelled = order[len(x) // 20 : len(x) // 20 + (400 if quick else 12000)]
        self._all = x[order[len(x) // 20 :]]
        self._x, self._y, self._judged_x, self._judged_y = x[labelled], y[labelled], x[judged], y[judged]
        self._tokens, self._make = tokenizer.get_vocab_size() + _FIRST, make

    def network(self) -> Bert:
        return self._make(self._tokens, 26)

    def before(self, model: nn.Module) -> Phase:
        assert isinstance(model, Bert)
        return Phase(MaskedModel(model), self._masked, 1.0)

    def _masked(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        x = _short(self._all[windows(len(self._all), self.batch, draw)])
        hidden = (torch.rand(x.shape, generator=draw) < 0.15) & (x >= _FIRST)
        logits = model(torch.where(hidden, _MASK, x))
        return F.cross_entropy(logits[hidden].float(), x[hidden])

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        rows = windows(len(self._x), self.batch, draw)
        return F.cross_entropy(model(_short(self._x[rows])).float(), self._y[rows])

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        guesses = torch.cat([model(_short(x)).argmax(1) for x in torch.split(self._judged_x, 128)])
        return 100 * float(f1_score(self._judged_y, guesses, average="macro", zero_division=0.0))

    def calibration(self) -> Sequence[Tensor]:
        return [_short(part) for part in torch.split(self._x[:256], 32)]


def _short(x: Tensor) -> Tensor:
    """Without the columns in which all are padding."""
    return x[:, : int((x != 0).sum(1).max())]
