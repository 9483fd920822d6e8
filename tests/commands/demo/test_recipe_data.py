"""The images of the demo's recipe."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse24.commands.demo import recipe

pytestmark = pytest.mark.usefixtures("seeded")


def test_digits_are_split_once_and_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe, "FASHION", tmp_path)
    images, plan = recipe.load_images(quick=True)
    again, _ = recipe.load_images(quick=False)
    assert images.name == "digits 8x8"
    assert images.train[0].shape == (plan.train_images, 1, 8, 8)
    assert images.test[0].shape == (plan.test_images, 1, 8, 8)
    assert torch.equal(images.test[0], again.test[0])
    assert float(images.train[0].max()) == 1
    both = torch.cat([images.train[0], images.test[0]]).flatten(1).sum(1)
    assert len(both) == 1797


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def test_fashion_mnist_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, 10, 7, dtype=np.uint8)
    for name in recipe._FASHION_FILES:
        write_idx(tmp_path / f"{name}.gz", pixels if "images" in name else labels)
    monkeypatch.setattr(recipe, "FASHION", tmp_path)
    assert recipe.load_images(quick=True)[0].name == "digits 8x8"
    images, _ = recipe.load_images(quick=False)
    assert images.name == "Fashion-MNIST 28x28"
    assert torch.equal(images.train[0][:, 0] * 255, torch.from_numpy(pixels).float())
    assert images.test[1].tolist() == labels.tolist()
    with torch.inference_mode():
        assert recipe.cnn(0, stem_stride=2)(images.train[0]).shape == (7, 10)
