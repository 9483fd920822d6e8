"""Linear layers with many tokens, in 16 bits and int8, against torch's in 16 bits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .... import SparseLinear
from ....ops.cuda import published
from ...validate.ground import Ground
from ..table import Rows, Setting, Table, pruned
from . import flushing, medians, note

#: (out, in): BERT-Large, and projections of language models of 7 and 70 billion weights.
SHAPES = ((1024, 1024), (4096, 1024), (1024, 4096), (11008, 4096), (8192, 8192))
TOKENS = (64, 256, 512, 1024, 2048, 4096, 16384)
SMALL, FEW = ((288, 64),), (64,)
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16}


def tables(setting: Setting) -> list[Table]:
    """A row a dtype, shape and count of tokens."""
    ground = Ground(quick=setting.quick)
    counts = TOKENS[::3] if setting.quick else TOKENS
    caption = "Linear layers, warm weights; int8 (a scale a row and a token) against torch in fp16."
    return [measured(setting, ground, "gpu-linear", caption, counts=counts)]


def measured(
    setting: Setting,
    ground: Ground,
    name: str,
    caption: str,
    *,
    counts: tuple[int, ...],
    flush: Tensor | None = None,
) -> Table:
    """The rows for some counts of tokens; on the emulator of one small shape."""
    shapes = SMALL if ground.emulated else SHAPES[:2] if setting.quick else SHAPES
    head = ["dtype", "out, in", "tokens", "torch us", "2:4 us", "x dense", "published times expect"]
    with Rows(setting, name, caption + note(ground), head) as rows, torch.no_grad():
        for kind, shape in itertools.product(KINDS, shapes):
            dense, sparse = layers(ground, kind, shape)
            for tokens in FEW if ground.emulated and counts[0] >= FEW[0] else counts:
                x = ground.tensor(tokens, shape[1], dtype=KINDS[kind])
                calls: list[Callable[[], object]] = [functools.partial(layer, x) for layer in (dense, sparse)]
                with ground.layers_run_here():
                    before, after = medians(ground, calls, setting.seconds, flush)
                expected = (
                    published.gain(ground.gpu.sm, KINDS[kind], tokens, *shape) if kind != "int8" else None
                )
                told = f"{expected:.2f}" if expected is not None else ""
                times = [f"{before * 1e6:.1f}", f"{after * 1e6:.1f}", f"{before / after:.2f}"]
                rows.add([kind, f"{shape[0]}, {shape[1]}", str(tokens), *times, told])
    return rows.table()


def layers(ground: Ground, kind: str, shape: tuple[int, int]) -> tuple[nn.Module, nn.Module]:
    """A dense layer on the device, and its 2:4 self."""
    dense = nn.Linear(shape[1], shape[0])
    dense.weight = nn.Parameter(pruned(*shape), requires_grad=False)
    dense = dense.to(KINDS[kind]).eval()
    sparse = SparseLinear.from_dense(dense)
    if kind == "int8":
        sparse.to_int8("dynamic")
    return dense.to(ground.device), sparse.to(ground.device)


def few(setting: Setting, counts: tuple[int, ...]) -> list[Table]:
    """Few tokens and cold weights."""
    ground = Ground(quick=setting.quick)
    caption = "Linear layers with few tokens; the cache is flushed before every call."
    return [measured(setting, ground, "gpu-decode", caption, counts=counts, flush=flushing(ground))]
