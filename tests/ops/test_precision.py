"""How exactly float32 is multiplied, read from torch's settings in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sparse24.ops import precision

NEW = pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no settings for each backend"
)


def read(settings: str) -> list[int]:
    """precision("matmul") and precision("conv") after the statements."""
    code = f"import torch\n{settings}\nfrom sparse24.ops.precision import precision\n"
    code += "print(precision('matmul'), precision('conv'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(word) for word in result.stdout.split()]


@pytest.mark.parametrize(("word", "code"), [("highest", 0), ("high", 1), ("medium", 2)])
def test_the_old_setting_is_for_matrix_products_alone(word: str, code: int) -> None:
    assert read(f"torch.set_float32_matmul_precision('{word}')") == [code, 0]


@NEW
@pytest.mark.parametrize(("word", "code"), [("ieee", 0), ("tf32", 1), ("bf16", 2)])
def test_matmul_and_conv_have_settings_of_their_own(word: str, code: int) -> None:
    assert read(f"torch.backends.mkldnn.matmul.fp32_precision = '{word}'") == [code, 0]
    assert read(f"torch.backends.mkldnn.conv.fp32_precision = '{word}'") == [0, code]


@NEW
def test_mixed_settings_do_not_raise() -> None:
    mixed = "torch.set_float32_matmul_precision('high')\ntorch.backends.mkldnn.matmul.fp32_precision = 'bf16'"
    assert read(mixed) == [2, 0]
    assert read("torch.backends.fp32_precision = 'tf32'\ntorch.set_float32_matmul_precision('highest')")[
        0
    ] in (0, 1)


def test_the_default_is_float32_itself() -> None:
    assert read("") == [0, 0]


def test_only_tiles_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "precision", lambda kind: 2)
    for isa, code in (("amx", 2), ("avx512", 0), ("avx2", 0)):
        monkeypatch.setattr(precision, "cpu_isa", lambda isa=isa: isa)
        assert precision.for_product("matmul", torch.float32) == code
        assert precision.for_product("matmul", torch.bfloat16) == 0
        assert (precision.reader() is None) == (isa != "amx")
