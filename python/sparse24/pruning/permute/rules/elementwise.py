"""Operators that compute number by number, or over whole dims whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..flow import Flow
from ..views import Value
from .registry import Call, rule, unknown

_BY_NUMBER = """
    abs acos acosh add addcdiv addcmul alpha_dropout angle asin asinh atan atan2 atanh bitwise_and
    bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max
    clamp_min clip complex copysign cos cosh deg2rad div divide dropout elu eq erf erfc erfinv exp exp2
    expm1 feature_dropout fill fix floor floor_divide fmax fmin fmod frac ge gelu greater greater_equal
    gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot isfinite isinf isnan le leaky_relu lerp
    less less_equal lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not
    logical_or logical_xor logit lt masked_fill maximum minimum mish mul multiply nan_to_num
    native_dropout ne neg negative nextafter not_equal polar positive pow rad2deg reciprocal relu relu6
    remainder round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink
    special_erf special_expit sqrt square sub subtract tan tanh threshold true_divide trunc where xlogy
"""

_ITSELF = """
    _conj _to_copy alias bfloat16 clone conj_physical contiguous cpu detach double float half lift_fresh
    lift_fresh_copy resolve_conj resolve_neg to type_as
"""

_FILLED = """
    zeros ones full empty scalar_tensor zeros_like ones_like full_like empty_like new_zeros new_ones new_full
    new_empty
"""


@rule(*_BY_NUMBER.split())
def by_number(flow: Flow, call: Call) -> list[Value]:
    if any(shape != call.shape for shape in call.shapes):
        return unknown(flow, call)
    return [flow.elementwise(call.tensors, call.shape)] * len(call.shapes)


@rule(*_ITSELF.split())
def itself(flow: Flow, call: Call) -> list[Value]:
    value = call.tensors[0]
    return [value] if value.shape == call.shape else unknown(flow, call)


@rule(*_FILLED.split())
def filled(flow: Flow, call: Call) -> list[Value]:
    """One number everywhere (or none that anyone may read)."""
    every = frozenset(i for i, size in enumerate(call.shape) if size > 1)
    return [Value(call.shape, (), every)]


@rule(
    "arange",
    "linspace",
    "eye",
    "tril_indices",
    "triu_indices",
    "rand",
    "randn",
    "randint",
    "rand_like",
    "randn_like",
)
def made(flow: Flow, call: Call) -> list[Value]:
    """Numbers in an order of their own."""
    return [Value(shape) for shape in call.shapes]


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "_functional_assert_async")
def asserted(flow: Flow, call: Call) -> list[Value]:
    """Nothing is computed."""
    return [Value(shape) for shape in call.shapes]


@rule(
    "sum",
    "mean",
    "amax",
    "amin",
    "prod",
    "var",
    "std",
    "logsumexp",
    "norm",
    "linalg_vector_norm",
    "any",
    "all",
    "var_mean",
    "std_mean",
    "nansum",
    "count_nonzero",
)
def reduced(flow: Flow, call: Call) -> list[Value]:
    value = call.tensors[0]
    dims = _dims(call.get("dim"), value)
    return [flow.reduce(value, dims, shape) for shape in call.shapes]


def _dims(dim: int | Sequence[int] | None, value: Value) -> list[int]:
    if dim is None or dim == []:
        return list(range(len(value.shape)))
    return [dim] if isinstance(dim, int) else list(dim)


@rule("max", "min")
def extreme(flow: Flow, call: Call) -> list[Value]:
    """Of all numbers, of two tensors, or along a dim with the place where it stands."""
    if call.get("other") is not None:
        return [flow.elementwise(call.tensors, call.shape)]
    value, dim = call.tensors[0], call.get("dim")
    if dim is None:
        return [flow.reduce(value, _dims(None, value), shape) for shape in call.shapes]
    return [flow.reduce(flow.ordered(value, [dim]), [dim], shape) for shape in call.shapes]


@rule("argmax", "argmin")
def place_of_extreme(flow: Flow, call: Call) -> list[Value]:
    value = call.tensors[0]
    dims = _dims(call.get("dim"), value)
    return [flow.reduce(flow.ordered(value, dims), dims, call.shape)]


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax")
def softmax(flow: Flow, call: Call) -> list[Value]:
    """Every number is divided by a sum over its dim."""
    return [flow.within(call.tensors[0], [call["dim"]])]


@rule("glu")
def glu(flow: Flow, call: Call) -> list[Value]:
    """The first half of a dim times the sigmoid of the second."""
    value, dim = call.tensors[0], call["dim"] % len(call.shape)
    half = value.shape[dim] // 2
    parts = [flow.take(value, dim, np.arange(half) + i * half) for i in range(2)]
    return [flow.elementwise(parts, call.shape)]


@rule(
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "flip",
    "roll",
    "sort",
    "topk",
    "cummax",
    "cummin",
    "argsort",
    "kthvalue",
    "median",
    "mode",
    "diff",
)
def in_order(flow: Flow, call: Call) -> list[Value]:
    """What depends on the order along some dims, and on nothing along the others."""
    value = call.tensors[0]
    dims = call.get("dim", "dims")
    kept = flow.ordered(value, _dims(dims, value))
    touched = {d % max(len(value.shape), 1) for d in _dims(dims, value)}
    found = []
    for shape in call.shapes:
        if len(shape) == len(value.shape):
            groups = tuple(g for g in kept.groups if not touched & set(g.dims))
            for group in kept.groups:
                if touched & set(group.dims):
                    flow.fix(Value(value.shape, (group,)), f"{flow.op} needs their order")
            found.append(Value(shape, groups))
        else:
            flow.fix(kept, f"{flow.op} needs their order")
            found.append(Value(shape))
    return found


@rule("triu", "tril")
def triangle(flow: Flow, call: Call) -> list[Value]:
    return [flow.ordered(call.tensors[0], [-1, -2])]
