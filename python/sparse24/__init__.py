"""2:4 structured sparsity for PyTorch: prune, retrain, store at half the size, run faster than dense."""

from . import integrations as _integrations
from .calibrated import oneshot, permute, sensitivity
from .choose import explain, keep_dense, prepare, to_sparse, tune
from .files import load, save
from .masks import compress, decompress, is_sparse24, magnitude_mask, transposable_mask
from .nn import SparseConv2d, SparseConv3d, SparseLinear, SparseMultiheadAttention, to_dense
from .ops import Error
from .ops.backend import backend
from .pruning import Sparsifier
from .quant import quantize
from .report import Report, Row

__version__ = "0.1.0"

_integrations.register()

__all__ = [
    "Error",
    "Report",
    "Row",
    "SparseConv2d",
    "SparseConv3d",
    "SparseLinear",
    "SparseMultiheadAttention",
    "Sparsifier",
    "backend",
    "compress",
    "decompress",
    "explain",
    "is_sparse24",
    "keep_dense",
    "load",
    "magnitude_mask",
    "oneshot",
    "permute",
    "prepare",
    "quantize",
    "save",
    "sensitivity",
    "to_dense",
    "to_sparse",
    "transposable_mask",
    "tune",
]
