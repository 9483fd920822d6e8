"""Files with compressed weights carry the version of their format, and a newer one is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from reference import prune_layers
from sparse24 import files, to_sparse


def compressed_model() -> nn.Module:
    model = prune_layers(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8)))
    to_sparse(model, when="always")
    return model


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_this_version_comes_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    state = compressed_model().state_dict()
    files.write(files.StateFile(state), path)
    found = files.read(path)
    assert all(torch.equal(found.tensors[key], state[key]) for key in state)
    assert (found.metadata or {}).get("sparse24_format", "1") == "1"
    if suffix == ".safetensors":
        assert found.metadata == {"sparse24_format": "1"}


def test_a_newer_safetensors_file_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415

    path = tmp_path / "model.safetensors"
    for version in ("2", "1.5-beta"):
        save_file(compressed_model().state_dict(), path, {"sparse24_format": version})
        with pytest.raises(files.FileError, match=r"model\.safetensors: .* of 0 has format 2, .* newer"):
            files.read(path)


def test_a_newer_torch_file_is_refused_by_name(tmp_path: Path) -> None:
    state = compressed_model().state_dict()
    state._metadata["1"]["version"] = 7
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(files.FileError, match=r"model\.pt: the compressed weight of 1 has format 7"):
        files.read(tmp_path / "model.pt")


def test_dense_files_carry_no_format(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    files.write(files.StateFile(nn.Linear(8, 4).state_dict()), path)
    assert files.read(path).metadata is None
