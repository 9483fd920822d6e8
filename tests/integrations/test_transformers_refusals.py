"""Folders whose config and weights disagree, and when the quantizer is known to transformers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import sparse24
from sparse24.integrations.transformers import Sparse24Quantizer

from .families import bert, llama, run, saved, sparse

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    # transformers and accelerate in versions of their own choice
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]


# ---- what does not fit -------------------------------------------------------------------------------


def refused(folder: Path, says: str, kind: Any = hf.AutoModelForSequenceClassification) -> None:
    with pytest.raises(ValueError, match=says):
        kind.from_pretrained(folder)


def test_dense_weights_with_the_config_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    model, _ = bert()
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    refused(folder, "config.json says that the weights are sparse24's, but none is compressed")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    model, _ = llama()
    model.config.save_pretrained(folder)
    other = json.loads((folder / "config.json").read_text())
    other["quantization_config"] = config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(other))
    refused(
        folder, r"does not fit LlamaForCausalLM: bert.* is compressed in it, and no layer of the model, and",
        hf.AutoModelForCausalLM,
    )  # fmt: skip


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "has the format 2 of sparse24, which this version does not know")


def test_damaged_and_missing_tensors_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    state = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense"
    save_file(state | {f"{name}.indices": torch.zeros_like(state[f"{name}.indices"])},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    refused(folder, f"{name}.indices are damaged")
    del state[f"{name}.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"{name}.bias is missing in the file")


def test_a_float8_that_is_not_kept_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    state = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense"
    state[f"{name}.values"] = state[f"{name}.values"].to(torch.float8_e5m2)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"{name} is of a float8 that is not kept: sparse24.load widens it")


def test_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 256
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        hf.AutoModelForSequenceClassification.from_pretrained(folder)


UNAWARE = """
import sys, transformers
for kind, folder in zip(("BertForSequenceClassification", "WhisperForConditionalGeneration"), sys.argv[1:]):
    try:
        getattr(transformers, kind).from_pretrained(folder)
    except RuntimeError as error:
        print("refused", error)
"""


def test_without_sparse24_nothing_random_comes_back(tmp_path: Path) -> None:
    """The first compressed weight of Whisper is that of a one-dimensional convolution, in its place."""
    model, _ = sparse("whisper")
    model.save_pretrained(tmp_path / "whisper")
    ran = run(UNAWARE, saved(tmp_path), tmp_path / "whisper")
    assert ran.stderr.count("Unknown quantization type, got sparse24") == 2
    assert (ran.stdout + ran.stderr).count("MISMATCH ") == 2
    assert ran.stdout.count("refused You set `ignore_mismatched_sizes` to `False`") == 2
    state = load_file(tmp_path / "whisper" / "model.safetensors")
    assert not state["model.encoder.conv1.weight"].numel()  # what it takes offence at
    model.load_state_dict(state, strict=False)
    sparse24.to_dense(model)
    model.load_state_dict(state, strict=False)
    assert model.model.encoder.conv1.weight.shape == (64, 16, 3)


# ---- when it is registered ---------------------------------------------------------------------------

KNOWN = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers import PreTrainedModel
assert "sparse24" in AUTO_QUANTIZER_MAPPING
assert hasattr(PreTrainedModel.save_pretrained, "_sparse24_plain")
finders = [f for f in sys.meta_path if type(f).__module__ == "sparse24.integrations"]
assert [list(f._waiting) for f in finders] == [["peft.tuners.lora.model"]]
"""


@pytest.mark.parametrize(
    "code",
    [
        "import sys, importlib, sparse24\nassert 'transformers' not in sys.modules\n"
        "importlib.reload(sparse24)\nimport transformers" + KNOWN,
        "import sys\nfrom transformers import AutoModel, PreTrainedModel\nimport sparse24" + KNOWN,
    ],
)
def test_it_is_registered_whatever_is_imported_first(code: str) -> None:
    ran = run(code)
    assert not ran.returncode, ran.stderr


def test_a_library_of_another_version_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_library.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sparse24._integrations, "_WAITED_FOR", {"old_library": ".not_there"})
    sparse24._integrations.register()
    with pytest.warns(UserWarning, match="sparse24 is not registered with old_library, which is of another"):
        module = importlib.import_module("old_library")
    assert module.answer == 42
    finders = [f for f in sys.meta_path if type(f).__module__ == "sparse24.integrations"]
    assert not any("old_library" in finder._waiting for finder in finders)
    with pytest.warns(UserWarning, match="not registered with old_library"):
        sparse24._integrations.register()  # it is there already
    del sys.modules["old_library"]


def test_it_is_registered_once() -> None:
    sparse24._integrations.register()
    assert hf.quantizers.auto.AUTO_QUANTIZER_MAPPING["sparse24"] is Sparse24Quantizer
    assert not hasattr(hf.PreTrainedModel.save_pretrained._sparse24_plain, "_sparse24_plain")
