"""The name of version 0.1 for ``sparse24.nn.attention``: scripts and pickles find it here."""

from .nn.attention import SparseMultiheadAttention

__all__ = ["SparseMultiheadAttention"]
