"""A pretrained sentence encoder: find the noun that a definition of WordNet belongs to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....files import FileError
from ...demo import transformer

NOUNS = Path("/usr/share/wordnet/data.noun")
_BATCH, _LONGEST = 32, 128


class Here:
    """Top-1 of retrieval among as many nouns as there are definitions."""

    score_name = "top-1"
    higher_is_better = True

    def __init__(self, quick: bool) -> None:
        folder = transformer.model_folder()
        if folder is None:
            raise FileError(transformer.MISSING)
        if not NOUNS.exists():
            raise FileError(f"{NOUNS}: No such file or directory: apt-get install wordnet-base")
        self._folder = folder
        self._tokenizer = transformer.load_tokenizer(folder)
        self._tokenizer.enable_truncation(_LONGEST)
        found = pairs(NOUNS)
        random.Random(24).shuffle(found)
        judged, self._calibrated = (100, 64) if quick else (2000, 1024)
        self._judge, self._others = found[:judged], found[judged:]

    def dense(self) -> nn.Module:
        return transformer.load(self._folder)

    def calibration(self, seed: int) -> Sequence[Any]:
        """Texts of other pairs, half of them definitions, in batches of similar length."""
        some = random.Random(seed).sample(self._others, self._calibrated)
        texts = sorted((text for pair in some for text in pair), key=len)
        parts = [texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH)]
        random.Random(seed).shuffle(parts)
        return [self._tokens(part) for part in parts]

    def score(self, model: nn.Module) -> float:
        lemmas, glosses = (self._embeddings(model, [pair[i] for pair in self._judge]) for i in (0, 1))
        nearest = (glosses @ lemmas.t()).argmax(1)
        return float((nearest == torch.arange(len(nearest))).float().mean())

    @torch.no_grad()
    def _embeddings(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [order[i : i + 64] for i in range(0, len(order), 64)]
        found = torch.cat([model(self._tokens([texts[i] for i in part])) for part in parts])
        return found[torch.tensor(order).argsort()]

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        return transformer.tokens_of(self._tokenizer, texts)


def pairs(path: Path) -> list[tuple[str, str]]:
    """Lemma and definition, each lemma once, with its first definition and without examples."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        lemma = fields.split()[4].replace("_", " ")
        found.setdefault(lemma, gloss.partition('; "')[0].strip())
    return list(found.items())
