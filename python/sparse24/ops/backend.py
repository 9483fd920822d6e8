"""What runs the products on a device, or the reason why nothing does."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .cuda import cusparselt
from .registry import Error, cpu_isa


def backend(device: torch.device | str = "cpu") -> str:
    """What runs the products of the sparse layers on ``device``.

    On a CPU "amx", "avx512_vnni", "avx512", "avx2", "neon" or "scalar", on a GPU "cusparselt 0.8.1" or
    another version.

    Raises:
        Error: ``device`` cannot run sparse products; its tensors take the dense path through torch. The text
            says why: no driver, an old driver, no library, its version, a GPU before sm_80.
        TypeError: neither a device nor a string.
        ValueError: a string that names no device, or an unusable SPARSE24_CPU_ISA.
    """
    if not isinstance(device, torch.device | str):
        raise TypeError(f'device must be a torch.device or a string like "cpu", not {type(device).__name__}')
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is not a device: {str(error).splitlines()[0]}") from None
    if wanted.type == "cpu":
        return cpu_isa()
    problem = why_no_cuda(wanted) if wanted.type == "cuda" else f"{wanted.type} has no sparse kernels"
    if problem:
        raise Error(f'backend("{device}"): {problem}; its tensors take the dense path through torch')
    return f"cusparselt {cusparselt.version_text(cusparselt.library().version)}"


def why_no_cuda(device: torch.device) -> str:
    """Why sparse products cannot run on a CUDA device; empty: they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build"
    if not torch.cuda.is_available():
        return _why_torch_sees_none()
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        return f"there is no device {index}: torch sees {torch.cuda.device_count()}"
    with torch.cuda.device(index):
        return cusparselt.why_unavailable(index)


def _why_torch_sees_none() -> str:
    if not Path("/proc/driver/nvidia/version").exists():
        return f"no NVIDIA driver is loaded: install one for CUDA {torch.version.cuda}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        f"the driver is loaded, but torch (CUDA {torch.version.cuda}) finds no device it can use: the driver "
        f"may be too old for it, or the devices hidden (CUDA_VISIBLE_DEVICES={visible}); see nvidia-smi"
    )
