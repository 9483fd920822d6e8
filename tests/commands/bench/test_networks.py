"""Whole networks: what their definitions are, what is measured of them, and that no row is lost."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reference import assert_matches
from sparse24 import SparseLinear
from sparse24.__main__ import main
from sparse24.commands.bench import definitions, keeping, networks, rivals, table
from sparse24.commands.bench.definitions import DEFINITIONS, Definition, convolutions, of_key, transformers
from sparse24.ops import figures

pytestmark = pytest.mark.usefixtures("seeded")

#: Parameters of the published networks, without heads of other tasks: millions.
MILLIONS = {
    "bert-large": 334.1, "resnext-101": 194.0, "resnet-50": 25.6, "vit-b-16": 86.6, "minilm": 22.6,
    "llama-prefill": 352.4, "llama-decode": 352.4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "cache"))


def small_inputs(batch: int, model: nn.Module) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 64).to(next(model.parameters()).dtype),)


def small_network(depth: float) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).eval()


SMALL = Definition("Small", "small", "a vector", small_network, small_inputs, (1, 8, 32))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One network that takes no time, and no compiler."""
    monkeypatch.setattr(networks, "DEFINITIONS", (SMALL,))
    monkeypatch.setattr(networks, "COMPILED_BATCH", 9)


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d.key)
def test_a_definition_has_the_published_size_and_runs(definition: Definition) -> None:
    with torch.device("meta"):
        whole = definition.build(1.0)
    assert not whole.training
    assert sum(p.numel() for p in whole.parameters()) / 1e6 == pytest.approx(
        MILLIONS[definition.key], abs=0.05
    )
    part = definition.build(0.01)
    with torch.no_grad():
        inputs = definition.inputs(2, part)
        assert all(len(x) == 2 or x.dim() == 6 for x in inputs)
        output = part(*inputs)
        assert output.isfinite().all()
        if definition.key != "resnext-101":  # whose batch norms have seen nothing: numbers grow with depth
            half = part.bfloat16()
            error = half(*(x.bfloat16() if x.is_floating_point() else x for x in inputs)).float() - output
            assert error.norm() < 0.2 * output.norm()


def test_a_decode_continues_its_prefill() -> None:
    model = transformers.llama(0.25).double()
    x = torch.randn(2, 9, 2048, dtype=torch.float64)
    kept: list[torch.Tensor] = []
    for block in model.blocks:
        block.v.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        whole = model(x)
        values = [v[:, :8].view(2, 8, 4, 64).transpose(1, 2) for v in kept]
        keys = _keys_of(model, x[:, :8])
        past = torch.stack([torch.stack(pair) for pair in zip(keys, values, strict=True)])
        assert_matches(model(x[:, 8:], past), whole[:, 8:], torch.float32)


def _keys_of(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    angles = torch.arange(8)[:, None] / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    keys = []
    for block in model.blocks:
        key = block.k(block.norm1(x)).view(2, 8, 4, 64).transpose(1, 2)
        keys.append(transformers._rotated(key, angles))
        x = block(x, angles, None)
    return keys


def test_residual_networks_are_in_channels_last() -> None:
    model = convolutions.resnet_50(0.01)
    (images,) = convolutions.images(2, model)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert model.blocks[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert [model.blocks[i].conv1.in_channels for i in range(4)] == [64, 256, 512, 1024]


@pytest.mark.usefixtures("small")
def test_a_row_for_every_dtype_and_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "networks.json"
    arguments = ["bench", "--only", "networks", "--seconds", "0.001", "--threads", "1", "--out", str(out)]
    assert main(arguments) == 0
    (made,) = json.loads(out.read_text())["tables"]
    head, *rows = made["rows"]
    assert [row[:4] for row in rows] == [
        ["Small, a vector", dtype, "eager", str(batch)]
        for dtype in ("fp32", "bf16", "int8")
        for batch in (1, 8, 32)
    ]
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        assert float(cells["torch ms"]) >= 0
        assert cells["best dense ms"].split()[1] in ("(torch)", "(prepacked)", "(OpenVINO)", "(fp32)")
        assert cells["sparse layers"].endswith("of 3")
        shares = [float(cells[name].rstrip("%")) for name in ("in sparse ones", "in products")]
        assert 0 <= shares[0] <= shares[1] <= 100
        assert min(float(cells["Amdahl"]), float(cells["of Amdahl"])) > 0
    assert dict(zip(head, rows[-1], strict=True))["sparse layers"] == "2 of 3"  # the head is not pruned
    said = capsys.readouterr().out
    assert "small fp32 eager 1 ..." in said
    assert "OpenVINO" in made["caption"]


@pytest.mark.usefixtures("small")
def test_what_the_time_does_not_reach_is_named() -> None:
    (made,) = networks.tables(table.Setting(1, 0.001, minutes=1e-9))
    assert made.rows == [networks.HEADER]
    assert "small fp32 eager 1: the time was up; " in made.caption


def test_a_large_batch_of_a_slow_network_is_left_out() -> None:
    case = networks.Case(SMALL, "fp32", "eager", 32)
    before = case._replace(batch=16)
    assert networks._grown(case, (before, 2.4)) == pytest.approx(4.8)
    assert networks._grown(case, (before._replace(dtype="bf16"), 2.4)) == networks._grown(case, None) == 0
    assert networks._why_not(case, 4.8, 100) == ""
    assert networks._why_not(case, 5.2, 100) == "a pass would take 5 s"
    assert networks._why_not(case._replace(batch=8), 60.0, 100) == ""


@pytest.mark.usefixtures("small")
def test_batches_that_are_asked_for_are_a_table_of_their_own(tmp_path: Path) -> None:
    out, plots = tmp_path / "networks.json", tmp_path / "plots"
    arguments = ["networks", "--batch", "2", "--batch", "4", "--seconds", "0.001", "--threads", "1"]
    assert main(["bench", *arguments, "--out", str(out), "--plots", str(plots)]) == 0
    (made,) = json.loads(out.read_text())["tables"]
    assert made["name"] == "batches-1"
    assert [row[3] for row in made["rows"][1:]] == ["2", "4"] * 3
    assert {path.name for path in plots.iterdir()} == {
        "amdahl-batches.svg",
        "index.html",
        "network-small.svg",
    }
    assert "sparse24 bench networks --threads 1 --batch 2 --batch 4" in (plots / "index.html").read_text()


@pytest.mark.usefixtures("small")
def test_an_interruption_keeps_the_rows_and_a_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def measure(case: networks.Case, setting: table.Setting) -> tuple[list[str], float]:
        if len(asked) == 3:
            asked.append("interrupted")
            raise KeyboardInterrupt
        asked.append(case.key)
        return [*case.cells, *["1"] * (len(networks.HEADER) - 4)], 0.001

    monkeypatch.setattr(networks, "measure", measure)
    arguments = ["bench", "--only", "networks", "--threads", "1", "--out", str(tmp_path / "out.json")]
    assert main(arguments) == 130
    (made,) = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert len(made["rows"]) == 1 + 3
    assert "Left out: interrupted." in made["caption"]
    assert asked == ["small fp32 eager 1", "small fp32 eager 8", "small fp32 eager 32", "interrupted"]
    assert main([*arguments, "--resume"]) == 0
    assert asked[4:] == [f"small {d} eager {b}" for d in ("bf16", "int8") for b in (1, 8, 32)]
    (made,) = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert len(made["rows"]) == 1 + 9
    assert main(arguments) == 0  # begins anew
    assert len(asked) == 4 + 6 + 9


def test_rows_of_another_setting_or_a_damaged_file_are_not_taken_over() -> None:
    setting = table.Setting(1, 0.5, resume=True)
    assert keeping.Rows("networks", setting).put("a", ["1"]) == ["1"]
    assert keeping.Rows("networks", setting).get("a") == ["1"]
    assert keeping.Rows("networks", table.Setting(1, 0.5)).get("a") is None
    assert keeping.Rows("networks", table.Setting(1, 0.6, resume=True)).get("a") == ["1"]
    assert keeping.Rows("networks", table.Setting(1, 0.5, quick=True, resume=True)).get("a") is None
    assert keeping.Rows("other", setting).get("a") is None
    figures.path("bench.json").write_text("{")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert keeping.Rows("networks", setting).get("a") is None


def test_rows_that_cannot_be_kept_are_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "file" / "cache"))
    assert keeping.Rows("networks", table.Setting(1, 0.5, resume=True)).put("a", ["1"]) == ["1"]


def network_of(dtype: str = "fp32") -> networks.Network:
    with torch.no_grad():
        return networks.built(networks.Case(SMALL, dtype, "eager", 4), 1.0)


def test_amdahls_law(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = small_network(1.0)
    layers = {"0": dense[0], "2": dense[2]}
    network = networks.Network(dense, dense, dense, (small_inputs(4, dense), {}), layers)
    monkeypatch.setattr(networks, "seconds_inside", lambda network: {"": 10.0, "0": 4.0, "2": 2.0, "4": 1.0})
    ratios = {id(dense[0]): 2.0, id(dense[2]): 1.0}

    def timed(self: Any, module: nn.Module, call: Any) -> Any:
        return networks.Pair(ratios[id(module)] * 1e-3, 1e-3)

    monkeypatch.setattr(networks.Chooser, "time", timed)
    case = networks.Case(SMALL, "fp32", "eager", 4)
    products, share, predicted = networks.amdahl(network, case)
    assert products == pytest.approx(0.7)
    assert share == pytest.approx(0.6)
    measured: list[Any] = []

    def measure(self: Any, own: nn.Module, sparse: nn.Module, call: Any) -> Any:
        measured.append((own, sparse))
        return networks.Pair(4e-3, 1e-3)

    monkeypatch.setattr(networks.Chooser, "measure", measure)
    assert networks.amdahl(network, case._replace(dtype="int8"))[2] == pytest.approx(10 / (4 + 6 / 4))
    assert measured == [(dense[0], dense[0])]  # the second layer is as the first
    assert predicted == pytest.approx(10 / (4 + 4 / 2 + 2))


def test_the_time_inside_layers_is_theirs() -> None:
    class Slow(nn.Linear):
        def __init__(self, seconds: float) -> None:
            super().__init__(1, 1)
            self.seconds = seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(self.seconds)
            return x

    class Other(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.01)
            return x

    dense = nn.Sequential(Slow(0.03), Other())
    network = networks.Network(dense, dense, dense, ((torch.ones(1),), {}), {"0": dense[0]})
    inside = networks.seconds_inside(network)
    assert set(inside) == {"", "0"}
    assert inside["0"] == pytest.approx(0.03, rel=0.3)
    assert inside[""] >= 0.04
    assert not dense._forward_hooks
    assert not dense[0]._forward_hooks


def test_int8_converts_everything() -> None:
    network = network_of("int8")
    assert [m.is_int8 for m in network.sparse.modules() if isinstance(m, SparseLinear)] == [True, True]
    assert list(network.layers) == ["0", "2"]
    x = network.inputs[0][0]
    dense = network.dense(x)
    assert (network.sparse(x) - dense).norm() < 0.05 * dense.norm()
    assert (rivals.int8_dense(network.dense)(x) - dense).norm() < 0.05 * dense.norm()


def test_memory_counts_weights_and_what_a_pass_needs() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones(64 << 20, dtype=torch.uint8).amax() + x

    held = networks.memory_of(Wide(), ((torch.ones(1),), {}))
    assert held >= 4000
    assert held == pytest.approx(4000 + (64 << 20), rel=0.1)


def test_the_keys_of_networks() -> None:
    assert of_key("resnet-50").name == "ResNet-50"
    with pytest.raises(ValueError, match="there is no network 'x'; the networks are bert-large, resnext-101"):
        of_key("x")
    assert len({d.key for d in definitions.DEFINITIONS}) == 7
