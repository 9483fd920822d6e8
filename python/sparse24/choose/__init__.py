"""Sparse or dense, by rule or measured, and what a user decides about it."""

from .gpu import explain, keep_dense, tune
from .prepare import prepare

__all__ = ["explain", "keep_dense", "prepare", "tune"]
