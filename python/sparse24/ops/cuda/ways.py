"""The way of a call with the weight that it has: ``route``, and what the weight itself allows."""

from __future__ import annotations

import torch

from ..precision import cuda_allows_tf32
from . import route
from .cusparselt import GPU
from .weights import Weight

#: Why a layer runs dense from whose weight nothing may be derived.
HELD = (
    "values or indices want gradients, or are held outside of the layer (they, what shares their memory, or "
    "a weak reference, as torch.compile has): it computes from them as they are until they are let go of"
)


def _why_not_tf32(weight: Weight) -> str:
    """Why a float32 weight cannot run on sparse tensor cores, which compute it as TF32 and 1:2."""
    if not cuda_allows_tf32():
        return (
            'float32 runs as TF32, which torch.backends.cuda.matmul.fp32_precision = "tf32" or '
            'torch.set_float32_matmul_precision("high") has to allow; float16 and bfloat16 need no leave'
        )
    derived = weight.derived()
    if derived is not None and not derived.is_1_of_2(weight.source):
        return (
            "float32 needs one kept weight of every two (1:2) on sparse tensor cores; use float16 or bfloat16"
        )
    return ""


def why_not_legal(call: route.Call, weight: Weight, on: GPU) -> str:
    """Why the library cannot run a call with this weight at all, whatever it gains; empty: it can."""
    reason = route.why_illegal(call, on)
    return reason or (_why_not_tf32(weight) if call.dtype is torch.float32 else "")


def route_of(call: route.Call, weight: Weight, on: GPU) -> route.Route:
    """The route of a call with this weight: a sparse one only where something may be derived from it."""
    chosen = route.choose(call, on, weight.keeps_dense)
    if not chosen.sparse:
        return chosen
    reason = _why_not_tf32(weight) if call.dtype is torch.float32 else ""
    if not reason and weight.derived() is None:
        reason = HELD
    return chosen._replace(sparse=False, reason=reason) if reason else chosen
