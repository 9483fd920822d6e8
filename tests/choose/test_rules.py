"""The rules that decide where nothing was measured: what they say of each kind, dtype and size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import sparse24
from reference import prune_layers
from sparse24 import ops
from sparse24.choose import rules
from sparse24.ops import machine

HAS_AMX = rules.has_amx
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ISAS = ("amx", "avx512_vnni", "avx512", "avx2", "neon", "scalar")


def linear(out: int = 1024, inputs: int = 1024, dtype: torch.dtype = F32) -> nn.Module:
    return nn.Linear(inputs, out, device="meta", dtype=dtype)


def conv(out: int = 256, channels: int = 256, size: int = 3, groups: int = 1) -> nn.Module:
    return nn.Conv2d(channels, out, size, groups=groups, device="meta")


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(rules, "has_amx", lambda: False)


@pytest.mark.parametrize(
    ("module", "dtype", "kernels", "sparse"),
    [
        (linear(), None, "avx2", True),
        (linear(), None, "avx512_vnni", True),
        (linear(), F16, "avx512", True),
        (linear(), BF16, "avx512_vnni", True),
        (linear(128, 1024), BF16, "avx512_vnni", False),
        (linear(), BF16, "avx512", False),
        (linear(dtype=BF16), None, "avx512", False),
        (linear(dtype=BF16), F32, "avx512", True),
        (conv(), BF16, "avx512_vnni", False),
        (linear(), BF16, "amx", True),
        (linear(), BF16, "avx2", True),
        (linear(), None, "scalar", False),
        (linear(), F16, "neon", False),
        (conv(), None, "avx2", True),
        (conv(), BF16, "avx512", False),
        (conv(), BF16, "amx", True),
        (conv(64, 64), BF16, "amx", False),
        (conv(512, 512, groups=32), None, "avx512", True),
        (nn.MultiheadAttention(256, 4, device="meta"), None, "avx2", True),
        (nn.MultiheadAttention(256, 4, kdim=32, device="meta"), None, "avx2", False),
    ],
)
def test_what_a_rule_says(module: nn.Module, dtype: torch.dtype | None, kernels: str, sparse: bool) -> None:
    verdict = rules.verdict(module, dtype, kernels)
    assert verdict.sparse == sparse
    if sparse:
        assert verdict.remark == "by rule"
    else:
        assert verdict.remark.startswith("by rule, not measured: ")
        assert verdict.remark.endswith(": stays dense; example_inputs would measure it")


@pytest.mark.parametrize("kernels", ISAS)
def test_depthwise_tiny_and_image_layers_stay_dense_everywhere(kernels: str) -> None:
    for module, why in (
        (conv(256, 256, groups=256), "1 input channel a group, below 8"),
        (conv(64, 3, 7), "3 input channels a group, below 8"),
        (linear(63, 64), "63x64 is tiny: 4032 weights, below 4096"),
    ):
        verdict = rules.verdict(module, None, kernels)
        assert not verdict.sparse
        assert why in verdict.remark


def test_a_remark_names_the_given_the_least_and_where_it_was_seen() -> None:
    said = rules.verdict(linear(48, 1024), None, "avx2").remark
    assert "48x1024: float32 linear gains from 64x64 on with avx2 kernels (Zen 3: 1.2 to 2.7x)" in said
    said = rules.verdict(conv().to(BF16), None, "avx512_vnni").remark
    assert "bfloat16 conv2d gains at no size with avx512_vnni kernels (Zen 4: " in said
    attention = nn.MultiheadAttention(256, 4, kdim=32, device="meta")
    assert "k_proj 256x32: " in rules.verdict(attention, None, "avx2").remark


def test_where_torch_has_tiles_and_these_kernels_have_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "has_amx", lambda: True)
    assert rules.verdict(linear(), BF16, "amx").sparse
    assert rules.verdict(linear(), F32, "avx512_vnni").sparse
    for module, dtype in ((linear(), BF16), (linear(dtype=BF16), None)):
        verdict = rules.verdict(module, dtype, "avx512_vnni")
        assert not verdict.sparse
        assert "torch multiplies bfloat16 on AMX here, and avx512_vnni kernels do not" in verdict.remark


def test_every_kind_of_kernels_has_a_rule_for_everything() -> None:
    named = [name for name, _ in machine.isas()]
    for kernels, kind, dtype in itertools.product({*ISAS, *named}, ("linear", "conv2d"), (F32, F16, BF16)):
        assert rules.rule_for(kernels, kind, dtype).source


def test_tiles_are_what_the_cpu_has() -> None:
    assert HAS_AMX() == machine.machine()["features"]["amx_bf16"]


def test_without_examples_the_rule_decides_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "cpu_isa", lambda: "avx512")
    model = prune_layers(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8), nn.Linear(8, 64).to(BF16)))
    report = sparse24.to_sparse(model)
    assert [row.done for row in report] == [True, False, False]
    assert report[0].reason == "by rule"
    assert report[1].reason.startswith("by rule, not measured: 8x64 is tiny")
    assert ops.cpu_isa() == sparse24.backend("cpu")
