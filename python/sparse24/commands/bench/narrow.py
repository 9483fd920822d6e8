"""Linear layers in 16 and 8 bits: against torch in the same dtype, and oneDNN with prepacked weights."""

from __future__ import annotations

import itertools

from . import single
from .linear import SHAPES
from .table import Rows, Setting, Table

#: Up to so many tokens weights are cold: that is how decoding meets them.
FEW = 16
TOKENS = (1, FEW, 128, 512, 2048)


def tables(setting: Setting) -> list[Table]:
    """A row a dtype, shape and number of tokens."""
    head = ["dtype", "out, in", "tokens", "torch us", "prepacked us", "2:4 us", "x torch", "x best dense"]
    kinds = [kind for kind in single.KINDS.values() if kind.name != "fp32"]
    shapes, counts = (SHAPES[:1], TOKENS[:2]) if setting.quick else (SHAPES, TOKENS)
    caption = (
        f"Linear in 16 and 8 bits; weights cold up to {FEW} tokens, else warm. int8 weights: inputs, outputs "
        "and the rivals in bf16. int8: tokens become int8 too, the rival is torch's dynamic quantization."
    )
    with Rows(setting, "narrow", caption, head) as rows:
        for kind, shape, tokens in itertools.product(kinds, shapes, counts):
            found = single.linear(kind, shape, tokens, setting.seconds, cold=tokens <= FEW)
            packed = f"{found.packed * 1e6:.0f}" if found.packed < float("inf") else ""
            ratios = [f"{dense / found.sparse:.2f}" for dense in (found.torch, found.best)]
            times = [f"{found.torch * 1e6:.0f}", packed, f"{found.sparse * 1e6:.0f}"]
            rows.add([kind.name, f"{shape[0]}, {shape[1]}", str(tokens), *times, *ratios])
    return [rows.table()]
