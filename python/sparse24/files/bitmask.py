"""The format "sparse-24-bitmask" of compressed-tensors, to and from ours, bit for bit.

A weight [out, in] called ``NAME.weight`` is stored as ``NAME.compressed`` [out, in / 2], the kept values in
the order of their columns, ``NAME.bitmask`` uint8 [out, in / 8 rounded up], a bit a weight, low bits first,
and ``NAME.shape`` [2].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import SparseLinear
from ..ops import kept_columns
from ..pruning.prunable import unwrap
from .errors import FileError

_PARTS = ("compressed", "bitmask", "shape")


def is_bitmask(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state_dict has weights of that format."""
    return any(f"{name.removesuffix('bitmask')}compressed" in state_dict for name in state_dict)


def to_bitmask(model: nn.Module) -> dict[str, Any]:
    """The state_dict of ``model`` with its compressed linear layers in that format.

    int8 weights keep their ``weight_scale`` and ``input_scale``; other compressed layers become dense.

    Raises:
        TypeError: ``model`` is no module.
        FileError: a layer whose input features are no multiple of 4, which the format cannot hold.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_bitmask needs an nn.Module, not {type(model).__name__}")
    model = unwrap(model)
    state: dict[str, Any] = dict(model.state_dict())
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if not hasattr(module, "_view") or f"{prefix}values" not in state:
            continue
        values, indices = state.pop(f"{prefix}values"), state.pop(f"{prefix}indices")
        if not isinstance(module, SparseLinear):
            owner, _, attribute = name.rpartition(".")
            is_held = owner.endswith("compressed")
            dense = f"{owner.removesuffix('compressed')}{attribute}" if is_held else f"{prefix}weight"
            state[dense] = module._view().dense()
            continue
        if module.in_features % 4:
            raise FileError(
                f"{name}: {module.in_features} input features: sparse-24-bitmask holds multiples of 4"
            )
        state |= _packed(prefix, values, indices, module.in_features)
    return state


def _packed(prefix: str, values: Tensor, indices: Tensor, columns: int) -> dict[str, Tensor]:
    rows = len(values)
    kept = kept_columns(indices)
    mask = torch.zeros(rows, -(-2 * values.shape[1] // 8) * 8, dtype=torch.uint8, device=values.device)
    mask.scatter_(1, kept, 1)
    mask[:, columns:] = 0
    bits = (mask.view(rows, -1, 8) << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(-1)
    return {
        f"{prefix}compressed": values[:, : columns // 2].contiguous(),
        f"{prefix}bitmask": bits[:, : -(-columns // 8)].to(torch.uint8),
        f"{prefix}shape": torch.tensor([rows, columns]),
    }


def from_bitmask(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict of that format as one of ours: ``values`` and ``indices``, the same bits.

    Raises:
        FileError: a part is missing; the mask keeps more or fewer weights than there are, or others than two
            of every four; another dtype of a part. The weight is named.
    """
    found = dict(state_dict)
    for name in [key.removesuffix("compressed") for key in found if key.rpartition(".")[2] == "compressed"]:
        parts = [found.pop(name + part, None) for part in _PARTS]
        values, bits, shape = parts
        if not isinstance(values, Tensor) or not isinstance(bits, Tensor) or not isinstance(shape, Tensor):
            raise FileError(
                f"{name}compressed, {name}bitmask and {name}shape belong together: one is missing"
            )
        found[name + "values"], found[name + "indices"] = _unpacked(name, values, bits, shape)
        scale = found.get(name + "weight_scale")
        if isinstance(scale, Tensor):
            found[name + "weight_scale"] = scale.float().reshape(-1).expand(len(values)).contiguous()
    return found


def _unpacked(name: str, values: Tensor, bits: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    if bits.dtype != torch.uint8 or shape.numel() != 2:
        raise FileError(f"{name}bitmask must be uint8 and {name}shape two numbers, not {bits.dtype}, {shape}")
    rows, columns = map(int, shape)
    if bits.numel() != rows * -(-columns // 8) or values.numel() != rows * columns // 2 or columns % 4:
        raise FileError(
            f"{name}: {values.numel()} values and {bits.numel()} bytes of mask do not make a 2:4 weight "
            f"{rows}x{columns}"
        )
    spread = (bits.reshape(rows, -1, 1) >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    mask = spread.reshape(rows, -1)[:, :columns]
    counts = mask.reshape(-1, 4).sum(1)
    if (wrong := (counts != 2).nonzero()).numel():
        row, group = divmod(int(wrong[0]), columns // 4)
        raise FileError(
            f"{name}bitmask keeps {int(counts[wrong[0]])} of the four weights in row {row}, columns "
            f"{4 * group}-{4 * group + 3}: two are kept of every four"
        )
    slots = mask.reshape(-1, 4).nonzero()[:, 1].reshape(rows, columns // 2)
    padded = -(-columns // 8) * 8
    kept = values.new_zeros((rows, padded // 2))
    kept[:, : columns // 2] = values.reshape(rows, -1)
    places = torch.tensor([0, 1], device=bits.device).repeat(rows, padded // 4)
    places[:, : columns // 2] = slots
    four = places.reshape(rows, -1, 4).to(torch.uint8)
    indices = four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6
    return kept, indices
