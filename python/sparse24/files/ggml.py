"""Weights of GGUF files, dequantized: what they hold is then pruned or compressed as any state_dict."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import FileError


def from_gguf(path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The tensors of a GGUF file by name, blocks of integers dequantized by the package ``gguf``.

    Names are those of the file (``blk.0.attn_q.weight``), shapes those of torch ([out, in]). GGUF has no form
    for 2:4, so there is no way back.

    Args:
        path: the file.
        dtype: floating, of what comes out; integer tensors stay integers.

    Returns:
        Tensors in memory of their own.

    Raises:
        TypeError: ``dtype`` is not floating.
        FileError: no such file, not a GGUF file, a kind of blocks that the package cannot dequantize, or the
            package is not installed.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, not {dtype}")
    file = Path(path)
    if not file.is_file():
        raise FileError(f"{file}: No such file")
    if importlib.util.find_spec("gguf") is None:
        raise FileError(f"{file}: GGUF files are read by the package gguf: pip install gguf")
    gguf: Any = importlib.import_module("gguf")
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, OverflowError, KeyError, UnicodeDecodeError) as error:
        raise FileError(f"{file}: not a whole GGUF file: {error}") from error
    return {tensor.name: _dequantized(gguf, file, tensor, dtype) for tensor in reader.tensors}


def _dequantized(gguf: Any, file: Path, tensor: Any, dtype: torch.dtype) -> Tensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))  # GGUF counts the other way round
    kind = tensor.tensor_type
    if kind.name in ("I8", "I16", "I32", "I64"):
        return torch.from_numpy(tensor.data.copy()).reshape(shape)
    try:
        numbers = gguf.quants.dequantize(tensor.data, kind)
    except NotImplementedError as error:
        raise FileError(f"{file}: {tensor.name} is {kind.name}, which cannot be dequantized") from error
    return torch.from_numpy(numbers.copy()).to(dtype).reshape(shape)
