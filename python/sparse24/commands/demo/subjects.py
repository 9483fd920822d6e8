"""What the demo prunes in one shot: a pretrained encoder, or where there is none a small one trained here."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..bench.tasks import bytes as byte_models
from ..bench.tasks import minilm as wordnet
from . import transformer
from .outcome import Progress
from .sentences import PAIRS, docstrings

#: Pairs of a noun and its definition that the encoder is judged by, where WordNet is installed.
NOUNS = 500
#: Of the small model: bytes it sees at once, windows of a batch, and windows that it is judged by.
CONTEXT, BATCH, JUDGED = 128, 16, 64
#: Steps of its training, in a quick demo and in a whole one.
STEPS = (40, 200)


@dataclasses.dataclass(frozen=True)
class Score:
    """What a network is judged by."""

    name: str
    higher_is_better: bool
    text: str = "{:.3f}"  #: how a table writes it


@dataclasses.dataclass(frozen=True)
class Subject:
    """A dense network, in eval mode, and what is done with it."""

    name: str
    note: str  #: where it is from
    more: str  #: what goes on where the demo stops, with its command
    dense: nn.Module
    calibration: Sequence[Tensor]  #: unlabelled batches, which nothing is judged by
    inputs: Callable[[int], Tensor]  #: of a batch of so many
    layers: tuple[str, ...]  #: names of linear layers that are timed alone
    scores: tuple[Score, ...]  #: the first is the one that counts
    judge: Callable[[nn.Module], list[float]]  #: a number a score


def subject(quick: bool, progress: Progress) -> Subject:
    """MiniLM where it is installed, else the small model."""
    folder = transformer.model_folder()
    return small(quick, progress) if folder is None else minilm(folder, quick)


# ---- the pretrained one -----------------------------------------------------------------------------


def minilm(folder: Path, quick: bool) -> Subject:
    """MiniLM-L6, calibrated on docstrings, judged by sentences that nobody trained it on."""
    dense = transformer.load(folder)
    tokenizer = transformer.load_tokenizer(folder)
    tokens = transformer.tokens_of(tokenizer, [sentence for pair in PAIRS for sentence in pair])
    calibration = sorted(docstrings(64 if quick else 512), key=len)
    nouns: list[tuple[str, str]] = []
    if not quick and wordnet.NOUNS.exists():
        found = wordnet.pairs(wordnet.NOUNS)
        nouns = random.Random(24).sample(found, min(NOUNS, len(found)))
    reference = _embedded(dense, tokens)

    def judge(model: nn.Module) -> list[float]:
        embeddings = _embedded(model, tokens)
        cosine = (reference * embeddings).sum(-1)
        right = partners(embeddings) / len(tokens)
        scores = [float(cosine.mean()), float(cosine.min()), right]
        if nouns:
            lemmas, glosses = (_batched(model, tokenizer, [pair[i] for pair in nouns]) for i in (0, 1))
            nearest = (glosses @ lemmas.t()).argmax(1)
            scores.insert(0, float((nearest == torch.arange(len(nouns))).float().mean()))
        return scores

    scores = [
        Score("cosine of an embedding to the dense one, mean", True),
        Score("the same, worst sentence", True),
        Score(f"paraphrase nearest of {len(tokens)} sentences", True, "{:.1%}"),
    ]
    if nouns:
        scores.insert(0, Score(f"definition finds its noun among {len(nouns)}", True, "{:.1%}"))
    return Subject(
        "MiniLM-L6, a pretrained sentence encoder",
        f"calibrated on {len(calibration)} docstrings of Python's library",
        "To go on, with some minutes for training each block on what the dense one gives: "
        f"sparse24 oneshot {folder} --data TEXTS --out DIR",
        dense,
        [transformer.tokens_of(tokenizer, calibration[i : i + 32]) for i in range(0, len(calibration), 32)],
        lambda batch: tokens.repeat(-(-batch // len(tokens)), 1)[:batch],
        ("layers.0.query", "layers.0.expand", "layers.0.contract"),
        tuple(scores),
        judge,
    )


def partners(embeddings: Tensor) -> int:
    """Sentences [2 N, width] whose paraphrase, the other one of their pair, is the nearest of all others."""
    similarity = (embeddings @ embeddings.t()).fill_diagonal_(-1)
    return int((similarity.argmax(1) == torch.arange(len(embeddings)) ^ 1).sum())


@torch.inference_mode()
def _embedded(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens)
    return found.float()


def _batched(model: nn.Module, tokenizer: object, texts: Sequence[str]) -> Tensor:
    """Embeddings of many texts, in batches of like length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [order[i : i + 64] for i in range(0, len(order), 64)]
    tokens = [transformer.tokens_of(tokenizer, [texts[i] for i in part]) for part in parts]  # type: ignore[arg-type]
    found = torch.cat([_embedded(model, part) for part in tokens])
    return found[torch.tensor(order).argsort()]


# ---- the small one ----------------------------------------------------------------------------------


def small(quick: bool, progress: Progress) -> Subject:
    """A language model over bytes, trained on the source of Python's library and judged by files apart."""
    texts = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    judged, calibrated, trained = (byte_models.joined(texts[i::8]) for i in (0, 1, 2))
    trained = torch.cat([trained, *(byte_models.joined(texts[i::8]) for i in range(3, 8))])
    steps, begin = STEPS[not quick], time.perf_counter()
    model = byte_models.Gpt(256, 3, 4)
    _fit(model, trained, steps, progress)
    spent = time.perf_counter() - begin
    windows = _windows(judged, JUDGED, 24)

    @torch.inference_mode()
    def judge(model: nn.Module) -> list[float]:
        return [float(byte_models.nats(model, windows)) / math.log(2)]

    return Subject(
        "a small language model, trained here",
        f"a model over bytes, trained here for {spent:.0f} s ({steps} steps) on Python's library, "
        "and judged by files apart",
        f"It stands in for a pretrained one: {transformer.MISSING}",
        model.eval(),
        [_windows(calibrated, BATCH, seed)[:, :-1] for seed in range(2 if quick else 8)],
        lambda batch: judged[: batch * CONTEXT].view(batch, CONTEXT),
        ("blocks.0.qkv", "blocks.0.up", "blocks.0.down"),
        (Score("bits a byte, on files apart", False),),
        judge,
    )


def _windows(text: Tensor, count: int, seed: int) -> Tensor:
    """[count, CONTEXT + 1] at random places."""
    return byte_models.windows(text, count, torch.Generator().manual_seed(seed), CONTEXT)


def _fit(model: nn.Module, text: Tensor, steps: int, progress: Progress) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.1)
    warm = max(1, steps // 10)
    rate = functools.partial(_rate, warm=warm, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    progress.now(f"train for {steps} steps")
    for step in range(steps):
        loss = byte_models.nats(model, _windows(text, BATCH, step))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _rate(step: int, warm: int, steps: int) -> float:
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
