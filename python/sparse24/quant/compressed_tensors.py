"""Int8 weights of the compressed-tensors format as checkpoints of our layers.

What is public of it: safetensors with ``NAME.weight`` int8 [out, in], ``NAME.weight_scale`` [out, 1], [out]
or [1], perhaps ``NAME.weight_zero_point``, ``NAME.input_scale`` [1] (static activations), and a
``config.json`` whose ``quantization_config`` has ``quant_method`` "compressed-tensors" and ``format``
"int-quantized". 2:4 weights may be packed as ``NAME.compressed``, ``NAME.bitmask`` and ``NAME.shape``
("sparse-24-bitmask").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import masks

_SUFFIXES = ("weight_zero_point", "input_zero_point")


def from_compressed_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """int8 weights as compressed-tensors writes them as a state_dict for a network that ``to_sparse`` made.

    2:4 weights become ``values``, ``indices``, ``weight_scale`` and, for static activations,
    ``input_scale``; int8 weights that are not 2:4 are dequantized to float32 ``weight``. Everything else is
    taken over as it is. Dynamic activations are said in config.json alone: add ``NAME.input_scale`` 0 for
    the layers that have them.

    Args:
        state_dict: tensors by name.

    Raises:
        ValueError: zero points that are not zero, weights in blocks or groups (scales of another shape), a
            packed weight whose mask and shape disagree; the name is told.
    """
    found = _unpacked(dict(state_dict))
    for name in [key.removesuffix("weight") for key in found if key.endswith("weight")]:
        weight = found[name + "weight"]
        if not isinstance(weight, Tensor) or weight.dtype != torch.int8:
            continue
        _refuse_zero_points(name, found)
        scale = found.pop(name + "weight_scale", None)
        if scale is None:
            raise ValueError(f"{name}weight is int8, but there is no {name}weight_scale")
        rows = len(weight)
        if scale.numel() not in (1, rows):
            raise ValueError(
                f"{name}weight_scale is {tuple(scale.shape)}: a scale for each of the {rows} output "
                "channels, or one for all, can be used; groups and blocks cannot"
            )
        scale = scale.float().reshape(-1).expand(rows).contiguous()
        static = found.pop(name + "input_scale", None)
        del found[name + "weight"]
        if weight.dim() == 2 and masks.is_sparse24(weight):
            values, indices = masks.compress(weight)
            found |= {name + "values": values, name + "indices": indices, name + "weight_scale": scale}
            if static is not None:
                found[name + "input_scale"] = static.float().reshape(())
        else:
            found[name + "weight"] = weight.float() * scale.view(-1, *[1] * (weight.dim() - 1))
    return found


def _refuse_zero_points(name: str, found: dict[str, Any]) -> None:
    for suffix in _SUFFIXES:
        point = found.pop(name + suffix, None)
        if point is not None and bool((point != 0).any()):
            raise ValueError(
                f"{name}{suffix} is not zero: with a zero point pruned weights would be other numbers "
                "than zero; only symmetric scales can be used"
            )


def _unpacked(found: dict[str, Any]) -> dict[str, Any]:
    """Weights of "sparse-24-bitmask" as dense ones: kept values by rows, a bit a weight, low bits first."""
    for name in [key.removesuffix("compressed") for key in found if key.endswith(".compressed")]:
        kept, bits, shape = (found.pop(name + part, None) for part in ("compressed", "bitmask", "shape"))
        if bits is None or shape is None:
            raise ValueError(f"{name}compressed has no {name}bitmask or no {name}shape beside it")
        rows, columns = map(int, shape)
        spread = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)
        mask = spread.reshape(rows, -1)[:, :columns].bool()
        if int(mask.sum()) != kept.numel():
            raise ValueError(
                f"{name}bitmask keeps {int(mask.sum())} weights of {rows}x{columns}, and {name}compressed "
                f"holds {kept.numel()}"
            )
        weight = torch.zeros(rows, columns, dtype=kept.dtype)
        weight[mask] = kept.flatten()
        found[name + "weight"] = weight
    return found
