"""What every operator of ``torch.ops.sparse24`` is registered with, and the codes of the C++ enums."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from .. import _C

Error = _C.Error
Error.__doc__ = "A backend that failed or is missing. Mistakes of the caller are ValueError and TypeError."

library = Library("sparse24", "DEF")
TAGS = (torch.Tag.pt2_compliant_tag,)

#: Codes of dtypes, in the order of the C++ enum.
DTYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 5,
}
#: Names of the fused activations, in the order of the C++ enum.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh")
ACTIVATION_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def round_up(value: int, multiple: int) -> int:
    """``value`` rounded up to a multiple of ``multiple``."""
    return -(-value // multiple) * multiple


def names_of(dtypes: Iterable[torch.dtype]) -> str:
    """Dtypes as a reader writes them: "float32, float16"."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def under_autocast(
    operator: Callable[..., Tensor], device: str, on_gpu: bool = False
) -> Callable[..., Tensor]:
    """The product as autocast sees it: in the weight's dtype, out in autocast's.

    On a GPU the product of a float32 weight is in autocast's dtype too: it gets the weight as it is and an
    input of 16 bits, and casts the weight once (``ops.cuda.weights.Cast``). In float32 it would run dense.
    """
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def product(
        input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None = None, *rest: Any
    ) -> Tensor:
        wanted = torch.get_autocast_dtype(device)
        dtype = wanted if on_gpu and values.dtype is torch.float32 else values.dtype
        with torch._C._ExcludeDispatchKeyGuard(keys):
            bias = None if bias is None else bias.to(dtype)
            return operator(input.to(dtype), values, indices, bias, *rest).to(wanted)

    return product


def check_devices(operator: str, **tensors: Tensor | None) -> None:
    """Refuse tensors on several devices before an address is used: RuntimeError, in torch's words."""
    first: Tensor | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first = tensor
        elif tensor.device != first.device:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{first.device} and {tensor.device}! (when checking argument {name} of sparse24::{operator})"
            )


def cpu_isa() -> str:
    """The instruction set of the CPU kernels: "amx", "avx512_vnni", "avx512", "avx2", "neon" or "scalar"."""
    return _C.cpu_isa()
