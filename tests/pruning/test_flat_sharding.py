"""FullyShardedDataParallel (FSDP1) flattens weights: refused with the way round, wherever it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD

from sparse24 import Sparsifier
from sparse24.pruning.asp import ASP

from .networks import mlp

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:FSDP:UserWarning")
SAYS = r"wrapped in FullyShardedDataParallel.*torch\.distributed\.fsdp\.fully_shard, which is supported"


@pytest.fixture
def fsdp(tmp_path: Path) -> Iterator[Callable[..., nn.Module]]:
    """Wraps a module in FSDP1, in a group of one process."""
    from torch.distributed.fsdp import FullyShardedDataParallel  # noqa: PLC0415

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield lambda module, **options: FullyShardedDataParallel(module, device_id=torch.device("cpu"), **options)
    dist.destroy_process_group()


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_a_flattened_model_is_refused_at_every_call(fsdp: Any, use_orig_params: bool) -> None:
    model = mlp()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    early = SGD(model.parameters(), lr=0.1)
    sparsifier.attach(early)
    wrapped = fsdp(model, use_orig_params=use_orig_params)
    optimizer = SGD(wrapped.parameters(), lr=0.1)
    for call in (
        sparsifier.prune,
        lambda: sparsifier.attach(optimizer),
        lambda: Sparsifier(wrapped),
        lambda: Sparsifier(nn.Sequential(wrapped)),
        lambda: ASP.init_model_for_pruning(wrapped),
    ):
        with pytest.raises(ValueError, match=SAYS):
            call()
    wrapped(torch.randn(4, 14)).mean().backward()
    if use_orig_params:  # in a group of one nothing is cut: this is what a second process would leave
        model[0].weight.data = model[0].weight.data.flatten()
    with pytest.raises(ValueError, match=SAYS):
        early.step()
    with pytest.raises(ValueError, match=SAYS):
        sparsifier.verify()


def test_a_part_that_is_flattened_is_named(fsdp: Any) -> None:
    model = nn.ModuleDict({"body": fsdp(mlp()), "head": nn.Linear(16, 3)})
    with pytest.raises(ValueError, match=f"^body is {SAYS}"):
        Sparsifier(model)
