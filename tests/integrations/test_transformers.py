"""``save_pretrained`` and ``from_pretrained`` of networks with compressed layers, and what disagrees."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import sparse24
from sparse24.__main__ import main
from sparse24.integrations.transformers import Sparse24Config
from sparse24.nn import SparseLinear

from .families import FAMILIES, TOKENS, bert, gpt2, llama, run, saved, sparse

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    # transformers and accelerate in versions of their own choice
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**inputs)
    return found.logits_per_text if "logits_per_text" in found else found.logits


def assert_same(one: nn.Module, other: nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name
        assert tensor.dtype == b[name].dtype, name
    kinds = [type(module) for module in one.modules()]
    assert kinds == [type(module) for module in other.modules()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sparse_network_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model, inputs = sparse(family)
    expected = outputs(model, inputs)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert "quantization_config" not in vars(model.config)  # as it was
    auto = hf.AutoModel if family == "clip" else getattr(hf, type(model).__name__)
    for folder, options in (
        ("one", {}),
        ("sharded", {}),
        ("sharded", {"device_map": "cpu"}),
        ("one", {"device_map": "auto"}),
    ):
        loaded, info = auto.from_pretrained(tmp_path / folder, output_loading_info=True, **options)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_same(model, loaded)
        assert torch.equal(outputs(loaded, inputs), expected)
        layers = [module for module in loaded.modules() if isinstance(module, SparseLinear)]
        assert not any(p.requires_grad for layer in layers for p in layer.parameters())


def test_it_is_saved_again_and_cast(tmp_path: Path) -> None:
    model, _ = sparse("llama")
    model.save_pretrained(tmp_path / "a")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert not loaded.is_quantized
    loaded.save_pretrained(tmp_path / "b")
    assert_same(loaded, hf.AutoModelForCausalLM.from_pretrained(tmp_path / "b"))
    assert_same(model.bfloat16(), loaded)
    loaded.float()


def test_int8_comes_back(tmp_path: Path) -> None:
    model, inputs = sparse("bert")
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
    layers[0].to_int8()
    layers[1].to_int8("dynamic")
    layers[2].to_int8("static", 0.05)
    layers[3].to_float8()
    model.save_pretrained(tmp_path)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_same(model, loaded)
    assert torch.equal(outputs(model, inputs), outputs(loaded, inputs))


def test_a_part_that_was_converted_is_enough(tmp_path: Path) -> None:
    model, _ = bert()
    sparse24.Sparsifier(model.bert.encoder).prune()
    sparse24.to_sparse(model.bert.encoder, when="always")
    model.save_pretrained(tmp_path)
    assert_same(model, hf.AutoModelForSequenceClassification.from_pretrained(tmp_path))
    base = hf.AutoModel.from_pretrained(tmp_path)  # without the head: other names
    assert isinstance(base.encoder.layer[0].output.dense, SparseLinear)


def test_a_network_that_is_dense_again_is_saved_dense(tmp_path: Path) -> None:
    sparse("bert")[0].save_pretrained(tmp_path / "a")
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    sparse24.to_dense(loaded)
    loaded.save_pretrained(tmp_path / "b")
    assert "quantization_config" not in json.loads((tmp_path / "b" / "config.json").read_text())
    plain = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    assert_same(loaded, plain)
    again = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a").dequantize()
    assert_same(again, plain)
    assert not hasattr(again, "hf_quantizer")


def test_a_state_dict_that_is_given_is_what_is_written(tmp_path: Path) -> None:
    model, _ = sparse("bert")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["classifier.bias"] += 1
    model.save_pretrained(tmp_path, state_dict=copy.copy(state))
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.classifier.bias, state["classifier.bias"])


def test_dense_weights_that_are_2_4_are_compressed_when_loaded(tmp_path: Path) -> None:
    model, _ = llama()
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="no weight that was loaded is 2:4: prune it first"):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", quantization_config=Sparse24Config())
    sparse24.Sparsifier(model).prune()
    model.save_pretrained(tmp_path / "pruned")
    loaded = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "pruned", quantization_config=Sparse24Config()
    )
    sparse24.to_sparse(model, when="always")
    assert_same(model, loaded)
    loaded.save_pretrained(tmp_path / "again")
    assert_same(model, hf.AutoModelForCausalLM.from_pretrained(tmp_path / "again"))


def test_what_the_command_compresses_is_loaded(tmp_path: Path) -> None:
    model, inputs = llama()
    model.save_pretrained(tmp_path / "dense", max_shard_size="100KB")
    assert main(["prune", str(tmp_path / "dense"), str(tmp_path / "out"), "--compress"]) == 0
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    sparse24.Sparsifier(model).prune()
    sparse24.to_sparse(model, when="always")
    assert_same(model, loaded)
    assert torch.equal(outputs(model, inputs), outputs(loaded, inputs))


def test_sparse24_load_reads_what_transformers_writes(tmp_path: Path) -> None:
    model, _ = sparse("gpt2")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    other, _ = gpt2()
    sparse24.load(other.eval(), tmp_path)
    assert_same(model, other)


# ---- memory ------------------------------------------------------------------------------------------

PEAK = """
import sys, threading, time
import torch, transformers, sparse24
transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])  # what a first call costs

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

before, seen, done = anonymous(), [], threading.Event()
def watch():
    while not done.is_set():
        seen.append(anonymous())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2])
done.set()
thread.join()
size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
print(1024 * (max(seen) - before) / size)
"""


def test_loading_takes_the_memory_of_the_sparse_network(tmp_path: Path) -> None:
    """Of its own, beside the pages of the file: at most a tenth more than the network has."""
    config = hf.LlamaConfig(
        hidden_size=1024, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2816, vocab_size=120
    )
    with torch.device("meta"):
        model: Any = hf.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.zero_()  # 2:4, and quick to make
    sparse24.to_sparse(model, when="always")
    model.save_pretrained(tmp_path, max_shard_size="50MB")
    ran = run(PEAK, saved(tmp_path), tmp_path)
    assert float(ran.stdout.splitlines()[-1]) <= 1.1, ran.stderr


# ---- in use ------------------------------------------------------------------------------------------


def test_a_pipeline_runs_from_the_folder(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    model, _ = sparse("bert")
    model.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(tmp_path)
    classify = hf.pipeline("text-classification", model=str(tmp_path))
    assert isinstance(classify.model.bert.pooler.dense, SparseLinear)
    with torch.no_grad():
        logits = model(torch.tensor([[2, 3, 1]])).logits
    assert classify("a b c")[0]["score"] == pytest.approx(float(logits.softmax(-1).max()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "t5", "whisper"])
def test_generation_is_the_same_with_a_static_cache(family: str, tmp_path: Path) -> None:
    model, inputs = sparse(family)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    given = {name: each for name, each in inputs.items() if not name.startswith("decoder")}
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(**given, **options)
    assert torch.equal(loaded.generate(**given, **options), expected)
    assert torch.equal(loaded.generate(**given, **options, cache_implementation="static"), expected)


def test_a_loaded_network_is_compiled_whole(tmp_path: Path) -> None:
    sparse("llama")[0].save_pretrained(tmp_path)
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    compiled = torch.compile(loaded, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(TOKENS).logits, loaded(TOKENS).logits, atol=1e-5)
