"""One-shot pruning in shards: the result of one process with everybody's batches."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from reference import relative_error
from sparse24 import is_sparse24

from . import sharded_program as program

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What two processes came to."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        program.__file__, str(folder),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"found{rank}") for rank in range(2)]


@pytest.mark.parametrize(("sharding", "method"), program.CASES)
def test_shards_end_where_one_process_does(sharding: str, method: str, found: Found) -> None:
    alone, again = (program.Net(sharding == "attention") for _ in range(2))
    report = program.pruned(alone, method, program.batches())
    x = program.batches()[0]
    for result in found:
        weights, rows = result[f"{sharding} {method}"]
        assert rows == [(row.name, row.done) for row in report]
        assert sum(done for _, done in rows) >= 5
        for name, expected in alone.state_dict().items():
            assert torch.equal(weights[name] == 0, expected == 0), name
            if sharding != "attention":
                torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-6)
        again.load_state_dict(weights)
        assert relative_error(again(x), alone(x)) < 5e-4
    first, second = (result[f"{sharding} {method}"][0] for result in found)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("reconstruct", "pass reconstruct=None, not 'component'"),
        ("folder", "leave folder= out"),
        ("budget", r"a budget \(0.5\) needs whole weights"),
        ("batches", "the same number of batches: one has 2, another 1"),
        ("inputs", "hold NaN or Inf"),
        ("weights", "blocks.0.up.weight holds NaN or Inf"),
        ("tensor", "0.weight .* is cut by tensor parallelism"),
    ],
)
def test_what_is_refused_is_refused_by_all(case: str, says: str, found: Found) -> None:
    for result in found:
        with pytest.raises(ValueError, match=says):
            raise ValueError(result["refusals"][case])


def test_forwards_in_lower_precision_and_training_afterwards(found: Found) -> None:
    for result in found:
        weights = result["lower precision"]
        assert all(
            is_sparse24(weights[f"blocks.{i}.{part}.weight"]) for i in range(3) for part in ("up", "down")
        )
        assert all(value.dtype == torch.float32 for value in weights.values())
