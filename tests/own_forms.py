"""Layers whose CPU tensors are on the emulated GPU (fixture ``on_emulator``), and what they own there."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from emulated import Emulator, randn, sparse_weight
from reference import assert_matches, linear_reference
from sparse24 import SparseLinear
from sparse24.nn import device_forms, on_device
from sparse24.nn.compressed import CompressedModule
from sparse24.ops.cuda import cusparselt

M, K, MANY, FEW = 288, 128, 32, 4


def new_layer(seed: int = 0, dtype: torch.dtype = torch.float16, bias: bool = True) -> SparseLinear:
    return SparseLinear.from_weight(
        sparse_weight(M, K, dtype, seed), randn(M, dtype=dtype, seed=5) if bias else None
    )


def run(layer: CompressedModule, x: Tensor) -> Tensor:
    """The layer's call as on a GPU: by a launch that is prepared, else the long way."""
    output = repeated(layer, x)
    if output is None:
        output = layer._on_device(x)
    assert output is not None
    return output


def repeated(layer: CompressedModule, x: Tensor) -> Tensor | None:
    """The layer's output by a launch that was prepared for such a call; ``None``: it goes the long way."""
    launches = layer.__dict__.get("_launches")
    if launches is None:
        return None
    output = launches.call(x, layer.__dict__)
    return None if output is NotImplemented else output


def forms(layer: CompressedModule) -> device_forms.DeviceForms:
    found = layer.__dict__["_forms"]
    assert isinstance(found, device_forms.DeviceForms)
    return found


def held_bytes(layer: CompressedModule) -> device_forms.Bytes:
    return forms(layer).bytes(layer)


def is_away(layer: CompressedModule) -> bool:
    return on_device.Glance(layer).is_away


def check(layer: SparseLinear, weight: Tensor, tokens: int = MANY, bias: Tensor | None = None) -> None:
    """The layer computes with ``weight``, and its own bias unless another is given."""
    x = randn(tokens, K, dtype=weight.dtype)
    own = layer.__dict__["_parameters"]["bias"]
    assert_matches(run(layer, x), linear_reference(x, weight, own if bias is None else bias))


def wait_for_handles(emulator: Emulator) -> None:
    """A thread's handles go when the thread does, which is a little after join returns."""
    cusparselt.forget()
    deadline = time.monotonic() + 10
    while emulator.live_objects() and time.monotonic() < deadline:
        time.sleep(0.01)
