"""Train a small convolutional network on scikit-learn's digits, prune it to 2:4, train it again.

Run: python examples/recipe.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sparse24 import Sparsifier


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int) -> None:
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model.eval()(x).argmax(1) == y).double().mean().item()


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    x, x_test, y, y_test = train_test_split(
        images, torch.from_numpy(digits.target), test_size=0.3, random_state=0
    )
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), x, y, epochs=10)
    dense = accuracy(model, x_test, y_test)

    sparsifier = Sparsifier(model)
    print(sparsifier.prune())
    pruned = accuracy(model, x_test, y_test)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier.attach(optimizer)
    train(model, optimizer, x, y, epochs=10)
    sparsifier.verify()
    retrained = accuracy(model, x_test, y_test)
    print(f"accuracy: dense {dense:.1%}, pruned {pruned:.1%}, trained again {retrained:.1%}")


if __name__ == "__main__":
    main()
