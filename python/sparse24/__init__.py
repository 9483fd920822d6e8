"""2:4 structured sparsity for PyTorch: prune, retrain, store at half the size, run faster than dense."""

from .attention import SparseMultiheadAttention
from .convert import to_dense, to_sparse
from .masks import compress, decompress, is_sparse24, magnitude_mask, transposable_mask
from .nn import SparseConv2d, SparseLinear
from .report import Report, Row
from .sparsifier import Sparsifier

__version__ = "0.1.0"

__all__ = [
    "Report",
    "Row",
    "SparseConv2d",
    "SparseLinear",
    "SparseMultiheadAttention",
    "Sparsifier",
    "compress",
    "decompress",
    "is_sparse24",
    "magnitude_mask",
    "to_dense",
    "to_sparse",
    "transposable_mask",
]
