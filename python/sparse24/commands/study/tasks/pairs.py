"""From one sequence to another: Spanish for English verses, phonemes for spelling, and edits of phonemes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....files import FileError
from ..networks.sequences import BEGIN, END, HOLE, PAD, greedy
from ..sources import Sources
from .task import Task, windows

_FIRST = 4  #: numbers of tokens below have meanings of their own
Pair = tuple[list[int], list[int]]


class _Pairs(Task):
    """Pairs of sequences, padded; ``judged`` of them judge, a fifth at most."""

    batch: int

    def __init__(
        self, pairs: Sequence[Pair], tokens: int, judged: int, make: Callable[[int], nn.Module]
    ) -> None:
        judged = min(judged, len(pairs) // 5)
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
        padded = [_padded([pairs[i][side] for i in order]) for side in (0, 1)]
        self._source, self._target = (side[judged:] for side in padded)
        self._judged_source, self._judged_target = (side[:judged] for side in padded)
        self._tokens, self._make = tokens, make

    def network(self) -> nn.Module:
        return self._make(self._tokens)

    def _rows(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pairs without the columns in which all are padding."""
        rows = windows(len(self._source), self.batch, draw)
        return _trimmed(self._source[rows]), _trimmed(self._target[rows])

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        source, target = self._rows(draw)
        logits = model(source, target[:, :-1])
        return F.cross_entropy(
            logits.float().flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD, label_smoothing=0.1
        )

    def calibration(self) -> Sequence[tuple[Tensor, Tensor]]:
        return [
            (_trimmed(self._source[i : i + 32]), _trimmed(self._target[i : i + 32])[:, :-1])
            for i in range(0, 256, 32)
        ]

    def _answers(self, model: nn.Module) -> list[list[int]]:
        longest = self._judged_target.shape[1]
        found = [greedy(model, _trimmed(part), longest) for part in torch.split(self._judged_source, 250)]
        return [_content(row) for row in torch.cat(found).tolist()]


class Verses(_Pairs):
    """English to Spanish, verses of at most 16 words."""

    metric, data, batch = "BLEU", "Bible, en-es", 48

    def __init__(self, sources: Sources, quick: bool, make: Callable[[int], nn.Module]) -> None:
        texts = [pair for pair in sources.verses() if max(len(side.split()) for side in pair) <= 16]
        texts = texts[:400] if quick else texts
        self._tokenizer = byte_pairs([side for pair in texts for side in pair], 600 if quick else 2000)
        pairs = [(self._numbers(english), self._numbers(spanish)) for english, spanish in texts]
        super().__init__(pairs, self._tokenizer.get_vocab_size() + _FIRST, 300, make)

    def _numbers(self, text: str) -> list[int]:
        numbers: list[int] = self._tokenizer.encode(text).ids
        return [number + _FIRST for number in numbers][:40]

    def _text(self, numbers: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([number - _FIRST for number in numbers if number >= _FIRST])
        return text

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        try:
            judge: Any = importlib.import_module("sacrebleu")
        except ModuleNotFoundError:
            raise FileError("translation is judged by sacrebleu: pip install sacrebleu") from None
        truth = [self._text(_content(row[1:])) for row in self._judged_target.tolist()]
        bleu = judge.corpus_bleu([self._text(row) for row in self._answers(model)], [truth])
        return float(bleu.score)


class Phonemes(_Pairs):
    """How a word is spoken; errors are edits, as a share of all phonemes."""

    metric, data, batch = "phoneme errors, %", "CMUdict", 64
    higher_is_better = False

    def __init__(self, sources: Sources, quick: bool, make: Callable[[int], nn.Module]) -> None:
        words = sources.pronunciations()
        words = words[::200] if quick else words
        known = sorted({phoneme for _, phonemes in words for phoneme in phonemes})
        letters = {letter: i + _FIRST for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
        sounds = {phoneme: i + _FIRST + len(letters) for i, phoneme in enumerate(known)}
        pairs = [([letters[c] for c in word.lower()], [sounds[p] for p in said]) for word, said in words]
        tokens = _FIRST + len(letters) + len(sounds)
        super().__init__(pairs, tokens, 2000, make)

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        truth = [_content(row[1:]) for row in self._judged_target.tolist()]
        edits = sum(_edits(a, b) for a, b in zip(self._answers(model), truth, strict=True))
        return 100 * edits / sum(map(len, truth))


class Edits(Phonemes):
    """The same words, for a network that edits: judged by its loss on edits of words of their own."""

    metric, data = "validation loss, nats", "CMUdict, edits"

    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        source, target = self._rows(draw)
        return self._edited(model, source, target, draw)

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        draw = torch.Generator().manual_seed(0)
        parts = list(zip(*(torch.split(side, 250) for side in self._judged), strict=True))
        losses = [float(self._edited(model, _trimmed(a), _trimmed(b), draw)) for a, b in parts]
        return sum(losses) / len(losses)

    @property
    def _judged(self) -> tuple[Tensor, Tensor]:
        return self._judged_source, self._judged_target

    @staticmethod
    def _edited(model: nn.Module, source: Tensor, target: Tensor, draw: torch.Generator) -> Tensor:
        """The sum of three losses: what is to go, how many are missing, which they are."""
        inner = (target != PAD) & (target != BEGIN) & (target != END)
        wrong = inner & (torch.rand(target.shape, generator=draw) < 0.3)
        other = target[inner][torch.randint(int(inner.sum()), (int(inner.sum()),), generator=draw)]
        spoilt = target.masked_scatter(inner, other)
        removal = model(source, torch.where(wrong, spoilt, target))[0].float()
        gone = wrong & (spoilt != target)
        first = F.cross_entropy(removal[inner], gone[inner].long())
        lost = inner & (
            torch.rand(target.shape, generator=draw) < torch.rand((len(target), 1), generator=draw)
        )
        order = (~lost & (target != PAD)).int().argsort(stable=True, dim=1, descending=True)
        rest = target.gather(1, order)
        length = (~lost & (target != PAD)).sum(1, keepdim=True)
        there = torch.arange(target.shape[1]) < length
        shorter = torch.where(there, rest, PAD)
        places = torch.where(there, order, 0)
        missing = (places[:, 1:] - places[:, :-1] - 1).clamp(0, 4)
        second = F.cross_entropy(model(source, shorter)[1].float()[there[:, 1:]], missing[there[:, 1:]])
        holes = torch.where(lost, HOLE, target)
        third = (
            F.cross_entropy(model(source, holes)[2].float()[lost], target[lost]) if lost.any() else second * 0
        )
        return first + second + third


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Each between a beginning and an end."""
    longest = max(map(len, rows)) + 2
    return torch.tensor([[BEGIN, *row, END] + [PAD] * (longest - len(row) - 2) for row in rows])


def _trimmed(rows: Tensor) -> Tensor:
    return rows[:, : int((rows != PAD).sum(1).max())]


def _content(row: Sequence[int]) -> list[int]:
    """What stands before the end."""
    row = list(row)
    return row[: row.index(END)] if END in row else [token for token in row if token != PAD]


def _edits(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein's distance."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a):
        now = [i + 1]
        for j, y in enumerate(b):
            now.append(min(before[j] + (x != y), before[j + 1] + 1, now[j] + 1))
        before = now
    return before[-1]


def byte_pairs(texts: Sequence[str], size: int) -> Any:
    """A tokenizer of at most ``size`` pieces of these texts."""
    tokenizers: Any = importlib.import_module("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False)
    return made
