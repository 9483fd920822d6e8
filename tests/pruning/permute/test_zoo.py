"""Every network of the zoo: the same outputs, bit for bit the same numbers in another order, more kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

import sparse24
from sparse24.pruning.permute import PermutationReport, PermutedRow
from sparse24.pruning.running import quiet, run_batch

from . import convolutional, feedforward, transformers_library, transformers_own, unusual  # noqa: F401  they enter
from .zoo import ZOO, Entry, randomized

pytestmark = pytest.mark.usefixtures("seeded")


def leaves(model: nn.Module, batch: Any) -> list[Tensor]:
    """Outputs in the dtype of the model."""
    dtype = next(model.parameters()).dtype

    def widened(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    with quiet(model), torch.no_grad():
        found = tree_flatten(run_batch(model, tree_map_only(Tensor, widened, batch)))[0]
    return [leaf.clone() for leaf in found if isinstance(leaf, Tensor)]


def error(old: list[Tensor], new: list[Tensor]) -> float:
    """The largest difference over the largest size."""
    pairs = zip(old, new, strict=True)
    return max(
        float((a - b).abs().max()) / max(float(a.abs().max()), 1e-30)
        for a, b in pairs
        if a.is_floating_point()
    )


def kept_share(model: nn.Module, name: str, dim: int) -> float:
    """What 2:4 by magnitude keeps of a weight, by the masks that pruning uses."""
    weight = model.get_parameter(name).detach()
    kept = sparse24.magnitude_mask(weight, dim=dim)
    return float(weight.abs()[kept].double().sum() / weight.abs().double().sum())


def by_name(report: PermutationReport) -> dict[str, PermutedRow]:
    rows: Any = {row.name: row for row in report}
    return rows


def test_the_zoo_is_as_large_as_it_has_to_be() -> None:
    assert len(ZOO) >= 30
    assert sum(not entry.stays for entry in ZOO) >= 20
    assert len({entry.name for entry in ZOO}) == len(ZOO)


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_outputs_stay_and_more_is_kept(entry: Entry) -> None:
    model = randomized(entry.build())
    model.train()
    before = copy.deepcopy(model)
    report = sparse24.permute(model, entry.inputs(2), select=entry.select)
    rows = by_name(report)
    assert all(module.training for module in model.modules())

    twin, other = copy.deepcopy(before).to(entry.dtype), copy.deepcopy(model).to(entry.dtype)
    batch = entry.inputs(3 if entry.batches else 2)
    assert error(leaves(twin, batch), leaves(other, batch)) <= entry.tolerance, report

    for (name, old), new in zip(before.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values), name
    if entry.stays:
        assert not report.done
        assert any(entry.stays in row.reason for row in report), report
        assert all(
            torch.equal(a, b)
            for a, b in zip(before.state_dict().values(), model.state_dict().values(), strict=True)
        )
        return
    assert report.done, report
    assert report.gain > 0, report
    assert report.score_after > report.score_before
    assert {name for name in entry.moved if not rows[name].done} == set(), report
    for name, reason in entry.kept:
        assert not rows[name].done
        assert reason in rows[name].reason
    dims = {c.name: c.dim for c in sparse24.pruning.prunable.find_candidates(model)}
    for row in rows.values():
        if row.kept == row.kept:
            assert row.kept_before == pytest.approx(kept_share(before, row.name, dims[row.name]), abs=1e-6)
            assert row.kept == pytest.approx(kept_share(model, row.name, dims[row.name]), abs=1e-6)


def test_training_goes_on_as_it_would_have() -> None:
    """A step of training gives permuted gradients: the loss after it is the same."""
    entry = next(each for each in ZOO if each.name == "resnet")
    model = randomized(entry.build())
    twin = copy.deepcopy(model)
    sparse24.permute(model, entry.inputs(2))
    batch = entry.inputs(4).double()
    losses = []
    for each in (model.double().train(), twin.double().train()):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(2):
            loss = each(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(each(batch).detach().square().mean()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
