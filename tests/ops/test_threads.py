"""Concurrent calls, thread counts, and forked processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import sparse24
from reference import assert_matches, conv2d_reference, linear_reference, prune_layers, relative_error
from sparse24 import SparseConv2d, SparseLinear

from .operands import compressed_conv, compressed_linear, sparse

pytestmark = pytest.mark.usefixtures("seeded")


def test_concurrent_calls_agree_and_pack_safely() -> None:
    models = [
        prune_layers(nn.Sequential(nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 36, 10)))
        for _ in range(3)
    ]
    inputs = [torch.randn(size, 8, 8, 8) for size in (1, 4, 9)]
    expected = [[model.double()(x.double()) for x in inputs] for model in models]
    for model in models:
        sparse24.to_sparse(model, dtype=torch.float32)
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


@pytest.mark.usefixtures("two_threads")
def test_the_thread_count_changes_nothing() -> None:
    weight, values, indices, bias = compressed_linear(130, 260)
    kernel, conv_values, conv_indices, conv_bias = compressed_conv(20, 12, 3, 3)
    for tokens in (1, 6, 200):
        x = torch.randn(tokens, 260)
        assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))
    image = torch.randn(3, 12, 17, 19)
    output = sparse.conv2d(image, conv_values, conv_indices, conv_bias, (3, 3))
    assert_matches(output, conv2d_reference(image, kernel, conv_bias))


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
