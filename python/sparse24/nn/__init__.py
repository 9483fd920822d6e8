"""Inference modules whose 2:4 weight is stored compressed, and the swap of a network's layers.

The weights are constants here. Gradients still flow to the input, and to ``bias`` or ``values`` where
somebody asks for them, through the decompressed weight: right, but no faster than dense.
"""

from . import weight_products as weight_products  # what a weight runs sparse
from .attention import SparseMultiheadAttention
from .conv2d import SparseConv2d
from .conv3d import SparseConv3d
from .convert import to_dense, to_sparse
from .linear import SparseLinear

__all__ = [
    "SparseConv2d",
    "SparseConv3d",
    "SparseLinear",
    "SparseMultiheadAttention",
    "to_dense",
    "to_sparse",
]
