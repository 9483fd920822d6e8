"""The logger that long work tells how far it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sparse24


def _model() -> nn.Module:
    torch.manual_seed(24)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()


def _oneshot(**options: Any) -> None:
    sparse24.oneshot(_model(), [torch.randn(8, 16)], reconstruct=None, **options)


def _sensitivity(**options: Any) -> None:
    sparse24.sensitivity(_model(), [torch.randn(8, 16)], times=False, **options)


def _quantize(**options: Any) -> None:
    model = _model()
    sparse24.Sparsifier(model, select=["*"]).prune()
    sparse24.quantize(model, [torch.randn(8, 16)], when="always", **options)


@pytest.mark.parametrize("work", [_oneshot, _sensitivity, _quantize])
def test_long_work_tells_the_logger_unless_somebody_else_listens(
    work: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="sparse24"):
        work()
    assert caplog.records
    assert {(record.name, record.levelno) for record in caplog.records} == {("sparse24", logging.INFO)}
    caplog.clear()
    told: list[str] = []
    with caplog.at_level(logging.INFO, logger="sparse24"):
        work(progress=told.append)
    assert told
    assert not caplog.records


def test_nobody_who_did_not_ask_sees_it(capfd: pytest.CaptureFixture[str]) -> None:
    _oneshot()
    assert capfd.readouterr() == ("", "")
