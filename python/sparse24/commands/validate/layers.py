"""Layers as a user calls them: the host's part, counts of tokens, 8-bit storage, tuning, torch's settings."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import SparseConv2d, SparseLinear, masks
from ...choose import explain, tune
from ...nn import on_device
from ...ops import figures
from ...ops.cuda import repeats
from ...ops.cuda.cusparselt import HostStream
from ..doctor import relative_error
from .ground import Ground
from .products import TOLERANCE, sparse_weight
from .speed import _medians

HALF = torch.float16
#: Python functions that a call of a layer may enter.
MOST_FRAMES = 12
#: Largest errors over the largest magnitude of products that round operands to 8 bits.
INT8, FLOAT8 = 3e-2, 8e-2


def run(ground: Ground) -> None:
    """Check them all; on the emulator those that need no device."""
    with _own_forms(ground):
        for check in (_host_cost, _counts_of_tokens):
            with ground.attempt(check.__name__.strip("_")):
                check(ground)
    with ground.attempt("eight_bits"), ground.layers_run_here():
        _eight_bits(ground)
    if ground.emulated:
        return
    for check in (_fp32_precision, _explain, _windows, *(() if ground.quick else (_fully_sharded,)), _tune):
        with ground.attempt(check.__name__.strip("_")):
            check(ground)


@contextlib.contextmanager
def _own_forms(ground: Ground) -> Iterator[None]:
    """Within it, layers on the emulator find its stream where torch's current one would be."""
    if not ground.emulated:
        yield
        return
    with (
        mock.patch.object(on_device, "current_stream", return_value=HostStream()),
        mock.patch.object(repeats, "ask_stream", int),  # the default stream's handle is 0
    ):
        yield


def _call(ground: Ground, layer: SparseLinear, x: Tensor) -> Tensor:
    """The layer's output where it is validated, however it is called there."""
    output = layer._on_device(x) if ground.emulated else layer(x)
    assert output is not None
    return output


# ---- the host's part -------------------------------------------------------------------------------------


def frames_of(work: Callable[[], object]) -> int:
    """Python functions that a call of ``work`` enters, itself left out."""
    entered = -1

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return entered


def _microseconds(works: list[Callable[[], object]], wait: Callable[[], object]) -> list[float]:
    """Median time of the host in a call of each, in turns, the device idle and its queue never full."""
    calls = 50
    times: list[list[float]] = [[] for _ in works]
    for _ in range(20):
        for work, own in zip(works, times, strict=True):
            wait()
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            own.append(1e6 * (time.perf_counter() - begin) / calls)
    return [statistics.median(own) for own in times]


@torch.no_grad()
def _host_cost(ground: Ground) -> None:
    """A call that is like the one before enters few Python functions; its time is told, the library's call
    included.
    """
    layer = SparseLinear.from_weight(sparse_weight(ground, 512, 512, dtype=HALF))
    x = ground.tensor(64, 512, dtype=HALF)
    for _ in range(3):
        _call(ground, layer, x)
    frames = frames_of(lambda: layer(x))
    small, row = nn.Linear(8, 8), torch.randn(64, 8)
    dense = nn.Linear(512, 512, device=ground.device, dtype=HALF if not ground.emulated else torch.float32)
    wide = x.to(dense.weight.dtype)
    own, tiny, rival = _microseconds(
        [lambda: layer(x), lambda: small(row), lambda: dense(wide)],
        (lambda: None) if ground.emulated else torch.cuda.synchronize,
    )
    error = relative_error(layer(x), F.linear(x.double(), layer.weight.double()))
    ground.check(
        "a call enters few Python functions", frames <= MOST_FRAMES and error <= TOLERANCE[HALF],
        frames=frames, error=error, host_us=own, host_us_of_a_small_dense_layer_on_the_cpu=tiny,
        host_us_of_a_dense_layer_here=rival,
    )  # fmt: skip


@torch.no_grad()
def _counts_of_tokens(ground: Ground) -> None:
    """Every count is right, ragged ones cost about what the next whole one does, and there is one blob."""
    m, k, counts = 4096, 4096, (64, 61, 512, 509, 2048, 2041)
    if ground.emulated:
        m, k, counts = 288, 128, (64, 61, 24, 23, 40, 39)
    weight = sparse_weight(ground, m, k, dtype=HALF)
    layer = SparseLinear.from_weight(weight)
    errors, times = {}, {}
    for _ in range(2):  # the second time as it was noted
        for n in counts:
            x = ground.tensor(n, k, dtype=HALF, seed=n)
            errors[n] = relative_error(_call(ground, layer, x), F.linear(x.double(), weight.double()))
            times[n] = _medians(ground, {"own": partial(_call, ground, layer, x)})["own"]
    forms = layer.__dict__["_forms"].bytes(layer)
    one = 0 < forms.blobs <= 0.65 * weight.nbytes
    ground.check("tokens of every count, and one blob", max(errors.values()) <= TOLERANCE[HALF] and one,
                 errors=errors, us=times, bytes=forms._asdict())  # fmt: skip


# ---- 8-bit storage ---------------------------------------------------------------------------------------


@torch.no_grad()
def _eight_bits(ground: Ground) -> None:
    """int8 and float8 layers, against the dense float ones; their speed against those in 16 bits."""
    m, n, k = (64, 32, 64) if ground.emulated else (4096, 512, 4096)
    dtype = torch.float32 if ground.emulated else torch.bfloat16
    dense = nn.Linear(k, m, device=ground.device, dtype=dtype)
    masks.prune_(dense.weight.data)
    x = ground.tensor(n, k, dtype=dtype)
    ways: dict[str, tuple[Callable[[SparseLinear], object], float]] = {
        "int8, dynamic": (lambda layer: layer.to_int8("dynamic"), INT8),
        "int8, static": (lambda layer: layer.to_int8("static", float(x.abs().max()) / 127), INT8),
        "int8 weights": (lambda layer: layer.to_int8(), INT8),
        "float8": (lambda layer: layer.to_float8(), FLOAT8),
    }
    for name, (store, limit) in ways.items():
        with ground.attempt(name):
            layer = SparseLinear.from_dense(dense)
            store(layer)
            error = relative_error(layer(x), dense(x))
            times = _medians(ground, {"dense": partial(dense, x), "own": partial(layer, x)})
            ratio = times["dense"] / times["own"]
            ground.check(f"linear, {name}", error <= limit, error=error, ratio=ratio, us=times)
    for name, limit in (("int8, dynamic", INT8), ("float8", FLOAT8)):
        with ground.attempt(f"convolution, {name}"):
            conv = nn.Conv2d(64, 64, 3, padding=1, device=ground.device, dtype=dtype)
            masks.prune_(conv.weight.data)
            shape = (2, 64, 6, 6) if ground.emulated else (32, 64, 28, 28)
            images = ground.tensor(*shape, dtype=dtype)
            images = images.contiguous(memory_format=torch.channels_last)
            sparse = SparseConv2d.from_dense(conv)
            sparse = sparse.to_float8() if name == "float8" else sparse.to_int8("dynamic")
            error = relative_error(sparse(images), conv(images))
            times = _medians(ground, {"dense": partial(conv, images), "own": partial(sparse, images)})
            ratio = times["dense"] / times["own"]
            ground.check(f"convolution, {name}", error <= limit, error=error, ratio=ratio, us=times)


# ---- what only a device shows ----------------------------------------------------------------------------


def _fp32_precision(ground: Ground) -> None:
    """torch's newer setting of TF32 is read, and followed."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        ground.check("fp32_precision", True, skipped="this torch has no such setting")
        return
    weight = sparse_weight(ground, 512, 512, dtype=torch.float32)
    x = ground.tensor(256, 512, dtype=torch.float32)
    before, errors = matmul.fp32_precision, {}
    try:
        for precision in ("ieee", "tf32"):
            matmul.fp32_precision = precision
            layer = SparseLinear.from_weight(weight)
            with torch.no_grad():
                errors[precision] = relative_error(layer(x), F.linear(x.double(), weight.double()))
    finally:
        matmul.fp32_precision = before
    good = errors["ieee"] <= 1e-5 and errors["tf32"] <= TOLERANCE[torch.float32]
    ground.check("fp32_precision", good, errors=errors)


def _explain(ground: Ground) -> None:
    """Asked from device 0 about every device, and sparse everywhere afterwards."""
    texts = {}
    for index in range(torch.cuda.device_count()):
        layer = SparseLinear.from_weight(sparse_weight(ground, 4096, 4096, dtype=HALF)).to(f"cuda:{index}")
        texts[index] = explain(layer, (2048, 4096))
    ground.check(
        "explain on every device", all(text.startswith("sparse") for text in texts.values()), texts=texts
    )


@torch.no_grad()
def _windows(ground: Ground) -> None:
    """Convolutions as they run untuned: none slower than dense, or a route is wrong. Told, not judged."""
    for kernel, channels, size in ((1, 1024, 14), (3, 256, 28), (3, 512, 14)):
        conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, device=ground.device, dtype=HALF)
        masks.prune_(conv.weight.data)
        layer = SparseConv2d.from_dense(conv)
        x = ground.tensor(16, channels, size, size, dtype=HALF).contiguous(memory_format=torch.channels_last)
        error = relative_error(layer(x), conv(x))
        times = _medians(ground, {"dense": partial(conv, x), "own": partial(layer, x)})
        ratio = times["dense"] / times["own"]
        ground.check(f"convolution {kernel} x {kernel} of {channels} channels", error <= 2 * TOLERANCE[HALF],
                     error=error, ratio=ratio, us=times)  # fmt: skip


def _fully_sharded(ground: Ground) -> None:
    """``fully_shard`` in a group of one process."""
    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        ground.check("fully_shard", True, skipped="this torch has no NCCL")
        return
    from torch._C._distributed_c10d import HashStore  # noqa: PLC0415  takes a second, as the next line
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    torch.distributed.init_process_group("nccl", rank=0, world_size=1, store=HashStore())
    try:
        weight, x = sparse_weight(ground, 512, 512, dtype=HALF), ground.tensor(256, 512, dtype=HALF)
        model = nn.Sequential(SparseLinear.from_weight(weight))
        fully_shard(model)
        with torch.no_grad():
            error = relative_error(model(x), F.linear(x.double(), weight.double()))
    finally:
        torch.distributed.destroy_process_group()
    ground.check("fully_shard", error <= TOLERANCE[HALF], error=error)


def _tune(ground: Ground) -> None:
    """A user's tuning of one layer, on a copy of the user's figures; the layer computes the same by them."""
    own = figures.path("tuned.json").parent
    with tempfile.TemporaryDirectory() as copy:
        if own.is_dir():
            shutil.copytree(own, copy, dirs_exist_ok=True)
        os.environ["SPARSE24_CACHE"] = copy  # of this part's process, which ends with it
        weight, x = sparse_weight(ground, 2048, 2048, dtype=HALF), ground.tensor(512, 2048, dtype=HALF)
        layer = SparseLinear.from_weight(weight)
        with torch.no_grad():
            found = tune(layer, tokens=(512,), budget_seconds=5.0 if ground.quick else 15.0)
            error = relative_error(layer(x), F.linear(x.double(), weight.double()))
        files = sorted(path.name for path in Path(copy).iterdir())
    ground.check("tune", error <= TOLERANCE[HALF] and "tuned.json" in files, error=error, files=files,
                 report=str(found))  # fmt: skip
