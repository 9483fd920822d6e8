"""Quantization after sparsity: int8 for the layers of a 2:4 network, calibrated or trained for."""

from __future__ import annotations

from .chain import chain
from .compressed_tensors import from_compressed_tensors
from .qat import convert, prepare_qat
from .quantize import quantize
from .reference import reference

__all__ = ["chain", "convert", "from_compressed_tensors", "prepare_qat", "quantize", "reference"]
