"""Sparse or dense without a measurement: rules by kernels, dtype and shape of a layer.

The rows follow from ``sparse24 bench --only rules`` on machines of the class or, where ``source`` says
derived, from reference figures and arithmetic. They cannot know the tokens or pixels of a call: a row asks
for shapes that gained over all that were tried. ``example_inputs`` measures instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ..nn.convert import Verdict
from ..ops import machine
from ..ops.registry import cpu_isa, names_of

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ALL = (F32, F16, BF16)
NEVER = 1 << 62
#: Input channels of a group of a convolution below which one stays dense: depthwise ones, and those that read
#: an image. Measured on Zen 4: 0.1 to 0.2x at one channel, 0.4 to 1.0x at three.
FEW_CHANNELS = 8
#: Weights below which a layer stays dense: a call costs as much as its product, and there is nothing to save.
TINY = 64 * 64


class Rule(NamedTuple):
    """From which sizes on layers of a kind gain."""

    kernels: str  #: how the instruction set begins: "avx512" is "avx512_vnni", too
    kind: str  #: "linear" or "conv2d"
    dtypes: tuple[torch.dtype, ...]
    outputs: int  #: features or channels of the output (of a group), at least
    inputs: int  #: columns of the weight as a matrix, at least; of a convolution taps times channels a group
    source: str  #: what was seen, and where


_TILES = "derived from a prototype on Sapphire Rapids"

#: The first row that fits a layer's kernels, kind and dtype decides.
RULES = (
    Rule("amx", "linear", ALL, 256, 256, f"{_TILES}: 1.1 to 3x"),
    Rule("amx", "conv2d", (F32, F16), 64, 256, f"{_TILES}: 1.3x and more"),
    Rule("amx", "conv2d", (BF16,), 256, 256, f"{_TILES}: 1.1x and more from 256 channels on, .6x at 64"),
    # torch's bfloat16 runs on the same instructions there.
    Rule("avx512_vnni", "linear", (BF16,), 256, 256, "Zen 4: 1.0 to 3.4x, smaller ones with many tokens .8x"),
    Rule("avx512_vnni", "conv2d", (BF16,), NEVER, NEVER, "Zen 4: .6 to 1.2x"),
    Rule("avx512", "linear", (BF16,), NEVER, NEVER, "not measured, and torch has a kernel"),
    Rule("avx512", "conv2d", (BF16,), NEVER, NEVER, "not measured, and torch has a kernel"),
    Rule("avx512", "linear", (F32, F16), 1, 1, "Zen 4: 1.2 to 3x, in float16 up to 8x"),
    Rule(
        "avx512", "conv2d", (F32, F16), 16, 64, "Zen 4: 1.2 to 3x; in float16 more, for torch has no kernel"
    ),
    Rule("avx2", "linear", (F32,), 64, 64, "Zen 3: 1.2 to 2.7x"),
    Rule("avx2", "conv2d", (F32,), 64, 64, "Zen 3: 1.0 to 1.9x"),
    Rule("avx2", "linear", (F16, BF16), 64, 64, "derived: torch has no kernel for 16 bits there"),
    Rule("avx2", "conv2d", (F16, BF16), 64, 64, "derived: torch has no kernel for 16 bits there"),
    Rule("neon", "linear", (F32,), 64, 64, "derived: 1.5x, bound by loads"),
    Rule("neon", "conv2d", (F32,), 64, 64, "derived: 1.5x, bound by loads"),
    Rule("", "linear", ALL, NEVER, NEVER, "derived: no vectors of its own"),
    Rule("", "conv2d", ALL, NEVER, NEVER, "derived: no vectors of its own"),
)


def rule_for(kernels: str, kind: str, dtype: torch.dtype) -> Rule:
    """The row that decides. The last two fit everything."""
    return next(r for r in RULES if kernels.startswith(r.kernels) and r.kind == kind and dtype in r.dtypes)


def has_amx() -> bool:
    """Whether the CPU has tiles for bfloat16, which torch would use."""
    return bool(machine.machine()["features"]["amx_bf16"])


def verdict(module: nn.Module, dtype: torch.dtype | None = None, kernels: str | None = None) -> Verdict:
    """What the rules say of a dense layer on a CPU that can be converted.

    Args:
        dtype: what it will be cast to, or None.
        kernels: the instruction set; default: the one in use.
    """
    kernels = kernels or cpu_isa()
    if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels // module.groups < FEW_CHANNELS:
        channels = module.in_channels // module.groups
        return _dense(f"{channels} input channel{'s' * (channels > 1)} a group, below {FEW_CHANNELS}")
    if kernels != "amx" and has_amx() and (dtype or next(module.parameters()).dtype) is BF16:
        return _dense(f"torch multiplies bfloat16 on AMX here, and {kernels} kernels do not")
    for what, kind, outputs, inputs, own in _products(module):
        rule = rule_for(kernels, kind, dtype or own)
        weights = outputs * inputs * getattr(module, "groups", 1)
        if weights < TINY:
            return _dense(f"{what}{outputs}x{inputs} is tiny: {weights} weights, below {TINY}")
        if outputs < rule.outputs or inputs < rule.inputs:
            sizes = f"from {rule.outputs}x{rule.inputs} on" if rule.outputs != NEVER else "at no size"
            gains = f"{names_of([dtype or own])} {kind} gains {sizes} with {kernels} kernels"
            return _dense(f"{what}{outputs}x{inputs}: {gains} ({rule.source})")
    return Verdict(True, "by rule")


def _dense(why: str) -> Verdict:
    return Verdict(False, f"by rule, not measured: {why}: stays dense; example_inputs would measure it")


def _products(module: Any) -> Iterator[tuple[str, str, int, int, torch.dtype]]:
    """What, kind, outputs, inputs and dtype of every product of a layer."""
    if isinstance(module, nn.MultiheadAttention):
        size, dtype = module.embed_dim, module.out_proj.weight.dtype
        for name, inputs in (("q", size), ("k", module.kdim), ("v", module.vdim), ("out", size)):
            yield f"{name}_proj ", "linear", size, inputs, dtype
        return
    weight = module.weight
    if isinstance(module, nn.Conv2d | nn.Conv3d):  # the product of a Conv3d is one of planes
        yield "", "conv2d", weight.shape[0] // module.groups, weight[0].numel(), weight.dtype
        return
    rows, columns = weight.shape if isinstance(module, nn.Linear) else reversed(weight.shape)
    yield "", "linear", rows, columns, weight.dtype
