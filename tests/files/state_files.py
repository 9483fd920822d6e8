"""Files with state_dicts, and the command line on them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparse24.__main__ import main


def network() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            embed=nn.Embedding(11, 16),
            conv=nn.Conv2d(16, 8, 3),
            norm=nn.BatchNorm2d(8),
            body=nn.Linear(16, 24),
            head=nn.Linear(24, 10),
        )
    )


def saved(path: Path, state: dict[str, Any] | None = None) -> Path:
    state = network().state_dict() if state is None else state
    if path.suffix == ".safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save(state, path)
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that ends with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
