"""Sparse products in training under DistributedDataParallel and fully_shard, with a mesh of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparse24.pruning import recipes

from .masked import gradients, twins

pytestmark = pytest.mark.usefixtures("seeded")


def test_in_distributed_data_parallel(tmp_path: Path) -> None:
    dense, model, _ = twins("transposable")
    x = torch.randn(9, 16)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = gradients(nn.parallel.DistributedDataParallel(model), x)
    finally:
        dist.destroy_process_group()
    for ours, expected in zip(found, gradients(dense, x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("each", [False, True])
def test_shards_compute_dense_whenever_they_were_cut(each: bool, tmp_path: Path) -> None:
    dense, model, sparsifier = twins("transposable")
    x = torch.randn(9, 16)
    expected = gradients(dense, x)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

        for part in (model[0], model[2]) if each else ():
            fully_shard(part)
        fully_shard(model)
        for _ in range(2):  # before and after the masks have become those of shards
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            sparsifier.attach(optimizer)
            model.zero_grad()
            found = gradients(model, x)
            for ours, theirs in zip(found, expected, strict=True):
                whole = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
                torch.testing.assert_close(whole, theirs, rtol=1e-4, atol=1e-5)
            optimizer.step()
        reasons = {row.reason for row in recipes.sparse_products(sparsifier, when="always")}
        assert "its weight is sharded: a process would need the whole of it" in reasons
        recipes.dense_products(sparsifier)
        assert torch.equal(model(x), model.eval()(x))
    finally:
        dist.destroy_process_group()
