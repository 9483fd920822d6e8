"""The table of published times, and the script that fits it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse24.ops.cuda import published, route
from sparse24.ops.cuda.cusparselt import GPU
from sparse24.ops.cuda.route import Call

HALF, BF16 = torch.float16, torch.bfloat16
SCRIPT = Path(__file__).parents[3] / "bench" / "routes.py"


def test_what_was_measured_has_figures_and_nothing_else() -> None:
    both = {(sm, dtype) for sm in (80, 89, 100, 120, 121) for dtype in ("float16", "bfloat16")}
    assert set(published.WEIGHTS) == both | {(90, "bfloat16")}
    assert {len(weights) for weights in published.WEIGHTS.values()} == {
        len(published.features(64, 1024, 1024))
    }
    for sm, dtype in ((90, HALF), (86, HALF), (80, torch.float32), (80, torch.int8), (75, BF16)):
        assert published.gain(sm, dtype, 1024, 4096, 4096) is None


@pytest.mark.parametrize(
    ("tokens", "m", "k", "measured"),
    [  # rows of the published list for GB10 in float16: dense over sparse
        (16384, 16384, 2048, 0.49),
        (4096, 27648, 5120, 0.59),
        (4096, 3584, 3584, 1.95),
        (64, 5120, 5120, 2.26),
    ],
)
def test_the_model_falls_on_the_side_of_what_was_measured(
    tokens: int, m: int, k: int, measured: float
) -> None:
    found = published.gain(121, HALF, tokens, m, k)
    assert found is not None
    assert (found > 1) == (measured > 1)


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("sm", [80, 89, 100, 120])
def test_large_products_gain_as_every_one_measured_did(sm: int, dtype: torch.dtype) -> None:
    for m, k in ((4096, 4096), (5120, 13824), (27648, 5120)):
        found = published.gain(sm, dtype, 16384, m, k)
        assert found is not None
        assert 1.1 <= found <= 2.5


def test_sizes_without_figures_are_taken_for_the_nearest() -> None:
    assert published.features(1, 8, 8) == published.features(64, 1024, 1024)
    assert published.features(1 << 20, 1 << 20, 4096) == published.features(65536, 65536, 4096)


def test_a_choice_without_figures_says_so() -> None:
    h100 = GPU(90, 132, 801)
    for dtype, told in ((HALF, True), (BF16, False)):
        chosen = route.choose(Call(dtype, dtype, 4096, 8192, 4096), h100, True)
        assert chosen.sparse
        assert any("no figures of float16 on sm_90" in note for note in chosen.notes) == told
    assert route.choose(Call(HALF, HALF, 4096, 8192, 4096), h100, False).notes == ()


def test_the_script_fits_and_judges_by_shapes_it_has_not_seen(tmp_path: Path) -> None:
    """Times made up by a rule: the fit finds it, and always taking sparse loses."""
    lines = ["gpu,sm,dtype,tokens,m,k,dense_us,sparse_us"]
    for m in (1024, 2048, 4096, 8192, 16384):
        for k in (1024, 3072, 5120, 12288):
            for tokens in (64, 512, 4096):
                ratio = 2 ** (0.5 * (math.log2(tokens) - 9) + 0.25 * (math.log2(m * k) - 24))
                lines += [
                    f"made up,90,{dtype},{tokens},{m},{k},{100 * ratio},100" for dtype in ("BF16", "INT8")
                ]
    file = tmp_path / "measured.csv"
    file.write_text("\n".join(lines))
    ran = subprocess.run([sys.executable, str(SCRIPT), str(file)], capture_output=True, text=True, check=True)
    found = {
        name: (float(a), float(b))
        for name, a, b in re.findall(r"90 +(\w+) .* ([\d.]+) % +([\d.]+) %", ran.stdout)
    }
    assert found["BF16"][0] <= 3
    assert found["BF16"][1] > 20
    assert found["INT8"][0] == found["INT8"][1]
