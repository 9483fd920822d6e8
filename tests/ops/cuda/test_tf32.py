"""Whether float32 may run as TF32 on a GPU: both settings of torch, and a mix of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from emulated import FLOAT, EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, linear_reference
from sparse24.ops import precision
from sparse24.ops.cuda import products as cuda

from .precision import close

HAS_NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")


@pytest.fixture
def as_before() -> Iterator[None]:
    backend = torch.backends.cuda.matmul.fp32_precision if HAS_NEW else None
    old = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(old)
    if backend is not None:
        torch.backends.cuda.matmul.fp32_precision = backend


@pytest.mark.skipif(not HAS_NEW, reason="torch before 2.9 has one setting only")
@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(("asked", "sparse"), [("tf32", True), ("ieee", False)])
def test_the_new_setting_comes_first(
    asked: str, sparse: bool, emulator: Emulator, stream: EmulatedStream
) -> None:
    torch.backends.cuda.matmul.fp32_precision = asked
    weight, x = sparse_weight(32, 64, FLOAT), randn(16, 64, dtype=FLOAT)
    output = cuda.linear(x, *compressed(weight), None, "none", stream)
    (close if sparse else assert_matches)(output, linear_reference(x, weight))
    assert emulator.launches() == int(sparse)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize(("asked", "allowed"), [("highest", False), ("high", True), ("medium", True)])
def test_the_old_setting(asked: str, allowed: bool) -> None:
    torch.set_float32_matmul_precision(asked)
    assert precision.cuda_allows_tf32() == allowed


@pytest.mark.skipif(not HAS_NEW, reason="torch before 2.9 has one setting only")
@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        (
            "torch.set_float32_matmul_precision('high'); torch.backends.cuda.matmul.fp32_precision = 'ieee'",
            False,
        ),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", True),
        ("torch.backends.fp32_precision = 'tf32'", True),
        ("torch.backends.cuda.matmul.allow_tf32 = True", True),
        ("", False),
    ],
)
def test_settings_that_torch_itself_cannot_put_into_one_word(settings: str, allowed: bool) -> None:
    """In a process of its own: some mixes cannot be undone."""
    code = f"""
import torch
{settings}
from sparse24.ops import precision
print(precision.cuda_allows_tf32())"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(allowed)


def test_torch_without_the_new_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_get_fp32_precision_getter", raising=False)
    for told, allowed in (("highest", False), ("high", True)):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda told=told: told)
        assert precision.cuda_allows_tf32() == allowed

    def refused() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refused)
    assert not precision.cuda_allows_tf32()
