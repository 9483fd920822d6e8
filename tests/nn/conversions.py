"""A pruned network, its converted copy, and what tells what became of it."""

from __future__ import annotations

import collections
import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparse24
from reference import prune_layers


class CountOperators(TorchDispatchMode):
    """How often every operator ran, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


def converted(model: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module, sparse24.Report]:
    """The pruned dense model, its converted copy, and the report."""
    dense = prune_layers(model).eval()
    sparse = copy.deepcopy(dense)
    return dense, sparse, sparse24.to_sparse(sparse, **{"when": "always", **options})


def count(model: nn.Module, *inputs: Tensor, **options: Any) -> collections.Counter[str]:
    with CountOperators() as counter, torch.no_grad():
        model(*inputs, **options)
    return counter.calls


def reasons(report: sparse24.Report) -> dict[str, str]:
    return {row.name: row.reason for row in report.left}
