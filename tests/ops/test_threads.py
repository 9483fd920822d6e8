"""Concurrent calls, thread counts, and forked processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import sparse24
from reference import assert_matches, conv2d_reference, linear_reference, prune_layers, relative_error
from sparse24 import SparseConv2d, SparseLinear
from sparse24.ops import machine

from .operands import DTYPES, compressed_conv, compressed_linear, sparse

pytestmark = pytest.mark.usefixtures("seeded")


def test_concurrent_calls_agree() -> None:
    models = [
        prune_layers(nn.Sequential(nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 36, 10)))
        for _ in range(3)
    ]
    inputs = [torch.randn(size, 8, 8, 8) for size in (1, 4, 9)]
    expected = [[model.double()(x.double()) for x in inputs] for model in models]
    for model in models:
        sparse24.to_sparse(model, dtype=torch.float32, when="always")
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            start.wait(timeout=20)
            for _ in range(10):
                for model, answers in zip(models, expected, strict=True):
                    for x, answer in zip(inputs, answers, strict=True):
                        with torch.no_grad():
                            assert relative_error(model(x), answer) < 1e-5
        except BaseException as error:  # noqa: BLE001  a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def with_threads(count: int, call: Callable[[], Tensor]) -> Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 6, 9, 200, 801])
def test_the_thread_count_changes_no_bit_of_a_linear_product(tokens: int, dtype: torch.dtype) -> None:
    weight, values, indices, bias = compressed_linear(517, 644, dtype)
    x = torch.randn(tokens, 644).to(dtype)

    def product() -> Tensor:
        return sparse.linear(x, values, indices, bias)

    alone = with_threads(1, product)
    assert_matches(alone, linear_reference(x, weight, bias))
    for count in (2, 3):
        assert torch.equal(with_threads(count, product), alone)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_thread_count_changes_no_bit_of_a_convolution(
    groups: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    kernel, values, indices, bias = compressed_conv(60, 24 // groups, 3, 3, dtype=dtype)
    x = torch.randn(3, 24, 17, 19).to(dtype).contiguous(memory_format=layout)

    def product() -> Tensor:
        return sparse.conv2d(x, values, indices, bias, (3, 3), groups=groups)

    alone = with_threads(1, product)
    assert_matches(alone, conv2d_reference(x, kernel, bias, groups=groups))
    for count in (2, 3):
        assert torch.equal(with_threads(count, product), alone)


@pytest.fixture
def tuned() -> Iterator[Callable[..., None]]:
    """Sets constants of the kernels; the machine's own are back after the test."""
    machine.load()
    yield machine.set_tuning
    machine.set_tuning()
    machine.load.cache_clear()


#: How the work is cut: streams of rows, vectors of tokens to a tile, its columns, sums that stay in L2.
SPLITS = [
    {"streams": 1, "vectors": 1},
    {"streams": 2, "vectors": 2, "tile_cols": 32},
    {"streams": 4, "vectors": 5, "tile_cols": 64, "sums_bytes": 1 << 14},
    {"streams": 4, "vectors": 20, "tile_cols": 32, "sums_bytes": 1 << 20},
]


@pytest.mark.parametrize("tokens", [1, 2, 5, 200])
def test_how_the_work_is_cut_changes_no_bit(tokens: int, tuned: Callable[..., None]) -> None:
    weight, values, indices, bias = compressed_linear(517, 644)
    x = torch.randn(tokens, 644)
    outputs = []
    for split in SPLITS:
        tuned(**split)
        assert machine.tuning()["row"] == "measured here"
        outputs += [with_threads(count, lambda: sparse.linear(x, values, indices, bias)) for count in (1, 3)]
    assert_matches(outputs[0], linear_reference(x, weight, bias))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_tokens_of_a_large_product_are_the_same_in_any_company() -> None:
    _, values, indices, bias = compressed_linear(130, 260)
    x = torch.randn(400, 260)
    whole = sparse.linear(x, values, indices, bias)
    for size in (16, 77, 200):
        parts = [sparse.linear(part, values, indices, bias) for part in x.split(size) if len(part) > 15]
        together = torch.cat(parts)
        assert torch.equal(together, whole[: len(together)])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes() -> None:
    linear = SparseLinear.from_dense(prune_layers(nn.Linear(260, 130)))
    conv = SparseConv2d.from_dense(prune_layers(nn.Conv2d(12, 20, 3)))
    x, image = torch.randn(200, 260), torch.randn(2, 12, 17, 17)
    expected, expected_image = linear(x), conv(image)
    dense, small = prune_layers(nn.Linear(64, 32)), x[:20, :64]
    expected_small = dense(small)
    child = os.fork()
    if child == 0:  # without dense products: torch's own threads hang after a fork
        ok = relative_error(linear(x), expected) < 1e-6 and relative_error(conv(image), expected_image) < 1e-6
        ok = ok and relative_error(SparseLinear.from_dense(dense)(small), expected_small) < 1e-5
        os._exit(0 if ok else 1)
    deadline = time.monotonic() + 30
    status = None
    while status is None and time.monotonic() < deadline:
        pid, code = os.waitpid(child, os.WNOHANG)
        status = code if pid == child else None
        time.sleep(0.01)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert status == 0, "the child hung or answered otherwise"
