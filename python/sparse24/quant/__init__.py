"""Quantization after sparsity: int8 for the layers of a 2:4 network, calibrated or trained for."""

from __future__ import annotations

from .qat import convert, prepare_qat
from .quantize import quantize

__all__ = ["convert", "prepare_qat", "quantize"]
