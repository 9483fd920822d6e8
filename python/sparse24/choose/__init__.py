"""Sparse or dense, by rule or measured, and what a user decides about it."""

from .convert import to_sparse
from .gpu import explain, keep_dense, tune
from .prepare import prepare

__all__ = ["explain", "keep_dense", "prepare", "to_sparse", "tune"]
