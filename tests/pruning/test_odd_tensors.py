"""One odd tensor gets a row with its reason, and does not end the call: the other layers are done."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from sparse24 import Sparsifier
from sparse24.masks import kept_share
from sparse24.pruning.asp import ASP

from .networks import reason_of


class Quantized(Tensor):
    """As torchao's: a wrapper of packed numbers, which answers to some operators and raises on others."""

    packed: Tensor

    @staticmethod
    def __new__(cls, packed: Tensor, shape: torch.Size) -> Quantized:
        made: Quantized = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)
        made.packed = packed
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].packed, args[0].shape)
        raise NotImplementedError(f"{func} of a quantized tensor")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return "Quantized(...)"


def quantized() -> nn.Parameter:
    packed = torch.zeros(16, 8, dtype=torch.uint8)
    return nn.Parameter(Quantized(packed, torch.Size((16, 16))), requires_grad=False)


def of_dtype(dtype: torch.dtype) -> nn.Parameter:
    numbers = torch.zeros(16, 16 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    return nn.Parameter(numbers, requires_grad=False)


ODD = {
    "sparse": (
        lambda: nn.Parameter(torch.eye(16).to_sparse()),
        "of layout sparse_coo: only strided tensors are pruned and converted",
    ),
    "quantized": (quantized, "a Quantized: only plain tensors are pruned and converted"),
    **{
        str(dtype): (lambda dtype=dtype: of_dtype(dtype), f"dtype {str(dtype)[6:]}: only floating")
        for dtype in (
            torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu,
            torch.float4_e2m1fn_x2, torch.uint16, torch.int8, torch.uint8, torch.bool, torch.complex64,
        )
    },
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, odd: nn.Parameter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 16)
        self.odd = nn.Linear(16, 16)
        self.odd.weight = odd
        self.attention = nn.MultiheadAttention(16, 2)
        self.last = nn.Linear(16, 16)


@pytest.mark.parametrize("case", list(ODD))
def test_a_row_with_its_reason_and_the_others_done(case: str) -> None:
    build, reason = ODD[case]
    model = Net(build())
    sparsifier = Sparsifier(model)
    assert reason_of(sparsifier, "odd").startswith(reason)
    report = sparsifier.prune()
    assert [row.name for row in report.done] == [
        "first",
        "attention.in_proj_weight",
        "attention.out_proj",
        "last",
    ]
    assert reason_of(sparsifier, "odd").startswith(reason)
    assert "odd" in str(report)
    assert not Sparsifier(model, select=["odd"]).prune().done
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparsifier.attach(optimizer)
    model.first(torch.ones(1, 16)).sum().backward()
    optimizer.step()
    assert len(sparsifier.verify()) == 4
    for dtype in (None, torch.bfloat16):
        net = copy.deepcopy(model) if case not in ("quantized", "sparse") else model
        converted = sparse24.to_sparse(net, dtype=dtype, when="always")
        rows = {row.name: row for row in converted}
        assert [row.name for row in converted.done] == ["first", "attention", "last"]
        assert not rows["odd"].done
        assert "only" in rows["odd"].reason
        assert str(converted)
        if case in ("quantized", "sparse"):
            sparse24.to_dense(net)


@pytest.mark.parametrize("case", list(ODD))
def test_asp_goes_on_too(case: str) -> None:
    build, reason = ODD[case]
    model = Net(build())
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.compute_sparse_masks()
    rows = {row.name: row for row in ASP.report()}
    assert rows["odd"].reason.startswith(reason)
    assert rows["first"].done
    ASP.release(model)


def test_an_odd_weight_in_an_attention_leaves_the_attention_alone() -> None:
    model = nn.ModuleDict(
        {"first": nn.Linear(16, 16), "attention": nn.MultiheadAttention(16, 2), "last": nn.Linear(16, 16)}
    )
    model["attention"].out_proj.weight = quantized()
    sparsifier = Sparsifier(model)
    assert [row.name for row in sparsifier.prune().done] == ["first", "last"]
    assert "only plain tensors" in reason_of(sparsifier, "attention.in_proj_weight")


def test_the_share_that_is_kept_is_nan_where_it_cannot_be_read() -> None:
    assert kept_share(torch.tensor([0.0, 1.0, -0.0, float("nan")])) == 0.5
    assert kept_share(torch.tensor([0, 1]).to(torch.float8_e5m2)) == 0.5
    assert kept_share(torch.ones(2), torch.zeros(2)) == 0.5
    for unread in (quantized(), of_dtype(torch.float8_e8m0fnu), of_dtype(torch.float4_e2m1fn_x2)):
        assert math.isnan(kept_share(unread))
    assert math.isnan(kept_share(torch.ones(2, device="meta")))
    assert math.isnan(kept_share())
    report = Sparsifier(nn.Sequential(nn.Linear(8, 8, device="meta"))).report()
    assert "8x8    no      -  " in str(report)


def test_a_shared_weight_in_an_attention_leaves_the_attention_alone() -> None:
    model = nn.ModuleDict({"first": nn.Linear(16, 16), "attention": nn.MultiheadAttention(16, 2)})
    model["attention"].out_proj.weight = model["first"].weight
    sparsifier = Sparsifier(model)
    reason = reason_of(sparsifier, "attention.in_proj_weight")
    assert "its out_proj.weight is shared with first.weight" in reason
    assert not sparsifier.prune().done
