"""The CUDA kernels of csrc/cuda against torch doing the same work, bit for bit. They need a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from ...ops import mask
from ...ops.cuda import device_kernels
from ...ops.scaled import finish
from ..doctor import relative_error
from .ground import Ground
from .products import TOLERANCE, name_of

SHAPES = ((1, 4), (3, 20), (64, 64), (257, 1028), (1024, 4096))
IMAGES = ((2, 16, 9, 8), (2, 64, 28, 28), (1, 20, 7, 5))  # N, C, H, W


def run(ground: Ground) -> None:
    """Compare them all."""
    if ground.emulated or not device_kernels.BUILT:
        why = (
            "the emulator runs no kernels" if ground.emulated else "built without nvcc: torch does their work"
        )
        ground.check("kernels", True, skipped=why)
        return
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows, cols in SHAPES:
            with ground.attempt(name_of("masks", dtype, rows, cols)):
                _masks(ground, dtype, rows, cols)
        with ground.attempt(name_of("quantize", dtype)):
            _quantize(ground, dtype)
        for weight_dtype in (dtype, torch.int8):
            with ground.attempt(name_of("few tokens", dtype, weight_dtype)):
                _few_tokens(ground, dtype, weight_dtype)
    for dtype in (torch.int32, torch.float32):
        for out_dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8):
            with ground.attempt(name_of("epilogue", dtype, out_dtype)):
                _epilogue(ground, dtype, out_dtype)
    for dtype in (torch.float32, torch.float16, torch.int8, torch.float8_e4m3fn):
        with ground.attempt(name_of("format", dtype)):
            _format(ground, dtype)
        for image in IMAGES:
            with ground.attempt(name_of("im2col", dtype, image)):
                _im2col(ground, dtype, image)


def _few_tokens(ground: Ground, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """Every count of tokens, whole and ragged sizes: against float64 on the same numbers."""
    for m, k in ((64, 64), (1000, 520), (37, 93), (4096, 4096)):
        weight = ground.tensor(m, k, dtype=torch.float32)
        torch.ops.sparse24.prune_(weight, 2, 4, 1)
        weight = (weight * 16 if dtype is torch.int8 else weight).to(dtype)
        values, indices = torch.ops.sparse24.compress(weight)
        scale = ground.tensor(m, dtype=torch.float32, seed=3).abs() / 16 if dtype is torch.int8 else None
        bias, worst = ground.tensor(m, dtype=x_dtype, seed=4), 0.0
        for n in (1, 2, 5, 8, 11, 16):
            x = ground.tensor(n, k, dtype=x_dtype, seed=n)
            found = device_kernels.few_tokens(x, values, indices, scale, bias, "relu", ground.stream.handle)
            product = x.double() @ weight.double().t()
            product = product if scale is None else product * scale.double()
            worst = max(worst, relative_error(found, (product + bias.double()).relu()))
        name = name_of("few tokens", x_dtype, dtype, m, "x", k)
        limit = 1e-5 if x_dtype is torch.float32 else TOLERANCE[x_dtype]
        ground.check(name, worst <= limit, error=worst)


def _epilogue(ground: Ground, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    """Scales, bias, activation and cast in one pass, against the same in torch."""
    for n, m in ((3, 7), (129, 256)):
        product = (ground.tensor(n, m, dtype=torch.float32) * 100).to(dtype)
        tokens, rows, bias = (
            ground.tensor(size, dtype=torch.float32, seed=seed) for size, seed in ((n, 1), (m, 2), (m, 3))
        )
        found = device_kernels.epilogue(product, tokens, rows, bias, "gelu", out_dtype, ground.stream.handle)
        expected = finish(product.double() * tokens.unsqueeze(1), rows, bias, "gelu", out_dtype)
        error = float((found.double() - expected.double()).abs().max())
        limit = 1.0 if out_dtype is torch.int8 else 2e-2 * max(float(expected.abs().max()), 1.0)
        name = name_of("epilogue", dtype, out_dtype, n, "x", m)
        ground.check(name, error <= limit, error=error)


def _special(ground: Ground, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    weight = ground.tensor(rows, cols, dtype=dtype)
    flat = weight.view(-1)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 0.0, 1.0, 1.0, -1.0, 1e-40])
    count = min(len(flat), len(special))
    flat[:count] = special[:count].to(dtype)
    return weight


def _masks(ground: Ground, dtype: torch.dtype, rows: int, cols: int) -> None:
    weight = _special(ground, rows, cols, dtype)
    expected = mask.nm_mask_torch(weight.cpu(), 2, 4, 1)
    found = torch.ops.sparse24.nm_mask(weight, 2, 4, 1)
    ground.check(name_of("mask24", dtype, rows, cols), torch.equal(found.cpu(), expected))
    pruned = weight.clone()
    torch.ops.sparse24.prune_(pruned, 2, 4, 1)
    zeroed = weight.cpu().masked_fill(~expected, 0)
    ground.check(name_of("prune24", dtype, rows, cols), torch.equal(_bits(pruned.cpu()), _bits(zeroed)))
    if rows % 4 == 0:
        plain = ground.tensor(rows, cols, dtype=dtype)
        tiles = torch.ops.sparse24.transposable_mask(plain)
        on_cpu = torch.ops.sparse24.transposable_mask(plain.cpu())
        ground.check(name_of("transposable_mask", dtype, rows, cols), torch.equal(tiles.cpu(), on_cpu))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def _format(ground: Ground, dtype: torch.dtype) -> None:
    weight = ground.tensor(130, 1028, dtype=torch.float32)
    torch.ops.sparse24.prune_(weight, 2, 4, 1)
    weight = (weight * 16).to(dtype)
    values, indices = torch.ops.sparse24.compress(weight)
    on_cpu = torch.ops.sparse24.compress(weight.cpu())
    same = torch.equal(_bits(values.cpu()), _bits(on_cpu[0])) and torch.equal(indices.cpu(), on_cpu[1])
    ground.check(name_of("compress", dtype), same)
    dense = device_kernels.expand(values, indices, 144, 1056, ground.stream.handle)
    wide = torch.zeros(144, 1056, dtype=torch.float32)
    wide[:130, :1028] = weight.float().cpu()
    ground.check(name_of("expand", dtype), torch.equal(dense.float().cpu(), wide))


def _quantize(ground: Ground, dtype: torch.dtype) -> None:
    x = _special(ground, 77, 1000, dtype)
    for out in device_kernels.LARGEST:
        for given in (None, 0.0, 0.02):
            scale = None if given is None else torch.tensor(given, device=ground.device)
            found = device_kernels.quantize_per_token(x, ground.stream.handle, out, scale)
            on_cpu = None if scale is None else scale.cpu()
            expected = device_kernels.quantize_per_token(x.cpu(), 0, out, on_cpu)
            wide, wanted = found[0].cpu().float(), expected[0].float()
            step = 1.0 if out is torch.int8 else 2.0**-3 * wanted.abs().clamp(min=2.0**-6)  # to the next code
            apart = float(((wide - wanted).abs() / step).max())
            scales = torch.allclose(found[1].cpu(), expected[1], rtol=1e-6, atol=0, equal_nan=True)
            name = name_of("quantize_per_token", dtype, out, "" if given is None else f"by {given}")
            ground.check(name, apart <= 1 and scales, apart=apart)


def _im2col(ground: Ground, dtype: torch.dtype, image: tuple[int, ...]) -> None:
    batch, channels, height, width = image
    x = ground.tensor(batch, height, width, channels, dtype=torch.float32).mul(16).to(dtype)
    window = ((3, 2), (2, 1), (1, 1), (1, 2))  # kernel, stride, padding, dilation
    sizes = tuple(
        (image[2 + i] + 2 * window[2][i] - window[3][i] * (window[0][i] - 1) - 1) // window[1][i] + 1
        for i in range(2)
    )
    columns = ops.round_up(6 * ops.round_up(channels, 4), 32)
    given = (0, channels, *window, sizes, columns, ground.stream.handle)
    same = torch.equal(
        _bits(device_kernels.im2col(x, *given).cpu()), _bits(device_kernels.im2col(x.cpu(), *given))
    )
    ground.check(name_of("im2col", dtype, image), same)
