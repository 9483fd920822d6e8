"""Pruning without retraining: what ``sparse24.oneshot`` and ``sparse24.sensitivity`` run."""

from __future__ import annotations

from .oneshot import oneshot
from .sensitivity import sensitivity
from .trade_off import Choice, Sensitivity

__all__ = ["Choice", "Sensitivity", "oneshot", "sensitivity"]
