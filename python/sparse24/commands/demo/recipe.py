"""Part a: the talk's recipe on real images: train dense, prune, retrain with the same schedule, compress."""

from __future__ import annotations

import copy
import functools
import gzip
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn

from ... import Sparsifier, to_sparse
from ...timing import Pair
from .outcome import Outcome, Progress, in_words, save_both, size_row, speed_row

BATCHES = (1, 64)  # that latency is measured at
TITLE = "a. the recipe"
FASHION = Path("/usr/share/datasets/fashion-mnist")
SEED = 0
_FASHION_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


class Images(NamedTuple):
    """Images [N, 1, H, W] in 0 to 1 and labels [N], to train on and to test with."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Plan(NamedTuple):
    """The size of the experiment: one schedule, used for every training."""

    depth: int  #: further convolutions after the first of each stage
    epochs: int
    train_images: int
    test_images: int


def load_images(quick: bool) -> tuple[Images, Plan]:
    """Fashion-MNIST where its files are on the machine, else, or for ``quick``, scikit-learn's digits."""
    if quick or not all((FASHION / f"{name}.gz").exists() for name in _FASHION_FILES):
        plan = Plan(1, 2, 1297, 500) if quick else Plan(2, 5, 1297, 500)
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
        labels = torch.tensor(digits.target)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
        train, test = order[: plan.train_images], order[plan.train_images :]
        return Images("digits 8x8", (images[train], labels[train]), (images[test], labels[test])), plan
    plan = Plan(1, 3, 3000, 2000)
    arrays = [read_idx(FASHION / f"{name}.gz") for name in _FASHION_FILES]
    sizes = (plan.train_images, plan.train_images, plan.test_images, plan.test_images)
    cut = [array[:size] for array, size in zip(arrays, sizes, strict=True)]
    train_x, test_x = (images[:, None].float() / 255 for images in cut[::2])
    train_y, test_y = (labels.long() for labels in cut[1::2])
    return Images("Fashion-MNIST 28x28", (train_x, train_y), (test_x, test_y)), plan


def read_idx(path: Path) -> Tensor:
    """An idx file of uint8: four bytes, the last one the number of dims; the dims, big-endian int32; data."""
    with gzip.open(path) as file:
        content = file.read()
    dims = np.frombuffer(content, ">i4", content[3], offset=4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * len(dims))
    return torch.from_numpy(data.reshape(dims).copy())


def cnn(depth: int, stem_stride: int) -> nn.Sequential:
    """Three stages of 3x3 convolutions, 64, 128 and 256 channels wide, for images of one channel."""

    def unit(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = unit(1, 64, stem_stride)
    for width, stride in ((64, 1), (128, 2), (256, 2)):
        if stride > 1:
            layers += unit(width // 2, width, stride)
        for _ in range(depth):
            layers += unit(width, width, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


class Training(NamedTuple):
    """SGD with a one-cycle schedule, the same batches every time."""

    images: Images
    epochs: int
    progress: Progress

    def fit(self, name: str, model: nn.Module, sparsifier: Sparsifier | None = None) -> None:
        """Train ``model``; a sparsifier keeps what it pruned at zero."""
        x, y = self.images.train
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        steps = self.epochs * math.ceil(len(x) / 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        if sparsifier is not None:
            sparsifier.attach(optimizer)
        model.train()
        for epoch in range(self.epochs):
            self.progress.now(f"{name}, epoch {epoch + 1} of {self.epochs}")
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
            for batch in torch.split(order, 64):
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
        model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images) -> float:
    """Share of test images that the model, in eval mode, labels right."""
    right = [
        (model(x).argmax(1) == y).sum()
        for x, y in zip(*(torch.split(tensor, 250) for tensor in images.test), strict=True)
    ]
    return float(torch.stack(right).sum() / len(images.test[1]))


class _Trained(NamedTuple):
    """The two networks, and what was measured on the way."""

    dense: nn.Module
    sparse: nn.Module  #: every layer compressed that can be: the smallest file
    fast: nn.Module  #: those compressed that are faster so here
    accuracy: dict[str, float]
    converted: int  #: layers
    stayed: dict[str, str]  #: dense layers, and why
    slower: dict[str, str]  #: layers that stay dense where speed counts, and the times


def _train(images: Images, plan: Plan, progress: Progress) -> _Trained:
    """The recipe; and the dense network trained as long as the sparse one, for comparison."""
    training = Training(images, plan.epochs, progress)
    dense = cnn(plan.depth, stem_stride=2 if images.train[0].shape[-1] > 16 else 1)
    training.fit("train dense", dense)
    scores = {"dense": accuracy(dense, images)}
    model = copy.deepcopy(dense)
    sparsifier = Sparsifier(model)
    skipped = {row.name: row.reason for row in sparsifier.prune().left}
    scores["pruned, not retrained"] = accuracy(model, images)
    training.fit("retrain pruned", model, sparsifier)
    sparsifier.verify()
    scores["pruned and retrained"] = accuracy(model, images)
    fast = copy.deepcopy(model)
    x, _ = images.test
    chosen = to_sparse(fast, example_inputs=[x[:batch] for batch in BATCHES])
    slower = {row.name: row.reason for row in chosen.left if row.reason.endswith("stays dense")}
    report = to_sparse(model, when="always")
    stayed = {row.name: skipped.get(row.name, row.reason) for row in report.left}
    scores["the same, compressed"] = accuracy(model, images)
    longer = copy.deepcopy(dense)
    training.fit("train dense further", longer)
    scores["dense, trained as long"] = accuracy(longer, images)
    return _Trained(dense, model, fast, scores, len(report.done), stayed, slower)


def run(quick: bool, out: Path, progress: Progress) -> Outcome:
    """Train, prune, retrain, compress and compare; the two files go to ``out``."""
    images, plan = load_images(quick)
    progress.start(TITLE, 3 * plan.epochs + 2)
    trained = _train(images, plan, progress)
    sizes = save_both(trained.dense, trained.sparse, out, "recipe")
    pairs = {}
    with torch.inference_mode():
        for batch in BATCHES:
            progress.now(f"latency at batch {batch}")
            x = images.test[0][:batch]
            calls = functools.partial(trained.dense, x), functools.partial(trained.fast, x)
            pairs[f"latency, batch {batch}"] = Pair.measure(*calls, 0.5 if quick else 2.0)
    scores = trained.accuracy
    table: list[tuple[str, ...]] = [("what", "dense", "sparse", "ratio")]
    table += [speed_row(name, pair) for name, pair in pairs.items()]
    table.append(size_row("file", sizes))
    table.append(
        (
            "test accuracy", f"{scores['dense']:.1%}", f"{scores['the same, compressed']:.1%}",
            f"pruned, before retraining: {scores['pruned, not retrained']:.1%}",
        )
    )  # fmt: skip
    one_image = 1 / len(images.test[1])
    notes = [
        f"{images.name}: {len(images.train[1])} training images, {len(images.test[1])} to test with (one is "
        f"{one_image:.2%}); {plan.epochs} epochs a training, seed {SEED}.",
        "The dense network, trained a second time as the sparse one was: "
        f"{scores['dense, trained as long']:.1%}.",
        f"{trained.converted} layers run sparse; "
        + "; ".join(f"layer {name} stays dense ({reason})" for name, reason in trained.stayed.items()),
    ]
    notes += [f"For speed, layer {name} stays dense, too: {told}." for name, told in trained.slower.items()]
    data = {
        "images": images.name,
        "accuracy": scores,
        "bytes": sizes,
        "seconds": {name: {"dense": pair.dense, "sparse": pair.sparse} for name, pair in pairs.items()},
        "plan": plan._asdict(),
        "seed": SEED,
    }
    short = (
        f"The recipe on {images.name}: dense, {scores['dense']:.1%} of the test images are labelled right; "
        f"pruned, {scores['pruned, not retrained']:.1%}; retrained and compressed, "
        f"{scores['the same, compressed']:.1%}, {in_words(pairs[f'latency, batch {BATCHES[-1]}'])} at batch "
        f"{BATCHES[-1]}, from a file {sizes[0] / sizes[1]:.2f}x smaller."
    )
    return Outcome(TITLE, short, table, notes, data)
