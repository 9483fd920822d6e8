"""Two phases: a classifier of digits, pruned; then a detector on scenes of pasted digits.

Run: python examples/two_phases.py

Two ways to a sparse detector. Masks made after the first phase, kept while the backbone is trained again, and
carried into the detector, whose new head stays dense: the detector is trained once. Or the dense detector
pruned after the second phase, and that phase repeated: twice the steps, and masks that know the task. On this
small backbone the first loses a tenth of the precision, the second little (docs/recipes.md has figures).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparse24
from sparse24.pruning import recipes

SIZE, CELL = 32, 8  # pixels of a scene, and of a cell, in which at most one digit has its centre
STEPS, BATCH = 400, 64


def backbone() -> nn.Sequential:
    """[N, 1, H, W] to features [N, 64, H/8, W/8]."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = backbone(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x).mean((2, 3)))
        return logits


class Detector(nn.Module):
    """For each cell: ten digits or nothing, and where in the cell the centre is."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.neck = backbone(), nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Conv2d(64, 11 + 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found: Tensor = self.head(F.relu(self.neck(self.backbone(x))))
        return found[:, :11], found[:, 11:].sigmoid()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, 8, 8] and labels, to train on and to test on."""
    data = load_digits()
    images, labels = torch.from_numpy(data.images).float().unsqueeze(1) / 16, torch.from_numpy(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1300], order[1300:]
    return images[train], labels[train], images[test], labels[test]


def scenes(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes [N, 1, 32, 32] with three digits, the class of every cell (10: none), and centres in cells."""
    g = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(count, 1, SIZE, SIZE)
    classes = torch.full((count, SIZE // CELL, SIZE // CELL), 10)
    centres = torch.full((count, 2, SIZE // CELL, SIZE // CELL), 0.5)
    for scene in range(count):
        for _ in range(3):
            which = int(torch.randint(len(images), (1,), generator=g))
            top, left = (int(v) for v in torch.randint(SIZE - 8, (2,), generator=g))
            row, column = (top + 4) // CELL, (left + 4) // CELL
            if classes[scene, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].min() < 10:
                continue  # too near to another one
            canvas[scene, 0, top : top + 8, left : left + 8] = images[which, 0]
            classes[scene, row, column] = labels[which]
            centres[scene, :, row, column] = torch.tensor([(top + 4) % CELL, (left + 4) % CELL]) / CELL
    return canvas, classes, centres


def fit(model: nn.Module, loss_of: object, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model.train()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()  # type: ignore[operator]
        optimizer.step()
        schedule.step()
    model.eval()


def train_classifier(model: Classifier, sparsifier: sparse24.Sparsifier | None) -> None:
    x, y, _, _ = digits()

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))
        return F.cross_entropy(model(x[rows]), y[rows])

    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    if sparsifier is not None:
        sparsifier.attach(optimizer)
    fit(model, loss, optimizer, STEPS)


def train_detector(model: Detector, sparsifier: sparse24.Sparsifier | None) -> None:
    images, labels, _, _ = digits()
    x, classes, centres = scenes(images, labels, 2000, seed=1)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))
        scores, places = model(x[rows])
        there = (classes[rows] < 10).unsqueeze(1)
        miss = ((places - centres[rows]).abs() * there).sum() / there.sum().clamp_min(1)
        return F.cross_entropy(scores, classes[rows]) + miss

    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    if sparsifier is not None:
        sparsifier.attach(optimizer)
    fit(model, loss, optimizer, STEPS)


@torch.no_grad()
def accuracy(model: Classifier) -> float:
    _, _, x, y = digits()
    return float((model(x).argmax(1) == y).float().mean())


@torch.no_grad()
def average_precision(model: Detector) -> float:
    """Over all cells of test scenes: a find counts if class and centre, within two pixels, are right."""
    _, _, images, labels = digits()
    x, classes, centres = scenes(images, labels, 500, seed=2)
    scores, places = model(x)
    confidence, guess = scores.softmax(1)[:, :10].max(1)
    near = ((places - centres).abs() * CELL).amax(1) <= 2
    right = ((guess == classes) & near).flatten()[confidence.flatten().argsort(descending=True)]
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    return float((precision * right).sum() / (classes < 10).sum())


def main() -> None:
    torch.manual_seed(0)
    dense = Classifier()
    train_classifier(dense, None)

    sparse = copy.deepcopy(dense)  # phase one: pruned once, trained again
    sparsifier = sparse24.Sparsifier(sparse)
    print(sparsifier.prune())
    train_classifier(sparse, sparsifier)
    again = copy.deepcopy(dense)
    train_classifier(again, None)  # the dense one gets as many steps
    print(f"classifier: dense {accuracy(again):.1%}, sparse {accuracy(sparse):.1%}")

    results, detectors = {}, {}
    for name, first, masks in (("dense", again, None), ("masks carried", sparse, sparsifier)):
        torch.manual_seed(1)
        detector = Detector()
        detector.backbone.load_state_dict(first.backbone.state_dict())
        carried = None
        if masks is not None:  # phase two: the masks go on with the weights
            carried, report = recipes.carry(masks, detector)
            print(report)
        train_detector(detector, carried)
        if carried is not None:
            carried.verify()
        results[name], detectors[name] = average_precision(detector), detector

    last = copy.deepcopy(detectors["dense"])  # the other way: pruned in the last phase, which is repeated
    pruned = sparse24.Sparsifier(last)
    print(pruned.prune())
    train_detector(last, pruned)
    pruned.verify()
    longer = copy.deepcopy(detectors["dense"])
    train_detector(longer, None)  # the dense one gets as many steps
    results |= {"dense, twice": average_precision(longer), "pruned last": average_precision(last)}
    print("detector, AP: " + ", ".join(f"{name} {value:.3f}" for name, value in results.items()))


if __name__ == "__main__":
    main()
