"""Pruning without retraining: what ``sparse24.oneshot``, ``sensitivity`` and ``permute`` run."""

from __future__ import annotations

from .oneshot import oneshot
from .permutation import permute
from .sensitivity import sensitivity
from .trade_off import Choice, Sensitivity

__all__ = ["Choice", "Sensitivity", "oneshot", "permute", "sensitivity"]
