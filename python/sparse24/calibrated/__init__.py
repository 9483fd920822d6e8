"""Pruning without retraining: what ``sparse24.oneshot`` runs."""

from __future__ import annotations

from .oneshot import oneshot

__all__ = ["oneshot"]
