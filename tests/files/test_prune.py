"""``sparse24 prune``: what is pruned in a file, what is left alone, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sparse24
from sparse24 import files as io
from sparse24.__main__ import main

from .state_files import SUFFIXES, fails, network, saved

pytestmark = pytest.mark.usefixtures("seeded")


def loaded(path: Path) -> dict[str, Any]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@SUFFIXES
def test_prune_writes_the_same_file_with_24_weights(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
    before = source.read_bytes()
    assert main(["prune", str(source), str(target)]) == 0
    assert source.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [source, target]
    dense, pruned = loaded(source), loaded(target)
    assert list(pruned) == list(dense)
    for name, tensor in dense.items():
        expected = tensor
        if name in ("conv.weight", "body.weight"):
            expected = torch.where(sparse24.magnitude_mask(tensor), tensor, 0.0)
        assert torch.equal(pruned[name], expected), name
    out = capsys.readouterr().out
    assert "an embedding by its name" in out
    assert "an output head by its name (head); --select it to prune it" in out
    assert "2 of 4 layers pruned" in out


def test_a_pruned_file_loads_and_converts(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "in.pt"), tmp_path / "out.pt"
    assert main(["prune", str(source), str(target)]) == 0
    state = torch.load(target, weights_only=True)
    assert state._metadata == network().state_dict()._metadata
    model = network()
    model.load_state_dict(state)
    assert [row.name for row in sparse24.to_sparse(model, when="always").done] == ["conv", "body"]


def reasons(state: dict[str, Any], *select: str) -> dict[str, str]:
    return {row.name: row.reason for row in io.prune(io.StateFile(state), select)[1] if not row.done}


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        ("word_embeddings.weight", (64, 16), "an embedding by its name"),
        ("transformer.wte.weight", (64, 16), "an embedding by its name"),
        ("model.embed_tokens.weight", (64, 16), "an embedding by its name"),
        ("block.0.relative_attention_bias.weight", (32, 8), "an embedding by its name"),
        ("pos", (16, 16), "not named *weight"),
        ("stem.weight", (16, 3, 3, 3), "3 input channels (dim 1): 2:4 needs 4 or more"),
        ("depthwise.weight", (16, 1, 3, 3), "1 input channels (dim 1): 2:4 needs 4 or more"),
        ("h.0.mlp.c_fc.weight", (16, 64), "may be stored as [in, out]"),
        ("last.weight", (10, 64), "an output head by its shape (10 outputs)"),
        ("lm_head.weight", (64, 16), "an output head by its name (lm_head)"),
        ("model.classifier.weight", (64, 16), "an output head by its name (model.classifier)"),
    ],
)
def test_what_names_and_shapes_say_is_left_alone(name: str, shape: tuple[int, ...], why: str) -> None:
    given = {"body.weight": torch.randn(16, 16), name: torch.randn(shape)}
    left = reasons(given)
    assert list(left) == [name]
    assert why in left[name]


def test_only_the_last_layer_of_a_head_is_left_alone() -> None:
    state = {f"classifier.{i}.weight": torch.randn(16, 16) for i in (0, 3, 6)}
    assert list(reasons(state)) == ["classifier.6.weight"]


def test_a_lone_layer_is_no_head() -> None:
    assert reasons({"head.weight": torch.randn(16, 16)}) == {}


def test_weights_tied_to_an_embedding_are_left_alone() -> None:
    table = torch.randn(64, 16)
    state = {"embed.weight": table, "project.weight": table, "body.weight": torch.randn(16, 16)}
    assert reasons(state)["project.weight"].startswith("tied to the embedding embed.weight")


def test_tensors_that_share_memory_share_it_afterwards() -> None:
    shared = torch.randn(16, 16)
    pruned, _ = io.prune(io.StateFile({"a.weight": shared, "b.weight": shared}))
    assert pruned.state["a.weight"].data_ptr() == pruned.state["b.weight"].data_ptr()
    assert pruned.state["a.weight"].data_ptr() != shared.data_ptr()
    assert sparse24.is_sparse24(pruned.state["b.weight"])
    assert not sparse24.is_sparse24(shared)


def test_sparse_layouts_are_left_alone() -> None:
    with pytest.warns(UserWarning, match="Sparse CSR|Sparse invariant"):
        csr = torch.eye(8).to_sparse_csr()
    assert reasons({"a.weight": torch.randn(8, 8), "b.weight": csr}) == {
        "b.weight": "layout torch.sparse_csr"
    }


def test_a_short_last_group_is_remarked() -> None:
    (row,) = io.prune(io.StateFile({"a.weight": torch.randn(8, 10)}))[1]
    assert row.done
    assert "the last group has 2 and keeps 2" in row.reason


def test_select_prunes_these_alone_whatever_their_names(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "in.pt"), tmp_path / "out.pt"
    assert main(["prune", str(source), str(target), "--select", "hea*", "--select", "embed.weight"]) == 0
    pruned = loaded(target)
    assert [name for name in pruned if pruned[name].dim() > 1 and sparse24.is_sparse24(pruned[name])] == [
        "embed.weight",
        "head.weight",
    ]


def test_select_must_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "prune", saved(tmp_path / "in.pt"), tmp_path / "out.pt", "--select", "tail")
    assert "--select tail matches no tensor; there are: embed.weight, conv.weight" in error


def test_in_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "in.pt")
    before = source.read_bytes()
    (tmp_path / "link.pt").symlink_to(source)
    for target in (source, tmp_path / "." / "in.pt", tmp_path / "link.pt"):
        assert "is IN itself, which is never overwritten" in fails(capsys, "prune", source, target)
    assert source.read_bytes() == before


def test_nothing_to_prune_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "in.pt", {"embed.weight": torch.randn(8, 8)})
    assert "nothing to prune" in fails(capsys, "prune", source, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
