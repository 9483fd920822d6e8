"""The search for an order of columns: what it promises, what it gains, and what it refuses."""

from __future__ import annotations

import re
import signal
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse24 import masks, ops

pytestmark = pytest.mark.usefixtures("seeded")


def share(score: Tensor) -> float:
    """What 2:4 keeps of a score, in percent."""
    return 100 * float(score[masks.magnitude_mask(score)].double().sum() / score.double().sum())


def gain(score: Tensor, **how: Any) -> float:
    """Percentage points that an order gains."""
    return share(score[:, ops.search_columns(score, **how)]) - share(score)


@pytest.mark.parametrize("shape", [(0, 8), (1, 4), (3, 12), (40, 64), (9, 0)])
def test_it_is_a_permutation(shape: tuple[int, int]) -> None:
    order = ops.search_columns(torch.rand(shape))
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(shape[1]))


def test_more_is_kept() -> None:
    assert gain(torch.randn(256, 256).abs()) > 0.7
    assert gain((torch.randn(256, 256) * torch.randn(256).exp()).abs()) > 2.0


def test_a_hidden_order_is_found() -> None:
    """Two large and two small columns in every group keep nearly all; they were shuffled to keep far less."""
    large = torch.rand(64, 32) + 10
    score = torch.cat([large, torch.rand(64, 32)], 1)
    assert share(score) < 60
    assert share(score[:, ops.search_columns(score)]) > 94


def test_columns_stay_in_their_block() -> None:
    score = torch.rand(32, 96)
    order = ops.search_columns(score, block=24)
    assert torch.equal(order // 24, torch.arange(96) // 24)
    assert share(score[:, order]) > share(score)
    alone = ops.search_columns(score[:, 24:48].contiguous())
    assert torch.equal(order[24:48], alone + 24)


def test_a_seed_gives_one_order_whatever_the_threads() -> None:
    score = torch.rand(200, 128)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.search_columns(score, seed=3)
        torch.set_num_threads(3)
        three = ops.search_columns(score, seed=3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, three)
    assert not torch.equal(one, ops.search_columns(score, seed=4))


def test_strided_scores_are_read_right() -> None:
    score = torch.rand(64, 32)
    assert torch.equal(ops.search_columns(score.t().contiguous().t()), ops.search_columns(score))


def test_steps_end_it() -> None:
    score = torch.rand(64, 64)
    assert torch.equal(ops.search_columns(score, steps=0), torch.arange(64))
    assert 0 < gain(score, steps=2) < gain(score)


def test_it_can_be_interrupted() -> None:
    score = torch.rand(512, 512)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # may be ignored
    timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ops.search_columns(score, tolerance=-1, steps=10**9)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("score", "how", "error", "message"),
    [
        (torch.rand(4, 8).double(), {}, TypeError, "float32 scores, not torch.float64"),
        (torch.rand(8), {}, ValueError, r"scores \[rows, K\] with K a multiple of 4, not (8,)"),
        (torch.rand(4, 6), {}, ValueError, "not (4, 6); pad it with zeros to 8 columns"),
        (torch.rand(4, 8), {"block": 6}, ValueError, "a multiple of 4 that divides the 8 columns, not 6"),
        (torch.rand(4, 24), {"block": 16}, ValueError, "divides the 24 columns, not 16"),
        (torch.rand(4, 8), {"block": 0}, ValueError, "not 0"),
        (torch.full((4, 8), -1.0), {}, ValueError, "finite and not negative"),
        (torch.full((4, 8), torch.nan), {}, ValueError, "finite and not negative"),
        (torch.full((4, 8), torch.inf), {}, ValueError, "finite and not negative"),
    ],
)
def test_bad_scores(score: Tensor, how: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message.replace("\\", ""))):
        ops.search_columns(score, **how)


@pytest.mark.parametrize("shape", [(0, 8), (3, 4), (5, 23), (300, 257), (7, 2), (4, 0)])
def test_what_an_order_keeps(shape: tuple[int, int]) -> None:
    score = torch.randn(shape).abs()
    order = torch.randperm(shape[1])
    expected = (
        float(score[:, order][masks.magnitude_mask(score[:, order])].double().sum()) if score.numel() else 0.0
    )
    assert ops.kept_sum(score, order) == pytest.approx(expected, rel=1e-12)
    assert ops.kept_sum(score[:, order]) == ops.kept_sum(score, order)


@pytest.mark.parametrize(
    ("score", "order", "error", "message"),
    [
        (torch.rand(4, 8).half(), None, TypeError, "float32 scores and an int64 order, not torch.float16"),
        (torch.rand(4, 8), torch.arange(8).int(), TypeError, "not torch.float32 and torch.int32"),
        (torch.rand(8), None, ValueError, "scores [rows, K], not (8,)"),
        (torch.rand(4, 8), torch.arange(7), ValueError, "a permutation of the 8 columns, not (7,)"),
        (torch.rand(4, 8), torch.zeros(8).long(), ValueError, "a permutation of the 8 columns"),
    ],
)
def test_bad_orders(score: Tensor, order: Tensor | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        ops.kept_sum(score, order)
