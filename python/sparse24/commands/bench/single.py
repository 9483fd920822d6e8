"""One layer in one dtype against its rivals: what tables of narrow dtypes, rules and goals are made of."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ... import SparseConv2d, SparseLinear
from ...timing import interleaved_times
from . import rivals
from .table import pruned

COLD_BYTES = 96e6  # weights that take turns: more than a last cache of the classes here holds


class Kind(NamedTuple):
    """How a product is computed on both sides."""

    name: str  #: "bf16"
    dtype: torch.dtype  #: of inputs and outputs, and of the rivals' weights
    activations: str | None = None  #: of int8
    is_int8: bool = False


KINDS = {
    "fp32": Kind("fp32", torch.float32),
    "bf16": Kind("bf16", torch.bfloat16),
    "fp16": Kind("fp16", torch.float16),
    "int8 weights": Kind("int8 weights", torch.bfloat16, None, True),
    "int8": Kind("int8", torch.float32, "dynamic", True),
}


class Times(NamedTuple):
    """Median seconds of one call, in turns."""

    torch: float
    packed: float  #: dense, oneDNN with prepacked weights; infinite where it has no such kernel
    sparse: float
    weight_bytes: int  #: of the compressed weight: values, indices and scales

    @property
    def best(self) -> float:
        """The faster dense one."""
        return min(self.torch, self.packed)


def linear(kind: Kind, shape: tuple[int, int], tokens: int, seconds: float, cold: bool = False) -> Times:
    """A linear layer (out, in) with bias on ``tokens`` rows; ``cold``: on weights that no cache holds."""
    out, inputs = shape
    size = out * inputs * kind.dtype.itemsize
    copies = int(COLD_BYTES / size) + 2 if cold else 1
    dense = [_linear(kind, out, inputs) for _ in range(copies)]
    sparse = [_compressed(SparseLinear.from_dense(layer), kind) for layer in dense]
    x = torch.randn(tokens, inputs).to(kind.dtype)
    return _times(kind, dense, sparse, x, seconds)


def conv2d(kind: Kind, layer: nn.Conv2d, x: Tensor, seconds: float) -> Times:
    """A convolution (its weights are pruned in place) on ``x``."""
    torch.ops.sparse24.prune_(layer.weight.data, 2, 4, 1)
    dense = layer.to(kind.dtype).eval()
    sparse = _compressed(SparseConv2d.from_dense(dense), kind)
    return _times(kind, [dense], [sparse], x.to(kind.dtype), seconds)


def _linear(kind: Kind, out: int, inputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, out, device="meta")
    layer.weight = nn.Parameter(pruned(out, inputs).to(kind.dtype), requires_grad=False)
    layer.bias = nn.Parameter(torch.randn(out).to(kind.dtype), requires_grad=False)
    return layer.eval()


def _compressed(layer: SparseLinear | SparseConv2d, kind: Kind) -> nn.Module:
    return layer.to_int8(kind.activations) if kind.is_int8 else layer


def _times(
    kind: Kind, dense: Sequence[nn.Module], sparse: Sequence[nn.Module], x: Tensor, seconds: float
) -> Times:
    turns = [_cycle(_as_torch_has_it(kind, dense), x), _cycle(sparse, x)]
    packed = _packed(dense, x)
    if packed is not None:
        turns.append(_cycle(packed, x))
    with torch.no_grad():
        medians = [statistics.median(each) for each in interleaved_times(turns, seconds, 5)]
    held = sum(t.nbytes for n, t in sparse[0].state_dict().items() if n != "bias")
    return Times(medians[0], medians[2] if packed is not None else float("inf"), medians[1], held)


def _as_torch_has_it(kind: Kind, dense: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """torch's own layers: of int8 activations its dynamically quantized ones, where it has them."""
    if kind.name != "int8" or isinstance(dense[0], nn.Conv2d):
        return dense
    return list(rivals.int8_dense(nn.Sequential(*dense)).children())


def _packed(dense: Sequence[nn.Module], x: Tensor) -> list[nn.Module] | None:
    try:
        with torch.no_grad():
            packed = [rivals.packed_layer(layer, tuple(x.shape)) for layer in dense]
            packed[0](x)
    except RuntimeError:  # oneDNN does not take the dtype here
        return None
    return packed


def _cycle(layers: Sequence[nn.Module], x: Tensor) -> Callable[[], object]:
    turn = 0

    def call() -> object:
        nonlocal turn
        turn += 1
        return layers[turn % len(layers)](x)

    return call
