"""Calls of few tokens that are repeated without Python: the kernel gets the weight as it is at each call. On
the emulator, with a stand-in for the kernel.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from emulated import BF16, FLOAT, HALF, Emulator, randn, sparse_weight
from own_forms import FEW, MANY, K, M, forms, is_away, new_layer, repeated, run
from reference import assert_matches, linear_reference
from sparse24 import SparseLinear
from sparse24.ops import product
from sparse24.ops.cuda import cusparselt, device_kernels, repeats, route

pytestmark = pytest.mark.usefixtures("on_emulator")

DTYPES = {0: FLOAT, 1: HALF, 2: BF16}


class Call(ctypes.Structure):
    """FewTokensCall of csrc/few_tokens_call.h."""

    _fields_ = (
        ("x", ctypes.c_void_p), ("n", ctypes.c_int64), ("k", ctypes.c_int64), ("x_stride", ctypes.c_int64),
        ("values", ctypes.c_void_p), ("indices", ctypes.c_void_p), ("m", ctypes.c_int64),
        ("bias", ctypes.c_void_p), ("y", ctypes.c_void_p), ("stream", ctypes.c_void_p),
        ("dtype", ctypes.c_int32), ("activation", ctypes.c_int32),
    )  # fmt: skip


def _at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor on memory that is there."""
    count = torch.empty(shape, device="meta").numel() * dtype.itemsize
    raw = (ctypes.c_uint8 * count).from_address(address)
    return torch.frombuffer(raw, dtype=dtype).view(shape)


class Kernel:
    """The kernel for few tokens on CPU memory, as Python calls it and as C does."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refuses = False
        self._function = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Call))(self._by_address)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value

    def __call__(  # noqa: PLR0917  as the kernel's function
        self, x: Tensor, values: Tensor, indices: Tensor, scale: Tensor | None, bias: Tensor | None,
        activation: str, stream: int,
    ) -> Tensor:  # fmt: skip
        self.calls.append("python")
        return self._product(x, values, indices, bias, activation)

    def _by_address(self, pointer: Any) -> bool:
        c: Call = pointer.contents
        if self.refuses:
            return False
        self.calls.append("c")
        assert c.x_stride == c.k
        dtype, padded = DTYPES[c.dtype], -(-c.k // 8) * 8
        values = _at(c.values, (c.m, padded // 2), dtype)
        indices = _at(c.indices, (c.m, padded // 8), torch.uint8)
        bias = _at(c.bias, (c.m,), dtype) if c.bias else None
        x, y = _at(c.x, (c.n, c.k), dtype), _at(c.y, (c.n, c.m), dtype)
        y.copy_(self._product(x, values, indices, bias, sparse24.ops.ACTIVATIONS[c.activation]))
        return True

    @staticmethod
    def _product(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        weight = torch.ops.sparse24.decompress(values, indices)[:, : x.shape[1]]
        y = x.float() @ weight.float().t()
        return product.activate(y if bias is None else y + bias.float(), activation).to(x.dtype)


@pytest.fixture
def kernel(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A device where the kernels run."""
    found = Kernel()
    on = cusparselt.gpu(0)._replace(kernels=True)
    monkeypatch.setattr(cusparselt, "gpu", lambda device: on)
    monkeypatch.setattr(cusparselt.gpu, "cache_clear", lambda: None, raising=False)
    monkeypatch.setattr(device_kernels, "few_tokens", found)
    monkeypatch.setattr(repeats, "few_tokens_function", lambda: found.address)
    return found


def expected(x: Tensor, layer: SparseLinear, factor: float = 1) -> Tensor:
    return linear_reference(
        x, factor * sparse_weight(M, K, x.dtype), layer._parameters["bias"], layer.activation
    )


@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT])
@pytest.mark.parametrize("activation", sparse24.ops.ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_second_call_is_one_of_c(dtype: torch.dtype, activation: str, bias: bool, kernel: Kernel) -> None:
    layer = new_layer(dtype=dtype, bias=bias)
    layer.activation = activation
    for seed, shape in enumerate([(FEW,), (2, 2), (1, FEW)]):
        x = randn(*shape, K, dtype=dtype, seed=seed)
        output = run(layer, x)
        assert output.shape == (*shape, M)
        assert output.dtype is dtype
        assert_matches(output, expected(x, layer))
    assert kernel.calls == ["python", "c", "c"]
    assert not is_away(layer)


def test_a_ragged_weight_and_a_misaligned_input_are_no_obstacle(kernel: Kernel) -> None:
    weight = sparse_weight(37, 93, HALF)
    layer = SparseLinear.from_weight(weight, randn(37))
    for x in (randn(3, 93), randn(3 * 93 + 1)[1:].view(3, 93)):
        assert_matches(run(layer, x), linear_reference(x, weight, layer.bias))
    assert kernel.calls == ["python", "c"]


def _write(layer: SparseLinear) -> None:
    layer.values.data.mul_(2)


def _replace(layer: SparseLinear) -> None:
    layer.values = nn.Parameter(layer.values * 2, requires_grad=False)


@pytest.mark.parametrize("write", [_write, _replace])
@pytest.mark.parametrize("many", [False, True])
def test_a_write_is_never_missed(write: Callable[[SparseLinear], None], many: bool, kernel: Kernel) -> None:
    """Where the weight is in the dicts it is read there at each call; where it is away, the call waits."""
    layer, x, more = new_layer(), randn(FEW, K), randn(MANY, K)
    for factor in (1, 2, 4):
        if factor > 1:
            write(layer)
        for _ in range(3):
            assert_matches(run(layer, x), expected(x, layer, factor))
            if many:
                assert_matches(run(layer, more), expected(more, layer, factor))
    assert kernel.calls.count("c") >= 3  # where it has gone away, the first of each is noted anew
    assert is_away(layer) == many


def test_both_forms_are_repeated_side_by_side(kernel: Kernel, emulator: Emulator) -> None:
    layer, few, many = new_layer(), randn(FEW, K), randn(MANY, K)
    for x in (many, few, many, few):
        run(layer, x)
    assert is_away(layer)
    kernel.calls.clear()
    launches = emulator.launches()
    for x in (few, many, few):
        output = repeated(layer, x)
        assert output is not None
        assert_matches(output, expected(x, layer))
    assert kernel.calls == ["c", "c"]
    assert emulator.launches() == launches + 1
    forms(layer).keep_only([], False, True, None)  # the weight is in its dicts again
    assert len(layer.__dict__["_launches"]) == 0
    assert_matches(run(layer, few), expected(few, layer))


def test_what_ends_it(kernel: Kernel) -> None:
    layer, x = new_layer(), randn(FEW, K)

    def warm() -> None:
        run(layer, x)
        assert repeated(layer, x) is not None

    warm()
    route.forget()
    assert repeated(layer, x) is None
    warm()
    sparse24.keep_dense(layer)
    assert repeated(layer, x) is None
    sparse24.keep_dense(layer, keep=False)
    warm()
    layer.activation = "relu"
    assert repeated(layer, x) is None
    warm()
    with torch.autocast("cpu", BF16):
        assert repeated(layer, x) is None
    layer.values.requires_grad_()
    assert repeated(layer, x) is None
    with torch.no_grad():
        assert repeated(layer, x) is not None
    layer.values.requires_grad_(False)
    kernel.refuses = True
    assert repeated(layer, x) is None
    assert len(layer.__dict__["_launches"]) == 0
    kernel.refuses = False
    warm()
    layer.to(BF16)
    assert repeated(layer, x) is None
    assert_matches(
        run(layer, x.to(BF16)), linear_reference(x.to(BF16), layer.weight.detach(), layer.bias, "relu")
    )


def test_without_the_kernels_nothing_is_noted(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    monkeypatch.setattr(repeats, "few_tokens_function", lambda: 0)
    layer, x = new_layer(), randn(FEW, K)
    run(layer, x)
    assert repeated(layer, x) is None
