"""GGUF files, written by their own package, become state_dicts that are pruned as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse24
from sparse24.files import FileError, from_gguf

gguf = pytest.importorskip("gguf", reason="the extra dev brings it")
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def written(path: Path, kind: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tensors = {
        "blk.0.attn_q.weight": rng.standard_normal((48, 64), dtype=np.float32),
        "blk.0.norm.weight": rng.standard_normal(64, dtype=np.float32),
    }
    writer = gguf.GGUFWriter(path, "llama")
    kinds = {"blk.0.attn_q.weight": gguf.GGMLQuantizationType[kind], "blk.0.norm.weight": None}
    for name, numbers in tensors.items():
        chosen = kinds[name]
        stored = numbers if chosen is None else gguf.quants.quantize(numbers, chosen)
        writer.add_tensor(name, stored, raw_dtype=chosen)
    writer.add_tensor("steps", np.arange(3, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_dequantized(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = written(path, kind)
    found = from_gguf(path)
    assert found.keys() == {*tensors, "steps"}
    weight = found["blk.0.attn_q.weight"]
    assert weight.shape == (48, 64)
    steps = {"F32": 0.0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 2e-2, "Q4_0": 0.3}
    error = (weight - torch.from_numpy(tensors["blk.0.attn_q.weight"])).abs().max()
    assert float(error) <= steps[kind]
    assert torch.equal(found["steps"], torch.arange(3, dtype=torch.int32))
    assert torch.equal(found["blk.0.norm.weight"], torch.from_numpy(tensors["blk.0.norm.weight"]))
    assert from_gguf(path, torch.bfloat16)["blk.0.attn_q.weight"].dtype == torch.bfloat16


def test_what_comes_out_is_pruned(tmp_path: Path) -> None:
    written(tmp_path / "model.gguf", "Q8_0")
    weight = from_gguf(tmp_path / "model.gguf")["blk.0.attn_q.weight"]
    pruned = torch.where(sparse24.magnitude_mask(weight), weight, 0.0)
    values, indices = sparse24.compress(pruned)
    assert torch.equal(sparse24.decompress(values, indices), pruned)


def test_what_is_no_such_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="No such file"):
        from_gguf(tmp_path / "gone.gguf")
    written(tmp_path / "model.gguf", "F16")
    half = tmp_path / "half.gguf"
    half.write_bytes((tmp_path / "model.gguf").read_bytes()[:200])
    for path in (Path(__file__), half):
        with pytest.raises(FileError, match="not a whole GGUF file"):
            from_gguf(path)
    with pytest.raises(TypeError, match=r"floating, not torch\.int8"):
        from_gguf(tmp_path / "model.gguf", torch.int8)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FileError, match="pip install gguf"):
        from_gguf(tmp_path / "model.gguf")


def test_blocks_that_nobody_dequantizes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "model.gguf", "Q8_0")

    def refuse(*_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(FileError, match=r"is F?Q?[0-9_]+.*cannot be dequantized"):
        from_gguf(tmp_path / "model.gguf")
