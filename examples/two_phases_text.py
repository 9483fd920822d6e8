"""Two phases over text: a masked language model, pruned; then a classifier with its encoder and masks.

Run: python examples/two_phases_text.py

The text is what every machine has, docstrings of Python's own library. First the model learns to fill in
bytes that are masked; it is pruned once, and trained again. Then a new head learns from few examples which
package a docstring belongs to, the encoder trained on under the masks. The dense network goes the same way.
"""

from __future__ import annotations

import ast
import copy
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from sparse24.pruning import recipes

PACKAGES = ("asyncio", "email", "tkinter", "unittest", "xml", "multiprocessing", "idlelib", "distutils")
LENGTH, WIDTH, MASK = 96, 128, 256
STEPS, BATCH = 200, 32


class Encoder(nn.Module):
    """bytes [N, LENGTH] to [N, LENGTH, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(257, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(self.bytes(x) + self.places.weight)
        return output


class MaskedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(WIDTH, 256)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits


class Classifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x).mean(1))
        return logits


def docstrings() -> tuple[Tensor, Tensor, list[str]]:
    """Bytes [N, LENGTH], the number of the package, and the packages that are here."""
    library = Path(sysconfig.get_path("stdlib"))
    names = [name for name in PACKAGES if (library / name).is_dir()]
    texts: list[bytes] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        for path in sorted((library / name).rglob("*.py")):
            with warnings.catch_warnings():  # of the library's own sources
                warnings.simplefilter("ignore")
                try:
                    tree = ast.parse(path.read_text(encoding="utf-8"))
                except (SyntaxError, UnicodeDecodeError):  # files for tests of a parser
                    continue
            nodes = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Module))
            for text in filter(None, map(ast.get_docstring, nodes)):
                texts.append(" ".join(text.split()).encode()[:LENGTH].ljust(LENGTH))
                labels.append(number)
    joined = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
    return joined.view(-1, LENGTH).long(), torch.tensor(labels), names


def fit(
    model: nn.Module, loss: Callable[[int], Tensor], sparsifier: sparse24.Sparsifier | None, rate: float
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS + 1)
    if sparsifier is not None:
        sparsifier.attach(optimizer)
    model.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def masked_loss(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """Cross entropy of the 15 % of bytes that are masked."""
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.15
    logits = model(torch.where(hidden, MASK, x))
    return F.cross_entropy(logits[hidden], x[hidden])


def main() -> None:
    torch.manual_seed(0)
    texts, labels, names = docstrings()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    texts, labels = texts[order], labels[order]
    test, train = slice(0, len(texts) // 4), slice(len(texts) // 4, None)
    x, y = texts[train], labels[train]
    print(f"{len(x)} docstrings of {', '.join(names)} to train on, {len(texts) - len(x)} to test on")

    def rows(step: int) -> Tensor:
        return torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))

    def language(model: nn.Module) -> Callable[[int], Tensor]:
        return lambda step: masked_loss(model, x[rows(step)], step)

    dense = MaskedModel()
    fit(dense, language(dense), None, 2e-3)
    sparse = copy.deepcopy(dense)  # phase one: pruned once, trained again
    sparsifier = sparse24.Sparsifier(sparse)
    print(sparsifier.prune())
    fit(sparse, language(sparse), sparsifier, 2e-3)
    fit(dense, language(dense), None, 2e-3)  # the dense one gets as many steps
    with torch.no_grad():
        lost = {
            name: float(masked_loss(m, texts[test], 7)) for name, m in (("dense", dense), ("sparse", sparse))
        }
    print(f"masked bytes, nats: dense {lost['dense']:.3f}, sparse {lost['sparse']:.3f}")

    found = {}
    for name, first, masks in (("dense", dense, None), ("sparse", sparse, sparsifier)):
        torch.manual_seed(1)
        model = Classifier(len(names))
        model.encoder.load_state_dict(first.encoder.state_dict())
        carried = None
        if masks is not None:  # phase two: the masks go on with the encoder
            carried, _ = recipes.carry(masks, model)
        fit(
            model,
            lambda step, model=model: F.cross_entropy(model(x[rows(step)]), y[rows(step)]),
            carried,
            5e-4,
        )
        if carried is not None:
            carried.verify()
        with torch.no_grad():
            found[name] = float((model(texts[test]).argmax(1) == labels[test]).float().mean())
    print(f"packages of docstrings: dense {found['dense']:.1%}, sparse {found['sparse']:.1%}")


if __name__ == "__main__":
    main()
