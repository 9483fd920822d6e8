"""What operators keep is not allocated where the caller allocates: a CUDA graph's pool, while one is warmed
up.

``torch.compile(mode="reduce-overhead")`` takes all allocations of the thread that warms up from such a pool,
and raises where anything but outputs is alive afterwards. Here a dispatch mode, which sees the allocations of
its thread, stands for the pool. On the emulator: passing here is not validation on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emulated import HALF, EmulatedStream, compressed, eight_bit, randn, sparse_weight
from own_forms import K, M, new_layer, run
from reference import assert_matches, linear_reference
from sparse24.ops.cuda import memory, weights
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda import scaled as cuda_scaled
from sparse24.ops.cuda.products import Window


class Pool(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers every storage that operators of this thread bring about."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known | given:
                self._made.setdefault(leaf.untyped_storage()._cdata, StorageWeakRef(leaf.untyped_storage()))
        return found

    def alive(self) -> int:
        """Storages that are kept, as ``check_memory_pool`` of torch's CUDA graph trees would find them."""
        gc.collect()
        return sum(not storage.expired() for storage in self._made.values())

    @property
    def count(self) -> int:
        return len(self._made)


def linear(stream: EmulatedStream) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    given = (randn(64, K), *compressed(sparse_weight(M, K, HALF)), randn(M))
    return lambda: cuda.linear(*given, "none", stream), given


def ragged(stream: EmulatedStream) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    given = (randn(61, 50), *compressed(sparse_weight(37, 50, HALF)), randn(37))
    return lambda: cuda.linear(*given, "gelu", stream), given


def dense_copy(stream: EmulatedStream) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    given = (randn(4, K), *compressed(sparse_weight(M, K, HALF)))
    weights.keep_dense(*given[1:], True)
    return lambda: cuda.linear(*given, None, "none", stream), given


def of_float32(stream: EmulatedStream) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    given = (randn(4, K), *compressed(sparse_weight(M, K, torch.float32)))
    return lambda: cuda.linear(*given, None, "none", stream), given


def conv2d(stream: EmulatedStream) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    given = (randn(2, 32, 4, 4), *compressed(sparse_weight(64, 32, HALF)))
    window = Window((1, 1), (1, 1), (0, 0), (1, 1), 1)
    return lambda: cuda.conv2d(*given, None, window, "none", stream), given


def int8(stream: EmulatedStream) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    given = (
        eight_bit(32, 64, dtype=torch.int8),
        *compressed(eight_bit(32, 64, dtype=torch.int8, sparse=True)),
    )
    return lambda: cuda_scaled.scaled_linear(*given, None, None, torch.int32, "none", stream), given


@pytest.mark.parametrize("case", [linear, ragged, dense_copy, of_float32, conv2d, int8])
def test_operators_keep_nothing_of_the_callers_pool(case: Any, stream: EmulatedStream) -> None:
    work, inputs = case(stream)
    for _ in range(2):  # what is built, and what was built
        with Pool(inputs) as pool:
            output = work()
        assert pool.count > 0
        del output
        assert pool.alive() == 0


@pytest.mark.usefixtures("on_emulator")
def test_layers_keep_nothing_of_the_callers_pool() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    x = (randn(64, K), randn(4, K))
    run(layer, x[0])  # the canonical form is on the host now
    with Pool((*x, layer._parameters["bias"])) as pool:  # type: ignore[arg-type]
        outputs = [layer._product_by(weight_of(layer), each, layer.bias, EmulatedStream()) for each in x]
    for each, output in zip(x, outputs, strict=True):
        assert_matches(output, linear_reference(each, weight, layer.bias))
    del outputs, output, each
    assert pool.alive() == 0


def weight_of(layer: Any) -> Any:
    from sparse24.nn import on_device  # noqa: PLC0415

    found = on_device.weight_of(layer, torch.device("cpu"), EmulatedStream())
    assert found is not None
    return found


def test_what_is_kept_is_an_ordinary_tensor_whatever_mode_asks() -> None:
    with torch.inference_mode():
        kept = memory.empty((2, 3), HALF, torch.device("cpu"))
        copied = memory.copy_of(torch.ones(3), torch.device("cpu"))
    assert (kept.shape, kept.dtype, kept.is_inference()) == ((2, 3), HALF, False)
    assert copied.tolist() == [1, 1, 1]


def test_memory_that_is_full_is_told_by_whoever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("of the device")

    monkeypatch.setattr(memory.torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):
        memory.empty((2,), HALF, torch.device("cpu"))
