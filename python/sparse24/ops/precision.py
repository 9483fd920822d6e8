"""How exactly float32 is multiplied where tiles of bfloat16 do it (AMX), by what the user told torch.

``torch.backends.mkldnn.matmul.fp32_precision`` and ``.conv.fp32_precision``, which inherit from
``torch.backends.mkldnn.fp32_precision`` and ``torch.backends.fp32_precision``; where a matrix product has
none, ``torch.set_float32_matmul_precision``. "ieee" and "highest" are float32 itself, "tf32" and "high" about
16 bits, "bf16" and "medium" bfloat16's 8. Instruction sets without tiles multiply float32, whatever is asked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .registry import cpu_isa

#: Codes in the order of the C++ enum.
_BACKEND = {"ieee": 0, "tf32": 1, "bf16": 2}
_MATMUL = {"highest": 0, "high": 1, "medium": 2}


def precision(kind: str) -> int:
    """0, 1 or 2 (highest, high, medium) for ``kind``, "matmul" or "conv". Never raises.

    torch refuses to say what ``set_float32_matmul_precision`` holds once the settings of the backends were
    used beside it: the highest counts then.
    """
    try:
        own = torch._C._get_fp32_precision_getter("mkldnn", kind)
    except (AttributeError, RuntimeError, TypeError):  # torch before 2.9 has no such settings
        own = "none"
    if own in _BACKEND:
        return _BACKEND[own]
    if kind != "matmul":
        return 0
    try:
        return _MATMUL.get(torch.get_float32_matmul_precision(), 0)
    except RuntimeError:
        return 0


def cuda_allows_tf32() -> bool:
    """Whether products of float32 may be TF32's on a GPU, convolutions among them: those are matrix products
    here.

    ``torch.backends.cuda.matmul.fp32_precision``, which inherits from ``torch.backends.fp32_precision``;
    where that says nothing, or torch is older than 2.9, ``torch.set_float32_matmul_precision``. Never raises.
    """
    try:
        own = torch._C._get_fp32_precision_getter("cuda", "matmul")
    except (AttributeError, RuntimeError, TypeError):
        own = "none"
    if own in _BACKEND:
        return own != "ieee"
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # torch 2.9 to 2.11: both settings were used
        return False


def reader() -> Callable[[str], int] | None:
    """:func:`precision` where a product has to ask; ``None``: this machine's kernels multiply float32."""
    return precision if cpu_isa() == "amx" else None


def for_product(kind: str, dtype: torch.dtype) -> int:
    """The precision of a product of ``dtype``: asked only where it matters."""
    return precision(kind) if dtype is torch.float32 and cpu_isa() == "amx" else 0
