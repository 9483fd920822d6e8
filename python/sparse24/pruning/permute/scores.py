"""The scores of a weight that is to be pruned: its magnitudes, or what the caller says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

#: By name, a tensor of each weight's shape; or ``score(weight, name)`` that gives one.
Score = str | Mapping[str, Tensor] | Callable[[Tensor, str], Tensor]


def check_score(score: Score) -> None:
    """Refuse what is no kind of score.

    Raises:
        TypeError: neither a name, a mapping nor a function.
        ValueError: a name that is not "magnitude".
    """
    if isinstance(score, str):
        if score != "magnitude":
            raise ValueError(f'score must be "magnitude", a mapping or a function here, not {score!r}')
    elif not isinstance(score, Mapping) and not callable(score):
        raise TypeError(f"score must be a name, a mapping or a function, not {type(score).__name__}")


def score_of(score: Score, weight: Tensor, name: str) -> Tensor:
    """The scores of a weight, checked: floating, of its shape, finite and not negative.

    Raises:
        TypeError: no tensor, or not floating.
        ValueError: none for this weight; another shape; negative, NaN or Inf.
    """
    if isinstance(score, str):
        found = weight.detach().abs()
        if not bool(found.isfinite().all()):
            raise ValueError(
                f"{name} holds NaN or Inf, which have no magnitude to keep: repair the weights first"
            )
        return found
    if isinstance(score, Mapping):
        if name not in score:
            raise ValueError(f"score has no entry for {name}; it has {', '.join(map(str, score)) or 'none'}")
        given = score[name]
    else:
        given = score(weight.detach(), name)
    if not isinstance(given, Tensor):
        raise TypeError(f"the score of {name} must be a tensor, not {type(given).__name__}")
    if given.shape != weight.shape:
        raise ValueError(
            f"the score of {name} must be {tuple(weight.shape)}, as the weight is, not {tuple(given.shape)}"
        )
    if not given.is_floating_point():
        raise TypeError(f"the score of {name} must be floating, not {given.dtype}")
    given = given.detach().to(weight.device)
    if not bool(given.isfinite().all()) or (given.numel() and float(torch.min(given)) < 0):
        raise ValueError(f"the score of {name} must be finite and not negative, for the largest are kept")
    return given
