"""A package of AOTInductor: what is in it, and what the process that runs it needs.

Processes of their own: the compiler warns, and a process that has imported sparse24 shows nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MAKE = """
import torch, sparse24
from sparse24 import SparseConv2d, SparseLinear, masks

torch.manual_seed(0)
dense = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.Flatten(2), torch.nn.Linear(16, 8))
for layer in (dense[0], dense[2]):
    masks.prune_(layer.weight.data)
net = torch.nn.Sequential(
    SparseConv2d.from_dense(dense[0]), dense[1], SparseLinear.from_dense(dense[2])
).eval()
x = torch.randn(2, 8, 6, 6)
with torch.no_grad():
    program = torch.export.export(net, (x,))
    torch._inductor.aoti_compile_and_package(
        program, package_path="net.pt2", inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"}
    )
    torch.save((x, dense(x)), "expected.pt")
"""

RUN = """
import torch
x, expected = torch.load("expected.pt")
found = torch._inductor.aoti_load_package("net.pt2")(x)
assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_package_runs_where_sparse24_was_imported_and_says_so_elsewhere(tmp_path: Path) -> None:
    made = run(MAKE, tmp_path)
    assert made.returncode == 0, made.stderr
    ran = run("import sparse24" + RUN, tmp_path)
    assert ran.returncode == 0, ran.stderr
    without = run(RUN, tmp_path)
    assert without.returncode != 0
    assert "Could not find schema for sparse24::" in without.stderr
