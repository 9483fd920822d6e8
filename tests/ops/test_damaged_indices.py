"""Indices of a group that do not increase: every way to a CPU kernel refuses them, naming row and group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from reference import prune_layers
from sparse24 import SparseConv2d, SparseLinear

from .operands import DTYPES, compressed_conv, compressed_linear, sparse

pytestmark = pytest.mark.usefixtures("seeded")

#: The two indices of a group in four bits, the first one low.
DAMAGES = {"zeros": 0b0000, "equal": 0b1010, "falling": 0b0110, "falling by three": 0b0011}


class Way(NamedTuple):
    """A call, and the indices that it reads."""

    call: Callable[[], Tensor]
    indices: Tensor


def linear_operator(tokens: int, dtype: torch.dtype, strided: bool = False) -> Way:
    _, values, indices, bias = compressed_linear(13, 84, dtype)
    x = torch.randn(tokens, 84 + 4 * strided).to(dtype)[:, :84]
    return Way(lambda: sparse.linear(x, values, indices, bias), indices)


def conv_operator(dtype: torch.dtype, layout: torch.memory_format, groups: int = 1, side: int = 3) -> Way:
    _, values, indices, bias = compressed_conv(12, 12 // groups, side, side, dtype=dtype)
    x = torch.randn(2, 12, 7, 6).to(dtype).contiguous(memory_format=layout)
    return Way(
        lambda: sparse.conv2d(x, values, indices, bias, [side] * 2, [1, 1], [1, 1], [1, 1], groups), indices
    )


def linear_layer(tokens: int, dtype: torch.dtype, gradients: bool = False) -> Way:
    layer = SparseLinear.from_dense(prune_layers(nn.Linear(84, 13)).to(dtype))
    x = torch.randn(tokens, 84).to(dtype).requires_grad_(gradients)
    return Way(lambda: layer(x), layer.indices)


def conv_layer(dtype: torch.dtype, layout: torch.memory_format, groups: int = 1, mode: str = "zeros") -> Way:
    dense = prune_layers(nn.Conv2d(12, 12, 3, padding=1, groups=groups, padding_mode=mode)).to(dtype)
    layer = SparseConv2d.from_dense(dense)
    x = torch.randn(2, 12, 7, 6).to(dtype).contiguous(memory_format=layout)
    return Way(lambda: layer(x), layer.indices)


def autocast_layer(dtype: torch.dtype) -> Way:
    way = linear_layer(3, dtype)

    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return way.call()

    return Way(call, way.indices)


def decompressed(dtype: torch.dtype) -> Way:
    _, values, indices, _ = compressed_linear(13, 84, dtype)
    return Way(lambda: sparse.decompress(values, indices), indices)


def dense_weight(dtype: torch.dtype) -> Way:
    layer = SparseLinear.from_dense(prune_layers(nn.Linear(84, 13)).to(dtype))
    return Way(layer.weight.dense, layer.indices)


ACROSS, INWARD = torch.contiguous_format, torch.channels_last
WAYS: dict[str, Callable[[torch.dtype], Way]] = {
    "linear, one token": lambda dtype: linear_operator(1, dtype),
    "linear, few tokens": lambda dtype: linear_operator(3, dtype),
    "linear, many tokens": lambda dtype: linear_operator(100, dtype),
    "linear, strided": lambda dtype: linear_operator(100, dtype, strided=True),
    "conv": lambda dtype: conv_operator(dtype, ACROSS),
    "conv, channels_last": lambda dtype: conv_operator(dtype, INWARD),
    "conv, 1 x 1": lambda dtype: conv_operator(dtype, ACROSS, side=1),
    "conv, 1 x 1, channels_last": lambda dtype: conv_operator(dtype, INWARD, side=1),
    "conv, groups": lambda dtype: conv_operator(dtype, ACROSS, groups=3),
    "conv, groups, channels_last": lambda dtype: conv_operator(dtype, INWARD, groups=3),
    "SparseLinear, one token": lambda dtype: linear_layer(1, dtype),
    "SparseLinear, many tokens": lambda dtype: linear_layer(100, dtype),
    "SparseLinear, gradients": lambda dtype: linear_layer(3, dtype, gradients=True),
    "SparseLinear, autocast": autocast_layer,
    "SparseConv2d": lambda dtype: conv_layer(dtype, ACROSS),
    "SparseConv2d, channels_last": lambda dtype: conv_layer(dtype, INWARD),
    "SparseConv2d, groups": lambda dtype: conv_layer(dtype, ACROSS, groups=2),
    "SparseConv2d, padded before": lambda dtype: conv_layer(dtype, ACROSS, mode="reflect"),
    "decompress": decompressed,
    "weight.dense()": dense_weight,
}


def places(indices: Tensor) -> list[tuple[int, int]]:
    """(row, group): the corners, and some between them."""
    rows, groups = indices.shape[0], 2 * indices.shape[1]
    return [(0, 0), (0, groups - 1), (1, 1), (rows // 2, groups // 2), (rows - 1, 0), (rows - 1, groups - 1)]


def damage(indices: Tensor, row: int, group: int, pair: int) -> None:
    shift = 4 * (group % 2)
    indices[row, group // 2] = (int(indices[row, group // 2]) & ~(15 << shift)) | pair << shift


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("way", WAYS)
def test_damaged_indices_are_refused(way: str, kind: str, dtype: torch.dtype) -> None:
    call, indices = WAYS[way](dtype)
    whole, sound = call(), indices.clone()
    for row, group in places(indices):
        damage(indices, row, group, DAMAGES[kind])
        with pytest.raises(ValueError, match=rf"row {row}, group {group} \(columns {4 * group} to"):
            call()
        indices.copy_(sound)
        assert torch.equal(call(), whole)


def test_the_first_of_several_is_named() -> None:
    call, indices = linear_operator(100, torch.float32)
    for row, group in ((9, 3), (4, 20), (4, 7)):
        damage(indices, row, group, 0)
        with pytest.raises(ValueError, match=f"row {row}, group {group} "):
            call()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("tokens", [1, 4, 300])
def test_every_thread_looks_at_its_part(tokens: int) -> None:
    _, values, indices, _ = compressed_linear(640, 512)
    x, sound = torch.randn(tokens, 512), indices.clone()
    for row in (0, 319, 320, 639):
        damage(indices, row, 77, 0b0001)
        with pytest.raises(ValueError, match=f"row {row}, group 77 "):
            sparse.linear(x, values, indices)
        indices.copy_(sound)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layout", [ACROSS, INWARD])
def test_every_thread_of_a_convolution_looks_at_its_part(layout: torch.memory_format) -> None:
    _, values, indices, _ = compressed_conv(64, 32, 3, 3)
    x, sound = torch.randn(4, 32, 24, 24).contiguous(memory_format=layout), indices.clone()
    for row in (0, 31, 32, 63):
        damage(indices, row, 41, 0b0001)
        with pytest.raises(ValueError, match=f"row {row}, group 41 "):
            sparse.conv2d(x, values, indices, None, [3, 3])
        indices.copy_(sound)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_compiled_programs_refuse_them(kind: str, backend: str) -> None:
    layer: SparseLinear | SparseConv2d
    if kind == "linear":
        layer, x = SparseLinear.from_dense(prune_layers(nn.Linear(84, 13))), torch.randn(5, 84)
    else:
        layer, x = SparseConv2d.from_dense(prune_layers(nn.Conv2d(12, 12, 3))), torch.randn(2, 12, 7, 6)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    with torch.no_grad():
        whole, sound = compiled(x), layer.indices.clone()
        for pair in DAMAGES.values():
            damage(layer.indices, 7, 11, pair)
            with pytest.raises(ValueError, match="row 7, group 11 "):
                compiled(x)
            layer.indices.copy_(sound)
            assert torch.equal(compiled(x), whole)
    torch._dynamo.reset()


def test_exported_programs_refuse_them() -> None:
    layer, x = SparseLinear.from_dense(prune_layers(nn.Linear(84, 13))), torch.randn(5, 84)
    program = torch.export.export(layer, (x,)).module()
    program(x)
    damage(program.get_buffer("indices"), 7, 11, 0b0101)
    with pytest.raises(ValueError, match="row 7, group 11 "):
        program(x)
