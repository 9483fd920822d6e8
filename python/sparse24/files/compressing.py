"""Pruned weights as what compressed layers hold, by the names of a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..nn.compressed import DTYPES
from ..nn.forms import Conv2dForm, Form, LinearForm, compress_weight
from .choice import Shown

#: What an attention of torch.nn packs, and the layers that a compressed one has instead.
_PACKED, _PARTS = "in_proj_weight", ("q_proj", "k_proj", "v_proj")


def form_of(shape: Sequence[int]) -> Form:
    """How a weight [out, in] or [out, in, R, S] lies in the matrix that is compressed."""
    if len(shape) == 2:
        return LinearForm((shape[0], shape[1]))
    return Conv2dForm((shape[0], shape[1], shape[2], shape[3]))


def _is_packed(name: str, shape: Sequence[int]) -> bool:
    return name.rpartition(".")[2] == _PACKED and len(shape) == 2 and shape[0] == 3 * shape[1]


def to_compress(tensors: Mapping[str, Shown], chosen: Iterable[str]) -> set[str]:
    """Those of the ``chosen`` weights that sparse layers can hold, and the packed biases beside them.

    Weights of another dtype, or called something else than ``weight``, stay dense in the file; so does the
    ``out_proj`` of an attention whose other projections do, for it is converted whole.
    """
    found = {
        name
        for name in chosen
        if tensors[name].dtype in DTYPES
        and (name.rpartition(".")[2] == "weight" or _is_packed(name, tensors[name].shape))
    }
    for name in tensors:
        prefix, packed, attribute = name.rpartition("in_proj_")
        if not packed:
            continue
        if attribute == "weight" and not {name, f"{prefix}out_proj.weight"} <= found:
            found -= {name, f"{prefix}out_proj.weight"}
        elif attribute == "weight" and f"{prefix}in_proj_bias" in tensors:
            found.add(f"{prefix}in_proj_bias")
    return found


def compressed_shapes(name: str, shown: Shown) -> dict[str, Shown]:
    """The tensors that stand for one of :func:`to_compress`, in their order in the file."""
    prefix, packed, attribute = name.rpartition("in_proj_")
    if packed and attribute == "bias":
        return {f"{prefix}{part}.bias": Shown((shown.shape[0] // 3,), shown.dtype) for part in _PARTS}
    if _is_packed(name, shown.shape):
        third = Shown((shown.shape[0] // 3, shown.shape[1]), shown.dtype)
        parts = [compressed_shapes(f"{prefix}{part}.weight", third) for part in _PARTS]
        return {each: found for part in parts for each, found in part.items()}
    padded = -(-form_of(shown.shape).columns // 8) * 8
    layer = name.removesuffix("weight")
    return {
        f"{layer}values": Shown((shown.shape[0], padded // 2), shown.dtype),
        f"{layer}indices": Shown((shown.shape[0], padded // 8), torch.uint8),
    }


def compressed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The numbers of what :func:`compressed_shapes` names; ``tensor`` is 2:4, or a packed bias."""
    prefix, packed, attribute = name.rpartition("in_proj_")
    if packed and attribute == "bias":
        parts = tensor.chunk(3)
        return {f"{prefix}{part}.bias": each.clone() for part, each in zip(_PARTS, parts, strict=True)}
    if _is_packed(name, tensor.shape):
        found: dict[str, Tensor] = {}
        for part, each in zip(_PARTS, tensor.chunk(3), strict=True):
            found |= compressed(f"{prefix}{part}.weight", each)
        return found
    layer = name.removesuffix("weight")
    values, indices = compress_weight(tensor, form_of(tensor.shape), tensor.dtype)
    return {f"{layer}values": values, f"{layer}indices": indices}


def bytes_of(shown: Shown) -> int:
    """Bytes of a tensor of a dtype that torch has."""
    assert isinstance(shown.dtype, torch.dtype)
    return math.prod(shown.shape) * shown.dtype.itemsize
