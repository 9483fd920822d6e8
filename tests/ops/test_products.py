"""Products over drawn shapes, strides, layouts and values, against the oracle."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sparse24
from reference import ACTIVATIONS, TOLERANCE, conv2d_reference, linear_reference
from sparse24 import ops

DTYPES = st.sampled_from(list(TOLERANCE))
ACTIVATION = st.sampled_from(list(ACTIVATIONS))
SETTINGS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def values_of(draw: st.DrawFn, *shape: int) -> Tensor:
    """Gaussian values over a drawn range of magnitudes, a drawn share of them zero."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 10.0 ** draw(st.integers(-3, 3))
    kept = torch.rand(shape, generator=generator) >= draw(st.sampled_from([0.0, 0.3, 1.0]))
    return torch.randn(shape, generator=generator) * scale * kept


def strided(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """The same values behind other strides: in a permuted, sliced or stepped buffer."""
    order = draw(st.permutations(range(tensor.dim())))
    steps = [draw(st.integers(1, 2)) for _ in order]
    offset = draw(st.integers(0, 3))
    shape = [tensor.shape[dim] * steps[dim] for dim in order]
    buffer = torch.zeros(offset + torch.Size(shape).numel(), dtype=tensor.dtype)[offset:].view(shape)
    view = buffer.permute([order.index(dim) for dim in range(tensor.dim())])
    view = view[tuple(slice(None, None, step) for step in steps)]
    return view.copy_(tensor)


@st.composite
def linear_cases(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(DTYPES)
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 300))
    lead = draw(st.lists(st.integers(0, 12), max_size=3))
    weight = values_of(draw, rows, columns)
    weight = (weight * sparse24.magnitude_mask(weight)).to(dtype)
    bias = values_of(draw, rows).to(dtype) if draw(st.booleans()) else None
    x = strided(draw, values_of(draw, *lead, columns).to(dtype))
    return {"weight": weight, "bias": bias, "input": x, "activation": draw(ACTIVATION)}


@given(linear_cases())
@SETTINGS
def test_linear(case: dict[str, Any]) -> None:
    x, weight, bias, activation = case["input"], case["weight"], case["bias"], case["activation"]
    output = torch.ops.sparse24.linear(x, *sparse24.compress(weight), bias, activation)
    expected = linear_reference(x, weight, bias, activation)
    assert output.shape == expected.shape
    assert_close(output, expected, scale_of(linear_reference(x.abs(), weight.abs(), absolute(bias))))


@st.composite
def conv_cases(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(DTYPES)
    groups = draw(st.integers(1, 3))
    channels, outputs = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    geometry = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "groups": groups,
    }
    smallest = [
        max(1, geometry["dilation"][i] * (kernel[i] - 1) + 1 - 2 * geometry["padding"][i]) for i in (0, 1)
    ]
    size = [draw(st.integers(least, least + 20)) for least in smallest]
    weight = values_of(draw, outputs * groups, channels, *kernel)
    weight = (weight * sparse24.magnitude_mask(weight)).to(dtype)
    bias = values_of(draw, outputs * groups).to(dtype) if draw(st.booleans()) else None
    x = values_of(draw, draw(st.integers(0, 3)), channels * groups, *size).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else strided(draw, x)
    return {"weight": weight, "bias": bias, "input": x, "activation": draw(ACTIVATION), "geometry": geometry}


@given(conv_cases())
@SETTINGS
def test_conv2d(case: dict[str, Any]) -> None:
    x, weight, bias, activation = case["input"], case["weight"], case["bias"], case["activation"]
    geometry = case["geometry"]
    compressed = sparse24.compress(ops.conv_weight_to_matrix(weight))
    output = torch.ops.sparse24.conv2d(
        x, *compressed, bias, weight.shape[2:], **geometry, activation=activation
    )
    expected = conv2d_reference(x, weight, bias, activation, **geometry)
    assert output.shape == expected.shape
    assert_close(
        output, expected, scale_of(conv2d_reference(x.abs(), weight.abs(), absolute(bias), **geometry))
    )


def absolute(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.abs()


def scale_of(sums_of_magnitudes: Tensor) -> Tensor:
    """What rounding errors are measured against: the sum of magnitudes that an output is made of."""
    return sums_of_magnitudes.clamp_min(1e-30)


def assert_close(output: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Within the dtype's tolerance of every output's own scale; beyond the dtype's range: infinite."""
    limit = torch.finfo(output.dtype).max
    inside = expected.abs() < 0.99 * limit
    assert (output[expected.abs() > 1.01 * limit].isinf()).all()
    tiny = torch.finfo(output.dtype).tiny
    error = (output.double() - expected)[inside].abs()
    assert (error <= TOLERANCE[output.dtype] * scale[inside] + tiny).all()
