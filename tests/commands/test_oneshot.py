"""``sparse24 oneshot`` on small models of transformers that were saved to disk."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparse24
from sparse24.__main__ import main
from sparse24.commands import oneshot as command
from sparse24.commands.oneshot import pretrained

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
images_of = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytestmark = pytest.mark.usefixtures("seeded")
Capture, Patch = pytest.CaptureFixture[str], pytest.MonkeyPatch
WORDS = ["the", "of", "and", "to", "in", "that", "is", "was", "he", "for", "it", "with", "as", "his", "on"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def written_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words."""

    known = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


def models() -> dict[str, nn.Module]:
    text = {"vocab_size": 32, "max_position_embeddings": 64, **SIZES}
    llama = transformers.LlamaConfig(**text, num_key_value_heads=1)
    return {
        "bert": transformers.BertModel(transformers.BertConfig(**text)),
        "llama": transformers.LlamaForCausalLM(llama),
        "t5": transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=32, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
        ),
        "vit": transformers.ViTForImageClassification(
            transformers.ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=12)
        ),
    }


@pytest.fixture
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "model"
    models()[request.param].save_pretrained(folder)
    (folder / "README.md").write_text("about the model")
    if request.param == "vit":
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    else:
        written_tokenizer(folder)
    return folder


def data(folder: Path, kind: str) -> Path:
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        images = folder / "images" / "a"
        images.mkdir(parents=True)
        for i in range(12):
            pixels = torch.randint(0, 255, (40, 36, 3), generator=generator, dtype=torch.uint8)
            images_of.fromarray(pixels.numpy()).save(images / f"{i}.png")
        return folder / "images"
    lines = [
        " ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (12,), generator=generator))
        for _ in range(40)
    ]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def run(source: Path, given: Path, out: Path, *more: str) -> int:
    given_options = ["--samples", "16", "--batch", "4", "--length", "24", "--steps", "4", *more]
    return main(["oneshot", str(source), "--data", str(given), "--out", str(out), *given_options])


@pytest.mark.parametrize("saved", ["bert", "llama", "t5", "vit"], indirect=True)
def test_a_folder_becomes_a_pruned_one(saved: Path, tmp_path: Path, request: Any, capsys: Capture) -> None:
    kind = request.node.callspec.params["saved"]
    out = tmp_path / "out"
    assert run(saved, data(tmp_path, kind), out) == 0
    assert "layers pruned" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["model", "out", data_name(kind)])
    assert {p.name for p in saved.iterdir()} == {p.name for p in out.iterdir()}
    assert (out / "README.md").read_text() == "about the model"
    before, _ = pretrained.load(saved, "auto")
    after, _ = pretrained.load(out, "auto")
    wanted = {row.name for row in sparse24.Sparsifier(before).prune().done}
    for name in wanted:  # calibrated: not what magnitudes alone leave
        assert not torch.equal(before.get_submodule(name).weight, after.get_submodule(name).weight)
    assert {row.name for row in sparse24.to_sparse(after, when="always").done} == wanted


def data_name(kind: str) -> str:
    return "images" if kind == "vit" else "text.jsonl"


@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_an_interrupted_run_goes_on(saved: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    given = data(tmp_path, "bert")
    assert run(saved, given, tmp_path / "whole") == 0
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if "block 1 of" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "_say", stop)
    assert run(saved, given, tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(command, "_say", said.append)
    assert run(saved, given, tmp_path / "out") == 0
    assert said[1].endswith("block 1 of 3, done before")
    assert not (tmp_path / "out.part").exists()
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out"))
    assert one == two


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_dtypes_names_and_budgets(saved: Path, tmp_path: Path, capsys: Capture) -> None:
    model, _ = pretrained.load(saved, "bfloat16")
    model.save_pretrained(saved)
    given = data(tmp_path, "llama")
    assert (
        run(saved, given, tmp_path / "out", "--skip", "*.q_proj", "--offload", str(tmp_path / "there")) == 0
    )
    after, kind = pretrained.load(tmp_path / "out", "auto")
    assert kind.is_causal
    assert all(p.dtype == torch.bfloat16 for p in after.parameters())
    assert not sparse24.is_sparse24(after.model.layers[0].self_attn.q_proj.weight.detach())
    assert sparse24.is_sparse24(after.model.layers[0].self_attn.k_proj.weight.detach())
    capsys.readouterr()
    assert run(saved, given, tmp_path / "budget", "--budget", "0.5", "--dtype", "float32") == 0
    printed = capsys.readouterr().out
    assert "predicted speed" in printed
    assert "kept dense by skip" in printed


def wrong(tmp_path: Path, saved: Path) -> dict[str, tuple[list[str], str]]:
    given = data(tmp_path, "bert")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bad.jsonl").write_text('{"words": 3}\n')
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    bare, odd, cut = tmp_path / "bare", tmp_path / "odd", tmp_path / "cut"
    shutil.copytree(saved, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(saved, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    shutil.copytree(saved, cut)
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    more = tmp_path / "more"
    shutil.copytree(saved, more)
    (more / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    base = [str(saved), "--data", str(given), "--out", str(tmp_path / "out")]
    return {
        "no folder": ([str(tmp_path / "none"), *base[1:]], "has no config.json"),
        "no class": ([str(odd), *base[1:]], "has no class 'NoSuchModel'"),
        "half a file": ([str(cut), *base[1:]], "cut: "),
        "weights missing": ([str(more), *base[1:]], "the weights of BertModel lack 16, among"),
        "no tokenizer": ([str(bare), *base[1:]], "bare: "),
        "no data": ([*base[:2], str(tmp_path / "x"), *base[3:]], "No such file"),
        "empty data": ([*base[:2], str(tmp_path / "empty.txt"), *base[3:]], "holds no text"),
        "odd data": ([*base[:2], str(tmp_path / "bad.jsonl"), *base[3:]], 'line 1 has no "text"'),
        "binary data": ([*base[:2], str(tmp_path / "binary.txt"), *base[3:]], "is no text in UTF-8"),
        "out is there": ([*base[:4], str(saved)], "is there already"),
        "out is nowhere": ([*base[:4], str(tmp_path / "a" / "b")], "is missing"),
        "method": ([*base, "--method", "obs"], "method 'obs' is not one of"),
        "samples": ([*base, "--samples", "0"], "--samples must be 1 or more, not 0"),
        "length": ([*base, "--length", "65"], "more than the 64 tokens"),
        "dtype": ([*base, "--dtype", "int4"], "--dtype must be one of auto"),
        "budget": ([*base, "--budget", "2"], "--budget is a share"),
        "select": ([*base, "--select", "nothing"], "matches no layer"),
    }  # fmt: skip


CASES = (
    "no folder", "no class", "half a file", "weights missing", "no tokenizer", "no data", "empty data",
    "odd data", "binary data", "out is there", "out is nowhere", "method", "samples", "length", "dtype",
    "budget", "select",
)  # fmt: skip


@pytest.mark.parametrize("saved", ["bert"], indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_done_is_one_line(case: str, saved: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments, text = wrong(tmp_path, saved)[case]
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    assert main(["oneshot", *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparse24 oneshot:")]
    assert len(errors) == 1
    assert text in errors[0]
    assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("saved", ["vit"], indirect=True)
def test_images_are_asked_for(saved: Path, tmp_path: Path, capsys: Capture) -> None:
    given = data(tmp_path, "bert")
    assert run(saved, given, tmp_path / "out") == 2
    assert "give a folder of them" in capsys.readouterr().err
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("no picture")
    assert run(saved, tmp_path / "pictures", tmp_path / "out") == 2
    assert "is no image" in capsys.readouterr().err


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_too_little_text_for_a_window(saved: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "short.txt").write_text("the of and\n")
    assert run(saved, tmp_path / "short.txt", tmp_path / "out") == 2
    assert "holds 3 tokens, a window 24" in capsys.readouterr().err


def test_without_transformers_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from sparse24.__main__ import main\n"
        "sys.exit(main(['oneshot', sys.argv[1], '--data', 'x', '--out', sys.argv[1] + '.pruned']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'sparse24[transformers]'" in done.stderr
