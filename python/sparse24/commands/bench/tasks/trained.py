"""Networks that tasks train: kept in the user's cache folder, for one version of torch."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable

import torch
from torch import nn

from ....ops import figures


def trained(name: str, model: nn.Module, train: Callable[[nn.Module], None]) -> nn.Module:
    """``model`` with the weights that ``train`` gave it here, once; in eval mode.

    Args:
        name: changes with whatever changes the result.
    """
    path = figures.path(f"{name}-torch{torch.__version__}.pt")
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError):  # not there, or not whole
        train(model)
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), draft)
            draft.replace(path)
        except OSError:  # it is trained again next time
            draft.unlink(missing_ok=True)
    return model.eval()
