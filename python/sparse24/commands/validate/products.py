"""Every dtype, layout and epilogue of the sparse products against float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import masks, ops
from ...ops import scaled
from ...ops.cuda import products as cuda
from ...ops.cuda import route, ways
from ...ops.cuda.launch import Epilogue
from ...ops.cuda.weights import Canonical
from ..doctor import relative_error
from .ground import Ground

#: Largest error over the largest magnitude: the output's rounding; TF32 rounds the operands too.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-3}
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((256, 128, 256), (512, 77, 512), (40, 24, 72), (1024, 2048, 1024))  # m, n, k
SMALL_SHAPES = ((288, 24, 64), (40, 29, 72))
WINDOWS = (  # channels, out_channels, kernel, stride, padding, groups
    (64, 128, 3, 1, 1, 1),
    (64, 64, 1, 1, 0, 1),
    (64, 64, 3, 2, 1, 2),
)


def run(ground: Ground) -> None:
    """Check them all."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 is what is validated
    try:
        for dtype in FLOATS:
            _linear(ground, dtype)
            _layouts(ground, dtype)
            _conv2d(ground, dtype)
        for dtype, outs in scaled.OUT_DTYPES.items():
            for out_dtype in outs:
                _scaled(ground, dtype, out_dtype)
    finally:
        torch.set_float32_matmul_precision(before)


def name_of(*parts: object) -> str:
    return " ".join(str(part).removeprefix("torch.") for part in parts)


def path_of(ground: Ground, call: route.Call, values: Tensor, indices: Tensor) -> str:
    """ "sparse", or why a call runs dense."""
    chosen = ways.route_of(call, Canonical(values, indices), ground.gpu)
    return "sparse" if chosen.sparse else chosen.reason


def sparse_weight(ground: Ground, *shape: int, dtype: torch.dtype) -> Tensor:
    """2:4 along dim 1; 1:2 in float32, as TF32 needs it."""
    weight = ground.tensor(*shape, dtype=torch.float32 if dtype.itemsize > 1 else dtype, seed=1).float()
    masks.prune_(weight, pattern="1:2" if dtype is torch.float32 else "2:4")
    return weight.to(dtype)


def _linear(ground: Ground, dtype: torch.dtype) -> None:
    for m, n, k in SMALL_SHAPES if ground.emulated else SHAPES:
        weight, x = sparse_weight(ground, m, k, dtype=dtype), ground.tensor(n, k, dtype=dtype)
        values, indices = torch.ops.sparse24.compress(weight)
        for activation in ops.ACTIVATIONS:
            for bias in (None, ground.tensor(m, dtype=dtype, seed=2)):
                name = name_of("linear", dtype, (m, n, k), activation, "no bias" if bias is None else "bias")
                with ground.attempt(name):
                    output = ground.operator("linear")(x, values, indices, bias, activation)
                    wide = None if bias is None else bias.double()
                    expected = ops.activate(F.linear(x.double(), weight.double(), wide), activation)
                    error = relative_error(output, expected)
                    call = route.Call(dtype, dtype, m, n, k, activation, bias is not None)
                    path = path_of(ground, call, values, indices)
                    ground.check(name, error <= TOLERANCE[dtype] and path == "sparse", error=error, path=path)
        _bounds(ground, dtype, x, weight)


def _bounds(ground: Ground, dtype: torch.dtype, x: Tensor, weight: Tensor) -> None:
    """ReLU with a threshold and an upper bound, which the operator has no argument for."""
    values, indices = torch.ops.sparse24.compress(weight)
    name = name_of("relu in bounds", dtype, tuple(weight.shape))
    with ground.attempt(name):
        (m, k), bounds = weight.shape, (0.5, 6.0)
        call = route.Call(dtype, dtype, m, x.shape[0], k, "relu", relu_bounds=bounds)
        held = Canonical(values, indices)
        chosen = ways.route_of(call, held, ground.gpu)
        epilogue = Epilogue(activation="relu", relu_bounds=bounds)
        output = cuda.linear_sparse(x, held, epilogue, dtype, chosen, call, ground.stream)
        product = F.linear(x.double(), weight.double())
        sure = (product - bounds[0]).abs() > 0.1  # near the threshold rounding decides
        expected = product.where(product > bounds[0], 0).clamp(max=bounds[1])
        error = relative_error(output.double() * sure, expected * sure)
        ground.check(name, error <= TOLERANCE[dtype], error=error)


def _layouts(ground: Ground, dtype: torch.dtype) -> None:
    m, k = 64, 64
    weight = sparse_weight(ground, m, k, dtype=dtype)
    values, indices = torch.ops.sparse24.compress(weight)
    whole = ground.tensor(4, 24, 96, dtype=dtype)
    views = {
        "row stride": whole[0, :, 16:80],
        "misaligned": whole[0, :, 1:65],
        "slice of tokens": whole[:, 8:, :64],
        "transposed": whole[0].t().contiguous().t()[:, :64],
        "leading dims": whole[..., :64].contiguous().view(2, 2, 24, 64),
    }
    for layout, x in views.items():
        name = name_of("linear", dtype, layout)
        with ground.attempt(name):
            output = ground.operator("linear")(x, values, indices, None, "none")
            error = relative_error(output, F.linear(x.double(), weight.double()))
            ground.check(name, error <= TOLERANCE[dtype], error=error)


@contextlib.contextmanager
def _patches_run_sparse() -> Iterator[None]:
    """Within it, convolutions of every window do, as after tuning."""
    route.PATCHES_GAIN = True
    route.forget()
    try:
        yield
    finally:
        route.PATCHES_GAIN = False
        route.forget()


@_patches_run_sparse()
def _conv2d(ground: Ground, dtype: torch.dtype) -> None:
    size = 7 if ground.emulated else 28
    for channels, out_channels, kernel, stride, padding, groups in WINDOWS:
        weight = sparse_weight(ground, out_channels, channels // groups, kernel, kernel, dtype=dtype)
        values, indices = torch.ops.sparse24.compress(ops.conv_weight_to_matrix(weight))
        bias = ground.tensor(out_channels, dtype=dtype, seed=3)
        for layout in (torch.channels_last, torch.contiguous_format):
            x = ground.tensor(2, channels, size, size, dtype=dtype).contiguous(memory_format=layout)
            name = name_of("conv2d", dtype, (channels, out_channels, kernel, stride, groups), layout)
            with ground.attempt(name):
                window = ((kernel, kernel), (stride, stride), (padding, padding), (1, 1), groups)
                output = ground.operator("conv2d")(x, values, indices, bias, *window, "relu")
                dense = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, 1, groups)
                error = relative_error(output, F.relu(dense))
                same = output.is_contiguous(memory_format=layout)
                ground.check(name, error <= TOLERANCE[dtype] and same, error=error, layout_kept=same)


def _scaled(ground: Ground, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    m, n, k = (64, 37, 70) if ground.emulated else (512, 333, 520)
    x, weight = ground.tensor(n, k, dtype=dtype), sparse_weight(ground, m, k, dtype=dtype)
    values, indices = torch.ops.sparse24.compress(weight)
    scale = ground.tensor(m, dtype=torch.float32, seed=4).abs() / 16
    bias = ground.tensor(m, dtype=torch.float32, seed=5)
    for activation in ops.ACTIVATIONS:
        for scales in (scale, None):
            name = name_of(
                "scaled_linear", dtype, out_dtype, activation, "no scale" if scales is None else "scale"
            )
            with ground.attempt(name):
                operands = (x, values, indices, scales, bias, out_dtype, activation)
                output = ground.operator("scaled_linear")(*operands)
                expected = scaled.scaled_linear_torch(*operands)
                path = path_of(ground, route.Call(dtype, out_dtype, m, n, k), values, indices)
                if out_dtype.is_floating_point:
                    error = relative_error(output, expected)
                    ground.check(name, error <= TOLERANCE[out_dtype], error=error, path=path)
                else:  # a half-way case may fall to either side
                    error = float((output.double() - expected.double()).abs().max())
                    ground.check(name, error <= 1, error=error, path=path)
