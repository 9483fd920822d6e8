"""What the sparse products share: checks of their operands, and activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import check_compressed
from .registry import ACTIVATIONS, DTYPES, names_of, round_up

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_activation(activation: str) -> None:
    torch._check_value(
        activation in ACTIVATIONS, lambda: f"activation {activation!r} is not one of {ACTIVATIONS}"
    )


def check_matrix(values: Tensor, indices: Tensor) -> None:
    """Refuse what is no compressed matrix."""
    torch._check_value(
        values.dim() == 2 and indices.dim() == 2,
        lambda: (
            "values and indices must be [rows, K/2] and [rows, K/8], not "
            f"{tuple(values.shape)} and {tuple(indices.shape)}"
        ),
    )
    check_compressed(values, indices)


def check_bias(values: Tensor, bias: Tensor | None) -> None:
    """Refuse a bias that is not one number a row."""
    torch._check_value(
        bias is None or bias.shape == (values.shape[0],),
        lambda: f"bias must be [{values.shape[0]}], not {tuple(bias.shape) if bias is not None else None}",
    )


def check_columns(input: Tensor, values: Tensor) -> None:
    """Refuse an input of a linear layer that has not the weight's columns."""
    torch._check_value(
        input.dim() >= 1 and round_up(input.shape[-1], 8) == 2 * values.shape[1],
        lambda: (
            f"input [..., K] has shape {tuple(input.shape)}, but the compressed weight holds "
            f"K = {2 * values.shape[1]} columns (K rounded up to 8)"
        ),
    )


def _cast_to(input: Tensor, values: Tensor) -> torch.dtype | None:
    """What float32 values are cast to for an input on a GPU: autocast asks for that; ``None``: nothing."""
    halves = input.dtype in (torch.float16, torch.bfloat16) and values.dtype is torch.float32
    return input.dtype if halves and input.device.type == "cuda" else None


def check_product(
    input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str
) -> None:
    check_activation(activation)
    torch._check_type(
        input.dtype in (values.dtype, _cast_to(input, values))
        and (bias is None or bias.dtype == input.dtype),
        lambda: (
            f"input, values and bias must have one dtype, not {input.dtype}, {values.dtype} and "
            f"{None if bias is None else bias.dtype}; convert with .to(...) or use autocast"
        ),
    )
    torch._check_type(
        values.dtype in COMPUTE_DTYPES,
        lambda: f"products need values of {names_of(COMPUTE_DTYPES)}, not {values.dtype}",
    )
    check_matrix(values, indices)
    check_bias(values, bias)


#: (values, indices, dtype, rows, padded, scale) as the extension takes a weight.
WeightArguments = tuple[int, int, int, int, int, int]
#: (precision, quantize, input_scale, output_scale), which say how; see csrc/sparse24.h.
Mode = tuple[int, int, float, float]


def weight_arguments(
    values: Tensor, indices: Tensor, scale: Tensor | None = None
) -> tuple[WeightArguments, tuple[Tensor, ...]]:
    """A checked weight as the extension takes it, and the tensors that must live while it does."""
    operands = (values.contiguous(), indices.contiguous(), *(() if scale is None else (scale.contiguous(),)))
    addresses = [each.data_ptr() for each in operands]
    of_scale = 0 if scale is None else addresses[2]
    shape = values.shape[0], 2 * values.shape[1]
    return (addresses[0], addresses[1], DTYPES[values.dtype], *shape, of_scale), operands


def activate(output: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return F.relu(output)
    if activation == "gelu":
        return F.gelu(output)
    if activation == "gelu_tanh":
        return F.gelu(output, approximate="tanh")
    return output
