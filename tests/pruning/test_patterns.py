"""Patterns, scores and bad arguments of the Sparsifier."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse24 import Sparsifier, is_sparse24, magnitude_mask, transposable_mask
from sparse24.masks import Pattern

from .networks import mlp, reason_of, same_state


@pytest.mark.parametrize("pattern", ["1:4", "4:8", "1:2", "transposable"])
def test_other_patterns(pattern: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(16, 12))
    before = [layer.weight.detach().clone() for layer in model]
    sparsifier = Sparsifier(model, pattern, select=["*"])
    sparsifier.prune()
    for mask, weight in zip(sparsifier.masks.values(), before, strict=True):
        expected = transposable_mask(weight) if pattern == "transposable" else magnitude_mask(weight, pattern)
        assert torch.equal(mask, expected)
    assert sparsifier.state_dict()["pattern"] == pattern
    dense = "stays dense: 4:8 is not 2:4" if pattern == "4:8" else ""
    assert {row.reason for row in sparsifier.report()} == {dense}


@pytest.mark.parametrize(("n", "m"), [(n, m) for m in range(1, 13) for n in range(1, m + 1)])
def test_what_a_pattern_keeps_is_24_where_it_says_so(n: int, m: int) -> None:
    everything = torch.arange(24).remainder(m) < n  # in every order: the first, the last
    orders = (everything, everything.flip(0).roll(-(24 % m)) if 24 % m else everything.flip(0))
    is_24 = all(is_sparse24(kept[None].float()) for kept in orders)
    assert is_24 or not Pattern(n, m).is_within_24
    if m % 4 == 0:
        assert is_24 == Pattern(n, m).is_within_24


def test_transposable_needs_multiples_of_four() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8).double())
    sparsifier = Sparsifier(model, "transposable", select=["*"])
    assert reason_of(sparsifier, "0") == "6 x 8: a transposable mask needs multiples of 4"
    sparsifier.prune()
    assert list(sparsifier.masks) == ["2.weight", "3.weight"]
    assert "int8" in reason_of(Sparsifier(with_int8(), "transposable", select=["*"]), "0")


def with_int8() -> nn.Sequential:
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return nn.Sequential(layer)


def test_a_score_decides_what_is_kept() -> None:
    model = mlp()
    seen = []

    def score(weight: Tensor, name: str) -> Tensor:
        seen.append(name)
        return (torch.arange(weight.shape[1]) % 4).float().expand_as(weight)

    Sparsifier(model, score=score).prune()
    assert seen == ["0.weight", "2.weight"]
    assert not model[0].weight[:, [0, 1, 4, 5, 8, 9]].any()
    assert model[0].weight[:, [2, 3, 6, 7, 10, 11, 12, 13]].all()


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda w, name: None, TypeError, "returned NoneType"),
        (lambda w, name: w[:1], ValueError, r"must be \(16, 20\) on cpu"),
        (lambda w, name: -w.abs(), ValueError, "not negative"),
        (lambda w, name: w.int(), ValueError, "floating"),
    ],
)
def test_a_bad_score_changes_nothing(
    score: Callable[[Tensor, str], Tensor], error: type[Exception], message: str
) -> None:
    model = mlp()
    before = copy.deepcopy(model)
    sparsifier = Sparsifier(model, score=lambda w, name: w.abs() if name == "0.weight" else score(w, name))
    with pytest.raises(error, match=rf"score\(2.weight\).*{message}"):
        sparsifier.prune()
    assert same_state(model, before)
    assert not sparsifier.masks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "net"}, TypeError, "torch.nn.Module, not str"),
        ({"pattern": "4:2"}, ValueError, "N:M"),
        ({"pattern": 24}, TypeError, "string"),
        ({"score": "l1"}, ValueError, "'l1'"),
        ({"score": 3}, TypeError, "not int"),
        ({"select": ["0", "nope"]}, ValueError, "'nope' matches no layer.*: 0, 2, 4"),
        ({"select": [3]}, TypeError, "not int"),
        ({"select": 3}, TypeError, "select must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sparsifier(**{"model": mlp(), **arguments})
