"""The best dense that can be had: oneDNN with weights packed beforehand, and OpenVINO where it is installed.

torch packs a weight anew in every call; ``torch.compile`` with freezing packs once. The same operators, put
in by hand, are the fairest rival of a converted network in eager mode.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...choose.example import Arguments, record

Call = Callable[[], object]


class PackedLinear(nn.Module):
    """``nn.Linear`` by oneDNN, its weight in oneDNN's own layout for ``tokens`` rows of input."""

    def __init__(self, layer: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), tokens)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return output


class PackedConv2d(nn.Module):
    """``nn.Conv2d`` (padding with zeros) by oneDNN, its weight packed for inputs of ``shape``."""

    def __init__(self, layer: nn.Conv2d, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        weight = layer.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, list(shape))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *self.geometry, "none", [], ""
        )
        return output


def prepacked(model: nn.Module, inputs: Arguments) -> nn.Module:
    """A copy of ``model`` whose linear layers and convolutions run as above, for calls like ``inputs``.

    Layers that oneDNN does not take in their dtype here, or that are called with several shapes, stay.
    """
    twin = copy.copy(model)
    twin._modules = {name: None if m is None else _shallow(m) for name, m in model._modules.items()}
    layers = {name: m for name, m in twin.named_modules() if type(m) in (nn.Linear, nn.Conv2d) and name}
    seen = record(twin, layers, [inputs])
    for name, layer in layers.items():
        if len(seen[name]) != 1:
            continue
        (call,) = seen[name]
        with contextlib.suppress(RuntimeError):  # not in this dtype, or not on this machine
            packed = packed_layer(layer, call.shape)
            x, _ = call.arguments(torch.Generator())
            with torch.no_grad():
                packed(*x)
            parent, _, child = name.rpartition(".")
            twin.get_submodule(parent)._modules[child] = packed
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    twin._modules = {name: None if m is None else _shallow(m) for name, m in module._modules.items()}
    return twin


def packed_layer(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A linear layer or convolution, packed for inputs of ``shape``."""
    if isinstance(layer, nn.Linear):
        return PackedLinear(layer, int(torch.Size(shape[:-1]).numel()))
    assert isinstance(layer, nn.Conv2d)
    return PackedConv2d(layer, shape)


def has_openvino() -> bool:
    """Whether OpenVINO can be asked for; it is no dependency: ``pip install openvino``."""
    return importlib.util.find_spec("openvino") is not None


def openvino_call(model: nn.Module, inputs: tuple[Tensor, ...], threads: int, dtype: torch.dtype) -> Call:
    """``model`` on ``inputs`` by OpenVINO, in the precision of ``dtype`` (float32 or bfloat16).

    Raises:
        RuntimeError: it cannot convert or run the network.
    """
    openvino: Any = importlib.import_module("openvino")
    wide = copy.deepcopy(model).float()
    example = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces, which is to go
        converted = openvino.convert_model(wide, example_input=example)
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(converted, "CPU", options)
    request = compiled.create_infer_request()
    arrays = [x.numpy() for x in example]
    return lambda: request.infer(arrays)


def frozen(model: nn.Module) -> Callable[..., Any]:
    """``torch.compile`` with freezing: weights become constants of the program, packed once."""
    config: Any = importlib.import_module("torch._inductor.config")
    compiled = torch.compile(_shallow(model), dynamic=False)

    def call(*inputs: Tensor) -> Any:
        with config.patch(freezing=True), torch.no_grad():
            return compiled(*inputs)

    return call


def int8_dense(model: nn.Module) -> nn.Module:
    """torch's own int8: linear layers with weights and tokens quantized (dynamic); others stay."""
    quantization: Any = importlib.import_module("torch.ao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao is to follow it, and quantized tensors are to go
        twin: nn.Module = quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    return twin
