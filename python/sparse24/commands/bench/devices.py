"""Where benchmarks run: on the CPU, or on a GPU through cuSPARSELt."""

from __future__ import annotations

from collections.abc import Collection

import torch

from ...ops import Error
from ...ops.cuda import cusparselt
from .machine import MachineClass

CPU, CUDA = "cpu", "cuda"
#: Benchmarks that have a form for a GPU, in the order that they run in.
ON_GPU = ("linear", "decode", "conv", "networks", "masks", "memory")


def chosen(device: str | None) -> str:
    """The device that is asked for; by default a GPU where cuSPARSELt runs on one.

    Raises:
        ValueError: another device.
        Error: "cuda", where nothing runs on it; the reason is named.
    """
    if device not in (None, CPU, CUDA):
        raise ValueError(f"device must be cpu or cuda, not {device!r}")
    if device == CUDA:
        problem = cusparselt.why_unavailable(0)
        if problem:
            raise Error(problem)
        return CUDA
    is_there = device is None and torch.cuda.is_available() and not cusparselt.why_unavailable(0)
    return CUDA if is_there else CPU


def on_gpu(wanted: Collection[str], named: Collection[str]) -> list[str]:
    """Those of the wanted benchmarks that have a form for a GPU; without any, all of them.

    Args:
        named: those that were asked for by their own name, not by that of a group.

    Raises:
        ValueError: one of those has none.
    """
    missing = [name for name in named if name not in ON_GPU]
    if missing:
        raise ValueError(
            f"the benchmark {missing[0]!r} has no form for a GPU; those that have one are "
            f"{', '.join(ON_GPU)}; or ask for --device cpu"
        )
    return [name for name in ON_GPU if name in wanted or not wanted]


def machine_class(device: str) -> MachineClass:
    """What results are sorted by: the class of the CPU, or the name of the GPU."""
    if device == CPU:
        return MachineClass.here()
    if not torch.cuda.is_available():
        return MachineClass("emulator, which is no GPU")
    return MachineClass(torch.cuda.get_device_name(0))
