"""The command line, run in this process and, where the process matters, in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import sparse24
from sparse24 import files as io
from sparse24.__main__ import main
from sparse24.commands import demo, doctor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparse24", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def network() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            embed=nn.Embedding(11, 16),
            conv=nn.Conv2d(16, 8, 3),
            norm=nn.BatchNorm2d(8),
            body=nn.Linear(16, 24),
            head=nn.Linear(24, 10),
        )
    )


def saved(path: Path, state: dict[str, Any] | None = None) -> Path:
    state = network().state_dict() if state is None else state
    if path.suffix == ".safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save(state, path)
    return path


def loaded(path: Path) -> dict[str, Any]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that ends with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".pt"])


# ---- the program ------------------------------------------------------------------------------------


def test_python_m_runs_it_and_the_version_is_that_of_the_package() -> None:
    ran = run("--version")
    assert (ran.returncode, ran.stdout) == (0, f"sparse24 {sparse24.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["prone"], ["report"], ["prune", "one"], ["demo", "--fast"]])
def test_a_mistaken_command_line_is_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: sparse24" in capsys.readouterr().err


def test_a_user_error_has_no_traceback(tmp_path: Path) -> None:
    ran = run("report", str(tmp_path / "none.pt"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"sparse24 report: {tmp_path / 'none.pt'}: no such file\n"


def test_a_reader_who_leaves_early_is_no_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {f"layer{i}.weight": torch.ones(8, 8) for i in range(2000)})
    command = [sys.executable, "-m", "sparse24", "report", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[bool, Path]] = []

    def recorded(quick: bool, out: Path) -> int:
        calls.append((quick, out))
        return 1

    monkeypatch.setattr(demo, "main", recorded)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert main(["demo"]) == 1
    assert calls == [(True, tmp_path), (False, Path("sparse24-demo"))]


# ---- doctor -----------------------------------------------------------------------------------------


def test_doctor_prints_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out


def test_doctor_json_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is True
    assert found["isa"] == sparse24.backend("cpu")
    assert [test["name"] for test in found["self_tests"]] == ["linear", "conv2d"]


def test_doctor_is_status_1_where_products_are_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "TOLERANCE", 0.0)
    assert main(["doctor"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_doctor_survives_an_isa_that_nobody_has() -> None:
    ran = run("doctor", SPARSE24_CPU_ISA="sse9")
    assert ran.returncode == 1
    assert "NONE: SPARSE24_CPU_ISA=sse9" in ran.stdout
    assert ran.stderr == ""


# ---- report -----------------------------------------------------------------------------------------


@SUFFIXES
def test_report_tells_what_is_24_and_what_it_weighs(suffix: str, tmp_path: Path) -> None:
    model = network()
    sparse24.Sparsifier(model).prune()
    report = io.report(io.read(saved(tmp_path / f"model{suffix}", model.state_dict())))
    rows = {row.name: row for row in report}
    assert set(rows) == {"embed.weight", "conv.weight", "body.weight", "head.weight"}
    assert {name for name, row in rows.items() if row.done} == {"conv.weight", "body.weight"}
    assert rows["body.weight"].kept == rows["conv.weight"].kept == 0.5
    assert "not 2:4 along dim 1" in rows["head.weight"].reason
    assert rows["head.weight"].bytes_after == rows["head.weight"].bytes_before == 10 * 24 * 4


def test_report_counts_the_bytes_that_conversion_leaves(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), nn.Linear(13, 7, bias=False))
    for layer in model:
        sparse24.masks.prune_(layer.weight)
    said = io.report(io.read(saved(tmp_path / "model.pt", model.state_dict())))
    converted = sparse24.to_sparse(model)
    assert [row.bytes_after for row in said] == [row.bytes_after for row in converted]
    again = io.report(io.read(saved(tmp_path / "sparse.pt", model.state_dict())))
    assert [row.reason for row in again] == ["compressed already"] * 2
    assert [row.bytes_before for row in again] == [row.bytes_after for row in converted]


def test_report_names_damaged_and_foreign_weights(tmp_path: Path) -> None:
    state = {
        "broken.values": torch.ones(2, 4),
        "broken.indices": torch.zeros(2, 1, dtype=torch.uint8),
        "double.weight": torch.zeros(4, 8, dtype=torch.float64),
        "empty.weight": torch.zeros(0, 8),
        "counts": torch.zeros(4, 4, dtype=torch.int64),
        "vector": torch.zeros(4),
    }
    broken, double, empty = io.report(io.read(saved(tmp_path / "model.pt", state)))
    assert not broken.done
    assert "row 0, group 0" in broken.reason
    assert double.reason == "sparse layers hold float32, float16, bfloat16: cast it"
    assert double.bytes_after == double.bytes_before
    assert (empty.done, empty.kept) == (True, 1.0)


def test_report_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(saved(tmp_path / "model.safetensors"))]) == 0
    out = capsys.readouterr().out
    assert "body.weight" in out
    assert "0 of 4 layers 2:4" in out


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.safetensors", b"", "not a safetensors file"),
        ("a.safetensors", b"\xff" * 100, "not a safetensors file"),
        ("a.pt", b"", "neither written by torch.save nor named .safetensors"),
        ("a.pt", b"hello", "neither written by torch.save nor named .safetensors"),
        ("a.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.rubbish", "refuses it"),
    ],
)
def test_files_that_are_no_state_dict_are_refused(
    name: str, content: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert why in fails(capsys, "report", tmp_path / name)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_bytes_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever a byte is changed to, the answer is a report or a FileError."""
    path, rng = tmp_path / "a.pt", torch.Generator().manual_seed(1)
    torch.save({"a.weight": torch.ones(4, 4)}, path, _use_new_zipfile_serialization=False)
    sound = path.read_bytes()
    refused = 0
    for _ in range(300):
        at, byte = (int(torch.randint(n, (), generator=rng)) for n in (len(sound), 256))
        path.write_bytes(sound[:at] + bytes([byte]) + sound[at + 1 :])
        try:
            io.report(io.read(path))
        except io.FileError:
            refused += 1
    assert refused > 30


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(network(), tmp_path / "model.pt")
    assert "weights_only=True) refuses it" in fails(capsys, "report", tmp_path / "model.pt")


def test_checkpoints_around_a_state_dict_are_refused_by_their_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": network().state_dict(), "epoch": 3}, tmp_path / "a.pt")
    assert "at its top level are no tensors, but model, epoch" in fails(capsys, "report", tmp_path / "a.pt")
    torch.save([torch.ones(2)], tmp_path / "b.pt")
    assert "holds a list, not a state_dict" in fails(capsys, "report", tmp_path / "b.pt")
    torch.save({}, tmp_path / "c.pt")
    assert "but nothing" in fails(capsys, "report", tmp_path / "c.pt")
    assert "not a file" in fails(capsys, "report", tmp_path)


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(4, 4)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert len(io.report(io.read(tmp_path / "a.pt"))) == 1


@pytest.mark.parametrize("command", ["report", "prune"])
def test_a_missing_safetensors_package_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "model.safetensors")
    monkeypatch.setattr(io.formats.importlib.util, "find_spec", lambda name: None)
    target = [tmp_path / "out.safetensors"] if command == "prune" else []
    assert "pip install safetensors" in fails(capsys, command, path, *target)


# ---- prune ------------------------------------------------------------------------------------------


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
    assert [row.name for row in sparse24.to_sparse(model).done] == ["conv", "body"]


def test_safetensors_metadata_and_permissions_survive(tmp_path: Path) -> None:
    source, target = saved(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    assert main(["prune", str(source), str(target)]) == 0
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    (tmp_path / "any").touch()
    assert target.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_values_that_are_no_tensors_survive(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(8, 8), "_extra_state": {"step": 3}, 7: torch.ones(4, 4)}
    source, target = saved(tmp_path / "in.pt", state), tmp_path / "out.pt"
    assert main(["prune", str(source), str(target)]) == 0
    pruned = torch.load(target, weights_only=True)
    assert pruned["_extra_state"] == {"step": 3}
    assert torch.equal(pruned[7], torch.ones(4, 4))


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


def test_formats_do_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "in.pt")
    assert "must both end in .safetensors" in fails(capsys, "prune", source, tmp_path / "out.safetensors")


def test_nothing_to_prune_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "in.pt", {"embed.weight": torch.randn(8, 8)})
    assert "nothing to prune" in fails(capsys, "prune", source, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "none" / "out.pt"
    assert f"{target}: No such file" in fails(capsys, "prune", saved(tmp_path / "in.pt"), target)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = saved(tmp_path / "in.pt"), tmp_path / "out.pt"
    target.write_bytes(b"old")

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert "No space left" in fails(capsys, "prune", source, target)
    assert target.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [source, target]
