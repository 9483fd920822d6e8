"""The compressed layers, as those name them who take any."""

from __future__ import annotations

from .attention import SparseMultiheadAttention
from .conv2d import SparseConv2d
from .conv3d import SparseConv3d
from .linear import SparseLinear

#: What computes one product, of one weight.
ProductLayer = SparseLinear | SparseConv2d | SparseConv3d
SPARSE = (SparseLinear, SparseConv2d, SparseConv3d, SparseMultiheadAttention)
