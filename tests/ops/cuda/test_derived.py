"""What operators with bare tensors find of what was derived from a weight before, on the emulator.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emulated import EmulatedStream, Emulator, compressed, randn, sparse_weight
from own_forms import wait_for_handles
from reference import assert_matches, linear_reference
from sparse24.ops.cuda import blobs, route, weights
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda.blobs import Derived
from sparse24.ops.cuda.cusparselt import Algorithm, gpu
from sparse24.ops.cuda.route import Call, Measured
from sparse24.ops.cuda.weights import Canonical, derived_of

HALF = torch.float16
M, K = 64, 64


def check(values: Tensor, indices: Tensor, weight: Tensor, stream: EmulatedStream) -> None:
    x = randn(16, K)
    assert_matches(cuda.linear(x, values, indices, None, "none", stream), linear_reference(x, weight))


def test_aliases_of_a_weight_share_what_was_derived(stream: EmulatedStream) -> None:
    weight = sparse_weight(M, K, HALF)
    values, indices = compressed(weight)
    check(values, indices, weight, stream)
    (blob,) = derived_of(values, indices).blobs.values()
    for alias in (values.detach(), nn.Parameter(values, requires_grad=False), values.view(M, K // 2)):
        check(alias, indices, weight, stream)
        assert list(derived_of(values, indices).blobs.values()) == [blob]


def test_parts_and_types_of_a_storage_are_weights_of_their_own(stream: EmulatedStream) -> None:
    weight = sparse_weight(2 * M, K, HALF)
    values, indices = compressed(weight)
    check(values, indices, weight, stream)
    for part in (slice(0, M), slice(M, None)):
        check(values[part], indices[part], weight[part], stream)
    assert derived_of(values[:M], indices[:M]) is not derived_of(values[M:], indices[M:])
    as_bf16 = values.view(torch.bfloat16)
    assert derived_of(as_bf16, indices) is not derived_of(values, indices)


@pytest.mark.parametrize(
    "write",
    [
        lambda values: values.mul_(2),
        lambda values: values[:].mul_(2),
        lambda values: torch._foreach_mul_([values], 2),
        lambda values: values.set_(2 * values),
        lambda values: values.detach().mul_(2),
    ],
    ids=["in place", "through a view", "foreach", "a new storage", "detached"],
)
def test_writes_that_torch_counts_are_seen(write: Any, stream: EmulatedStream) -> None:
    weight = sparse_weight(M, K, HALF)
    values, indices = compressed(weight)
    check(values, indices, weight, stream)
    write(values)
    check(values, indices, 2 * weight, stream)
    assert len(derived_of(values, indices).blobs) == 1


def test_nothing_holds_a_weight_and_what_is_gone_is_dropped(stream: EmulatedStream) -> None:
    values, indices = compressed(sparse_weight(M, K, HALF))
    alone = values._use_count(), torch._C._storage_Use_Count(values.untyped_storage()._cdata)
    check(values, indices, sparse_weight(M, K, HALF), stream)
    assert (values._use_count(), torch._C._storage_Use_Count(values.untyped_storage()._cdata)) == alone
    torch.utils.swap_tensors(values, values.clone())  # which refuses tensors with weak references
    key = weights._key_of(values, indices)
    derived_of(values, indices)
    del values
    assert key in weights._table
    derived_of(*compressed(sparse_weight(M, K, HALF)))
    assert key not in weights._table


def test_a_new_weight_at_an_old_address_is_not_the_old_one(stream: EmulatedStream) -> None:
    for seed in range(20):
        weight = sparse_weight(M, K, HALF, seed)
        check(*compressed(weight), weight, stream)


def test_tensors_made_in_inference_mode(stream: EmulatedStream) -> None:
    weight = sparse_weight(M, K, HALF)
    with torch.inference_mode():
        values, indices = compressed(weight)
        check(values, indices, weight, stream)
        values.mul_(2)  # which nobody counts
        check(values, indices, 2 * weight, stream)
    check(values, indices, 2 * weight, stream)
    assert Canonical(values, indices).derived() is None
    weights.keep_dense(values, indices, True)
    assert not Canonical(values, indices).keeps_dense


def test_a_dense_copy_of_bare_tensors(stream: EmulatedStream, emulator: Emulator) -> None:
    weight, x = sparse_weight(M, K, HALF), randn(4, K)
    values, indices = compressed(weight)
    weights.keep_dense(values, indices, False)
    assert weights._key_of(values, indices) not in weights._table  # not kept, and nothing begun
    weights.keep_dense(values, indices, True)
    for factor in (1, 2):
        assert_matches(
            cuda.linear(x, values, indices, None, "none", stream), linear_reference(x, factor * weight)
        )
        dense = derived_of(values, indices).dense
        assert dense is not None
        assert torch.equal(dense, factor * weight)
        values.mul_(2)
    assert Canonical(values, indices).keeps_dense
    assert emulator.launches() == 0


def test_threads_compress_once(
    emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    compress = blobs.compress
    monkeypatch.setattr(blobs, "compress", lambda *given: made.append(given[2]) or compress(*given))
    weight = sparse_weight(M, K, HALF)
    values, indices = compressed(weight)
    start, outputs, x = threading.Barrier(5), [], randn(16, K)

    def work() -> None:
        start.wait()
        outputs.append(cuda.linear(x, values, indices, None, "none", stream))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 5
    for output in outputs:
        assert_matches(output, linear_reference(x, weight))
    assert made == [(0, M)]
    wait_for_handles(emulator)


def test_only_what_is_named_is_kept(stream: EmulatedStream) -> None:
    values, indices = compressed(sparse_weight(288, K, HALF))
    key = route.measured_key(Call(HALF, HALF, 288, 16, K), gpu(0))
    names = []
    for id in (1, 2):
        route.measured[key] = Measured(Algorithm(id), 1.0, 0.0, 0.0)
        route.forget()
        cuda.linear(randn(16, K), values, indices, None, "none", stream)
        names += derived_of(values, indices).blobs
    derived = derived_of(values, indices)
    derived.dense_of(lambda: (values, indices), stream)
    first, second = names
    assert list(derived.blobs) == [second]
    both = derived.bytes()
    derived.keep_only([second], dense=False)
    assert list(derived.blobs) == [second]
    assert derived.bytes() == both - 288 * K * 2
    derived.keep_only([first], dense=True)
    assert derived.bytes() == 0


def test_what_is_renewed_forgets_the_weight_but_not_the_wish() -> None:
    derived = Derived(keeps_dense=True)
    assert derived.is_1_of_2(lambda: compressed(sparse_weight(8, 8, torch.float32)))
    two = torch.zeros(8, 8)
    two[:, :2] = 1
    assert derived.is_1_of_2(lambda: compressed(two))  # asked once
    renewed = derived.renewed()
    assert renewed.keeps_dense
    assert not renewed.is_1_of_2(lambda: compressed(two))
