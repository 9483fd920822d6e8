"""The CUDA operators on the emulator, with CPU tensors: what they compute, what they copy, what they refuse.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import ctypes
import inspect
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

import sparse24
from emulated import EmulatedStream, Emulator, compressed, eight_bit, randn, sparse_weight
from reference import assert_matches, conv2d_reference, linear_reference, relative_error
from sparse24 import _C, SparseConv2d, SparseLinear, masks, ops
from sparse24.ops import scaled
from sparse24.ops.cuda import blobs, cusparselt, launch, route, weights
from sparse24.ops.cuda import operators as cuda_ops
from sparse24.ops.cuda import products as cuda
from sparse24.ops.cuda import scaled as cuda_scaled
from sparse24.ops.cuda.cusparselt import GPU, Algorithm
from sparse24.ops.cuda.launch import Epilogue
from sparse24.ops.cuda.products import Window
from sparse24.ops.cuda.route import Call, Measured
from sparse24.ops.cuda.weights import Canonical

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
#: TF32 keeps 10 bits of each operand's fraction.
TF32_TOLERANCE = 1e-3


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def close(actual: Tensor, expected: Tensor) -> None:
    if actual.dtype is FLOAT:
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) <= TF32_TOLERANCE
    else:
        assert_matches(actual, expected)


# ---- linear -----------------------------------------------------------------------------------------

SHAPES = [  # m, n, k
    (64, 32, 64),
    (288, 16, 128),  # the blob's layout changes at 256 rows
    (64, 29, 64),  # the last tokens overlap
    (40, 32, 64),  # m is padded
    (64, 32, 50),  # k is padded
    (37, 61, 93),
]


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [HALF, BF16, FLOAT])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("tf32")
def test_linear(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    activation: str,
    emulator: Emulator,
    stream: EmulatedStream,
) -> None:
    m, n, k = shape
    weight, x, bias = sparse_weight(m, k, dtype), randn(n, k, dtype=dtype), randn(m, dtype=dtype, seed=2)
    for given in (bias, None):
        output = cuda.linear(x, *compressed(weight), given, activation, stream)
        close(output, linear_reference(x, weight, given, activation))
        assert output.is_contiguous()
    assert emulator.launches() >= 2


@pytest.mark.parametrize(
    ("tokens", "launches"), [(8, 1), (64, 1), (9, 2), (15, 2), (17, 2), (1000, 1), (1001, 2)]
)
def test_only_the_last_tokens_are_launched_again(
    tokens: int, launches: int, emulator: Emulator, stream: EmulatedStream
) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(tokens, 64)
    output = cuda.linear(x, *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(x, weight))
    assert emulator.launches() == launches


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_few_tokens_can_be_made_to_run_sparse(
    tokens: int, emulator: Emulator, stream: EmulatedStream
) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(tokens, 64)
    on = cusparselt.gpu(0)
    call = Call(HALF, HALF, 32, tokens, 64)
    route.measured[route.measured_key(call, on)] = Measured(Algorithm(), 1.0, 2.0, 3.0)
    output = cuda.linear(x, *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(x, weight))
    assert emulator.launches() == 1


def test_no_tokens(stream: EmulatedStream) -> None:
    weight = compressed(sparse_weight(32, 64, HALF))
    assert cuda.linear(randn(0, 64), *weight, None, "none", stream).shape == (0, 32)
    assert cuda.linear(randn(3, 0, 64), *weight, None, "none", stream).shape == (3, 0, 32)


def _views() -> dict[str, Tensor]:
    whole = randn(4, 24, 96)
    return {
        "leading dims": whole[:, :, :64].contiguous().view(2, 2, 24, 64),
        "row stride": whole[0, :, 16:80],
        "columns apart": whole[0].t().contiguous().t()[:, :64],
        "misaligned": whole[0, :, 1:65],
        "slice of tokens": whole[:, 8:, :64],
        "one vector repeated": whole[0, 0, :64].expand(16, 64),
        "slice of odd tokens": whole[:, 1:, :64],
    }


@pytest.mark.parametrize("view", _views())
def test_inputs_of_every_layout(view: str, emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), _views()[view]
    output = cuda.linear(x, *compressed(weight), randn(32), "relu", stream)
    assert_matches(output, linear_reference(x, weight, randn(32), "relu"))


def test_a_slice_of_tokens_is_one_launch_without_a_copy(
    emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(*_: Any) -> None:
        raise AssertionError("the input was copied")

    weight = sparse_weight(32, 64, HALF)
    x = _views()["slice of tokens"]
    monkeypatch.setattr(cuda, "legal_input", copied)
    cuda.linear(x, *compressed(weight), None, "none", stream)
    assert emulator.launches() == 1


def test_relu_with_bounds(stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    held = Canonical(*compressed(weight))
    epilogue = Epilogue(activation="relu", relu_bounds=(0.5, 6.0))
    call = Call(HALF, HALF, 32, 16, 64, "relu", relu_bounds=(0.5, 6.0))
    chosen = cuda.route_of(call, held, cusparselt.gpu(0))
    output = cuda.linear_sparse(x, held, epilogue, HALF, chosen, call, stream)
    product = linear_reference(x, weight)
    # Values at the threshold may round to either side of it.
    sure = (product - 0.5).abs() > 0.01
    assert_matches(output * sure, product.where(product > 0.5, 0).clamp(max=6) * sure)


# ---- which way --------------------------------------------------------------------------------------

A100, H100 = GPU(80, 108, 801), GPU(90, 132, 801)


def test_decoding_runs_dense(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(7, 64)
    output = cuda.linear(x, *compressed(weight), None, "gelu", stream)
    assert_matches(output, linear_reference(x, weight, None, "gelu"))
    assert emulator.launches() == 0
    assert "7 tokens are fewer than 8" in route.choose(Call(HALF, HALF, 32, 7, 64), A100, False).reason


@pytest.mark.parametrize(
    ("on", "m", "n", "k", "reason"),
    [
        (A100, 4096, 255, 4096, "255 tokens are fewer than 256"),
        (A100, 4096, 256, 4096, ""),
        (A100, 256, 4096, 4096, "a side of 256 is below 512"),
        (H100, 4096, 1023, 4096, "1023 tokens are fewer than 1024"),
        (H100, 4096, 1024, 4096, ""),
        (H100, 4096, 4096, 768, "a side of 768 is below 1024"),
    ],
)
def test_losing_shapes_run_dense_where_a_copy_is_kept(on: GPU, m: int, n: int, k: int, reason: str) -> None:
    call = Call(HALF, HALF, m, n, k)
    kept = route.choose(call, on, True)
    assert (kept.sparse, reason in kept.reason) == (reason == "", True)
    assert route.choose(call, on, False).sparse  # expanding the weight would cost more


def test_measured_figures_decide(emulator: Emulator) -> None:
    on = cusparselt.gpu(0)
    call = Call(HALF, HALF, 64, 1000, 64)
    route.measured[route.measured_key(call, on)] = Measured(Algorithm(2), 30.0, 20.0, 90.0)
    assert route.bucket(1000) == route.bucket(1024) == 1024
    kept = route.choose(call, on, True)
    assert (kept.sparse, kept.reason) == (False, "measured: sparse takes 30.0 us, dense 20.0 us")
    expanded = route.choose(call, on, False)
    assert (expanded.sparse, expanded.algorithm) == (True, Algorithm(2))


def test_a_dense_copy_is_kept_where_it_is_asked_for(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(4, 64)
    operands = compressed(weight)
    weights.keep_dense(*operands, True)
    first = Canonical(*operands).dense(stream)
    assert Canonical(*operands).dense(stream) is first
    assert_matches(cuda.linear(x, *operands, None, "none", stream), linear_reference(x, weight))
    weights.keep_dense(*operands, False)
    assert Canonical(*operands).dense(stream) is not first
    assert emulator.launches() == 0


def test_float32_needs_leave_to_run_as_tf32(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, FLOAT), randn(16, 64, dtype=FLOAT)
    assert_matches(cuda.linear(x, *compressed(weight), None, "none", stream), linear_reference(x, weight))
    assert emulator.launches() == 0
    chosen = cuda.route_of(Call(FLOAT, FLOAT, 32, 16, 64), Canonical(*compressed(weight)), cusparselt.gpu(0))
    assert "set_float32_matmul_precision" in chosen.reason


@pytest.mark.usefixtures("tf32")
def test_float32_that_is_not_1_of_2_runs_dense(emulator: Emulator, stream: EmulatedStream) -> None:
    weight, x = torch.zeros(32, 64), randn(16, 64, dtype=FLOAT)
    weight[:, ::4] = weight[:, 1::4] = 1.5  # 2:4, but both in one pair
    assert_matches(cuda.linear(x, *compressed(weight), None, "none", stream), linear_reference(x, weight))
    assert emulator.launches() == 0
    chosen = cuda.route_of(Call(FLOAT, FLOAT, 32, 16, 64), Canonical(*compressed(weight)), cusparselt.gpu(0))
    assert "one kept weight of every two" in chosen.reason


@pytest.mark.parametrize("driver", [True, False])
def test_without_a_usable_device_products_run_dense(
    driver: bool, emulator: Emulator, stream: EmulatedStream
) -> None:
    if driver:
        emulator.set_sm(75)
    else:
        emulator.set_driver(0)
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    output = cuda.linear(x, *compressed(weight), None, "none", stream)
    assert_matches(output, linear_reference(x, weight))
    image, kernel = randn(2, 16, 5, 5), sparse_weight(32, 16, HALF)
    pointwise = Window((1, 1), (1, 1), (0, 0), (1, 1), 1)
    close(
        cuda.conv2d(image, *compressed(kernel), None, pointwise, "none", stream),
        conv2d_reference(image, kernel.view(32, 16, 1, 1)),
    )
    assert emulator.launches() == 0
    assert ("sm_75" if driver else "no NVIDIA driver is loaded") in cusparselt.why_unavailable(0)
    emulator.reset()  # the refusals of a device that is not there
    emulator.set_deferred(0)


# ---- blobs ------------------------------------------------------------------------------------------


def blobs_of(*operands: Tensor) -> dict[Any, blobs.Blob]:
    return weights.derived_of(*operands).blobs


def test_a_weight_is_compressed_once(emulator: Emulator, stream: EmulatedStream) -> None:
    weight = sparse_weight(32, 64, HALF)
    values, indices = compressed(weight)
    for tokens in (16, 64, 16):
        cuda.linear(randn(tokens, 64), values, indices, None, "none", stream)
    assert len(blobs_of(values, indices)) == 1


def test_a_weight_is_compressed_again_after_it_changed(stream: EmulatedStream) -> None:
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    values, indices = compressed(weight)
    cuda.linear(x, values, indices, None, "none", stream)
    values.mul_(2)
    assert_matches(cuda.linear(x, values, indices, None, "none", stream), linear_reference(x, 2 * weight))


def test_a_weight_is_compressed_again_for_another_algorithm(stream: EmulatedStream) -> None:
    weight, x = sparse_weight(288, 64, HALF), randn(16, 64)
    values, indices = compressed(weight)
    key = route.measured_key(Call(HALF, HALF, 288, 16, 64), cusparselt.gpu(0))
    for id in (0, 1, 2, 3):
        route.measured[key] = Measured(Algorithm(id), 1.0, 0.0, 0.0)
        launch.forget_plans()
        assert_matches(cuda.linear(x, values, indices, None, "none", stream), linear_reference(x, weight))
    assert len(blobs_of(values, indices)) == blobs.BLOBS_OF_A_WEIGHT


def test_blobs_go_with_their_weight(stream: EmulatedStream) -> None:
    values, indices = compressed(sparse_weight(32, 64, HALF))
    key = weights._key_of(values, indices)
    cuda.linear(randn(16, 64), values, indices, None, "none", stream)
    assert key in weights._table
    del values
    weights.derived_of(*compressed(sparse_weight(32, 64, HALF)))  # what is gone is dropped with the next
    assert key not in weights._table


def test_a_state_dict_holds_no_blob(stream: EmulatedStream) -> None:
    layer = SparseLinear.from_weight(sparse_weight(32, 64, HALF))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    cuda.linear(randn(16, 64), *layer._operands()[:2], None, "none", stream)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


def test_another_stream_tells_the_allocator(emulator: Emulator, stream: EmulatedStream) -> None:
    values, indices = compressed(sparse_weight(32, 64, HALF))
    cuda.linear(randn(16, 64), values, indices, None, "none", stream)
    assert stream.recorded == []
    other = emulator.new_stream()
    cuda.linear(randn(16, 64), values, indices, None, "none", other)
    (blob,) = blobs_of(values, indices).values()
    assert [tensor.data_ptr() for tensor in other.recorded] == [blob.data.data_ptr()]
    assert set(blobs._workspaces) == {(0, 0), (0, other.handle)}
    emulator.cuda("StreamDestroy", ctypes.c_void_p(other.handle))


def test_threads_have_their_own_handles(emulator: Emulator) -> None:
    weight, x = sparse_weight(64, 64, HALF), randn(24, 64)
    values, indices = compressed(weight)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            mine = emulator.new_stream()
            for _ in range(5):
                assert_matches(
                    cuda.linear(x, values, indices, None, "none", mine), linear_reference(x, weight)
                )
            emulator.cuda("StreamDestroy", ctypes.c_void_p(mine.handle))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    # A thread's handles go when the thread does, which is a little after join returns.
    deadline = time.monotonic() + 10
    while emulator.live_objects() and time.monotonic() < deadline:
        time.sleep(0.01)


# ---- CUDA graphs ------------------------------------------------------------------------------------


def test_a_captured_call_replays_and_what_is_not_ready_is_refused(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: list[Tensor] = []  # torch's CUDA allocator keeps what a graph uses; that of CPU tensors does not
    unpooled = blobs.workspace
    monkeypatch.setattr(blobs, "workspace", lambda *given: pool.append(unpooled(*given)) or pool[-1])
    mine = emulator.new_stream()
    handle = ctypes.c_void_p(mine.handle)
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    values, indices = compressed(weight)
    cuda.linear(x, values, indices, None, "none", mine)  # the warm-up
    scratch = blobs._workspaces[(0, mine.handle)]
    emulator.cuda("StreamBeginCapture", handle, 2)
    synchronizations = emulator.synchronizations()
    captured = cuda.linear(x, values, indices, None, "none", mine)
    assert pool[-1] is not scratch  # a graph has its own
    assert emulator.synchronizations() == synchronizations
    more = randn(32, 64)
    with pytest.raises(sparse24.Error, match="before the capture"):
        cuda.linear(more, values, indices, None, "none", mine)
    unseen = compressed(sparse_weight(64, 64, HALF))
    _prepare_plans(64, 16, 64, mine)
    with pytest.raises(sparse24.Error, match=r"weight \[64, 64\] has not been compressed .* the capture"):
        cuda.linear(x, *unseen, None, "none", mine)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    emulator.cuda("GraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    emulator.cuda("GraphLaunch", executable, handle)
    assert_matches(captured, linear_reference(x, weight))
    emulator.cuda("GraphExecDestroy", executable)
    emulator.cuda("GraphDestroy", graph)
    emulator.cuda("StreamDestroy", handle)


def _prepare_plans(m: int, n: int, k: int, stream: EmulatedStream) -> None:
    """As if a plan of these sizes were known, so that only the blob is missing."""
    call = Call(HALF, HALF, m, n, k)
    form = route.product(call, "none", Algorithm())
    key = _C.cusparselt_blob_key(0, form)
    launch._plans[(0, call, "none", Algorithm(), k, m, (1, 0, 0))] = blobs.Plan(form, key, 1, 1, 1)


# ---- convolution ------------------------------------------------------------------------------------

WINDOWS = [  # channels, out_channels, kernel, stride, padding, dilation, groups
    (16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (16, 32, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    (16, 32, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (16, 32, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (20, 40, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (6, 24, (2, 3), (1, 2), (0, 1), (2, 1), 1),
    (32, 64, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    (32, 64, (1, 1), (1, 1), (0, 0), (1, 1), 4),
]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [HALF, FLOAT])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.usefixtures("tf32")
def test_conv2d(
    window: tuple[Any, ...],
    dtype: torch.dtype,
    channels_last: bool,
    emulator: Emulator,
    stream: EmulatedStream,
) -> None:
    channels, out_channels, *geometry, groups = window
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = randn(3, channels, 9, 8, dtype=dtype).contiguous(memory_format=layout)
    weight = randn(out_channels, channels // groups, *geometry[0], dtype=FLOAT, seed=3)
    masks.prune_(weight, pattern="1:2" if dtype is FLOAT else "2:4")
    weight, bias = weight.to(dtype), randn(out_channels, dtype=dtype, seed=4)
    operands = compressed(ops.conv_weight_to_matrix(weight))
    output = cuda.conv2d(x, *operands, bias, Window(*geometry, groups), "relu", stream)
    stride, padding, dilation = geometry[1:]
    expected = conv2d_reference(
        x, weight, bias, "relu", stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    close(output, expected)
    assert output.is_contiguous(memory_format=layout)
    assert emulator.launches() >= groups


def test_patches_are_written_for_a_few_images_at_a_time(
    emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = randn(5, 16, 8, 8), randn(32, 16, 3, 3, dtype=FLOAT)
    masks.prune_(weight)
    operands = compressed(ops.conv_weight_to_matrix(weight.half()))
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 1)
    monkeypatch.setattr(cuda, "IM2COL_BYTES", 2 * 64 * 144 * 2)
    output = cuda.conv2d(x, *operands, None, window, "none", stream)
    assert_matches(output, conv2d_reference(x, weight.half(), padding=1))
    assert emulator.launches() == 3


def test_groups_of_no_legal_size_run_dense(emulator: Emulator, stream: EmulatedStream) -> None:
    x, weight = randn(2, 16, 6, 6), randn(24, 8, 3, 3, dtype=FLOAT)
    masks.prune_(weight)
    values, indices = compressed(ops.conv_weight_to_matrix(weight.half()))
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 2)
    output = cuda.conv2d(x, values, indices, None, window, "none", stream)
    assert_matches(output, conv2d_reference(x, weight.half(), padding=1, groups=2))
    assert emulator.launches() == 0
    call = cuda.conv2d_call(x, len(values), window, (6, 6), HALF, Epilogue())
    reason = cuda.conv2d_route(call, Canonical(values, indices), window, cusparselt.gpu(0)).reason
    assert reason == "12 output channels in each of 2 groups are no legal size; nearest: 16"


# ---- 8-bit operands ---------------------------------------------------------------------------------

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
PAIRS = [(dtype, out) for dtype, outs in scaled.OUT_DTYPES.items() for out in outs]


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("scales", [True, False], ids=["scale", "no scale"])
@pytest.mark.parametrize(("dtype", "out_dtype"), PAIRS, ids=str)
def test_scaled_linear(
    dtype: torch.dtype, out_dtype: torch.dtype, scales: bool, activation: str, emulator: Emulator
) -> None:
    stream = EmulatedStream()
    if dtype in FP8:
        emulator.set_sm(90)
        launch.forget()
    m, n, k = 64, 37, 70
    x, weight = eight_bit(n, k, dtype=dtype), eight_bit(m, k, dtype=dtype, seed=1, sparse=True)
    scale = torch.rand(m, generator=torch.Generator().manual_seed(2)) / 16 if scales else None
    bias = torch.randint(-3, 4, (m,), generator=torch.Generator().manual_seed(3)).float()
    operands = (x, *compressed(weight), scale, bias, out_dtype)
    output = cuda_scaled.scaled_linear(*operands, activation, stream)
    expected = scaled.scaled_linear_torch(*operands, activation)
    assert output.dtype is out_dtype
    if out_dtype.is_floating_point:
        # float32 sums in another order, and GELU of a rounded float16
        assert relative_error(output, expected) <= 2e-3 if out_dtype is not BF16 else 1e-2
    else:
        # Half-way cases fall to either side where float32 and float64 differ in the last bit.
        assert int((output.int() - expected.int()).abs().max()) <= (0 if not scales else 1)
    assert emulator.launches() == 2


def test_int8_convolution_is_exact(emulator: Emulator, stream: EmulatedStream) -> None:
    x = eight_bit(2, 32, 7, 7, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    weight = eight_bit(64, 16, 3, 3, dtype=FLOAT, seed=5)
    masks.prune_(weight)
    weight = weight.to(torch.int8)
    operands = compressed(ops.conv_weight_to_matrix(weight))
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 2)
    output = cuda_scaled.scaled_conv2d(x, *operands, None, None, torch.int32, window, "none", stream)
    expected = F.conv2d(x.double(), weight.double(), padding=1, groups=2)
    assert torch.equal(output.double(), expected)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert emulator.launches() == 4  # two groups, and the last tokens of each


def test_8_bit_products_without_a_device_run_in_torch(emulator: Emulator, stream: EmulatedStream) -> None:
    emulator.set_driver(0)
    x, weight = eight_bit(9, 64, dtype=torch.int8), eight_bit(32, 64, dtype=torch.int8, sparse=True)
    operands = (x, *compressed(weight), None, None, torch.int32)
    assert torch.equal(
        cuda_scaled.scaled_linear(*operands, "none", stream).double(), x.double() @ weight.double().t()
    )
    window = Window((1, 1), (1, 1), (0, 0), (1, 1), 1)
    image = x.view(1, 9, 8, 8)[:, :8].contiguous()
    kernel = eight_bit(32, 8, dtype=torch.int8, sparse=True)
    output = cuda_scaled.scaled_conv2d(
        image, *compressed(kernel), None, None, torch.int32, window, "none", stream
    )
    assert torch.equal(output.double(), F.conv2d(image.double(), kernel.double().view(32, 8, 1, 1)))
    emulator.reset()
    emulator.set_deferred(0)


def test_fp8_needs_a_gpu_that_has_it(emulator: Emulator, stream: EmulatedStream) -> None:
    x = eight_bit(16, 64, dtype=FP8[0])
    weight = eight_bit(32, 64, dtype=FP8[0], sparse=True)
    operands = (x, *compressed(weight), None, None, HALF)
    output = cuda_scaled.scaled_linear(*operands, "none", stream)  # sm_86: in torch
    assert torch.equal(output, scaled.scaled_linear_torch(*operands))
    assert emulator.launches() == 0
    chosen = route.choose(Call(FP8[0], HALF, 32, 16, 64), cusparselt.gpu(0), False)
    assert "needs an sm_89 GPU" in chosen.reason


# ---- the schemas of 8-bit operators, on any device ---------------------------------------------------


@pytest.mark.parametrize("out_dtype", scaled.OUT_DTYPES[torch.int8], ids=str)
def test_scaled_operators_are_well_formed(out_dtype: torch.dtype) -> None:
    x, weight = eight_bit(3, 40, dtype=torch.int8), eight_bit(8, 40, dtype=torch.int8, sparse=True)
    values, indices = compressed(weight)
    scale = torch.full((8,), 0.25)
    torch.library.opcheck(
        torch.ops.sparse24.scaled_linear.default, (x, values, indices, scale, None, out_dtype, "relu")
    )
    image = eight_bit(2, 40, 4, 4, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(
        torch.ops.sparse24.scaled_conv2d.default, (image, values, indices, scale, None, out_dtype, (1, 1))
    )
    torch.library.opcheck(torch.ops.sparse24.quantize_per_token.default, (randn(2, 3, 8),))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"activation": "swish"}, ValueError, "'swish' is not one of"),
        ({"input": torch.zeros(3, 40)}, TypeError, "float32, float16 and bfloat16 are for linear"),
        (
            {"out_dtype": torch.float32},
            TypeError,
            "int8 gives int8, int32, float16, bfloat16, not torch.float32",
        ),
        ({"scale": torch.zeros(7)}, ValueError, r"scale must be float32 \[8\], not torch.float32 \(7,\)"),
        ({"bias": torch.zeros(8, dtype=HALF)}, ValueError, r"bias must be float32 \[8\], not torch.float16"),
        ({"input": torch.zeros(3, 64, dtype=torch.int8)}, ValueError, "K = 40 columns"),
        ({"values": torch.zeros(20, dtype=torch.int8)}, ValueError, "must be .rows, K/2. and .rows, K/8."),
    ],
    ids=str,
)
def test_scaled_linear_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    values, indices = compressed(eight_bit(8, 40, dtype=torch.int8, sparse=True))
    given = {
        "input": eight_bit(3, 40, dtype=torch.int8), "values": values, "indices": indices, "scale": None,
        "bias": None, "out_dtype": torch.int8, "activation": "none",
    }  # fmt: skip
    with pytest.raises(error, match=text):
        torch.ops.sparse24.scaled_linear(*{**given, **change}.values())


def test_scaled_conv2d_refuses_another_kernel() -> None:
    values, indices = compressed(eight_bit(8, 40, dtype=torch.int8, sparse=True))
    image = eight_bit(1, 40, 4, 4, dtype=torch.int8)
    with pytest.raises(ValueError, match="needs K = 360 columns"):
        torch.ops.sparse24.scaled_conv2d(image, values, indices, None, None, torch.int8, (3, 3))


@pytest.mark.parametrize("dtype", [FLOAT, HALF, BF16])
def test_quantize_per_token(dtype: torch.dtype) -> None:
    x = randn(3, 5, 33, dtype=dtype)
    x[0, 0] = 0
    x[0, 1, 3] = float("nan")
    x[0, 2, 4] = float("inf")
    x[0, 3] = 127 * 2**-3
    quantized, scale = torch.ops.sparse24.quantize_per_token(x)
    assert (quantized.dtype, scale.dtype, scale.shape) == (torch.int8, FLOAT, (3, 5))
    assert (quantized[0, 0] == 0).all()
    assert scale[0, 0] == 1
    assert scale[0, 1:3].isnan().all()
    assert (quantized[0, 1:3] == 0).all()
    assert (quantized[0, 3] == 127).all()
    finite = x.double()[1:]
    assert (scale[1:] - finite.abs().amax(-1) / 127).abs().max() <= 1e-7
    off = (quantized[1:] * scale[1:].double().unsqueeze(-1) - finite).abs() / scale[1:].unsqueeze(-1)
    assert off.max() <= 0.5 + 1e-4
    turned = x[1:].transpose(0, 1)
    assert torch.equal(torch.ops.sparse24.quantize_per_token(turned)[0], quantized[1:].transpose(0, 1))


def test_quantize_per_token_refuses() -> None:
    with pytest.raises(ValueError, match="not a scalar"):
        torch.ops.sparse24.quantize_per_token(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"not torch.int8"):
        torch.ops.sparse24.quantize_per_token(torch.zeros(3, dtype=torch.int8))


# ---- registration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cuda_ops.KERNELS)
def test_cuda_kernels_take_what_their_schema_says(name: str) -> None:
    schema = getattr(torch.ops.sparse24, name).default._schema
    *parameters, stream = inspect.signature(cuda_ops.KERNELS[name]).parameters.values()
    assert stream.name == "stream"
    assert [p.name for p in parameters] == [a.name for a in schema.arguments]
    for parameter, argument in zip(parameters, schema.arguments, strict=True):
        if argument.has_default_value():
            default = argument.default_value
            assert parameter.default == (tuple(default) if isinstance(default, list) else default)
        else:
            assert parameter.default is inspect.Parameter.empty
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"sparse24::{name}", "CUDA")


def test_cuda_kernels_run_on_a_stream(
    emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_ops.device_kernels, "BUILT", False)  # the emulator runs no kernels: torch does
    weight, x = sparse_weight(32, 64, HALF), randn(16, 64)
    values, indices = cuda_ops.KERNELS["compress"](weight, stream=stream)
    assert torch.equal(cuda_ops.KERNELS["decompress"](values, indices, stream=stream), weight)
    output = cuda_ops.KERNELS["linear"](x, values, indices, stream=stream)
    assert_matches(output, linear_reference(x, weight))
    image = randn(2, 64, 4, 4)
    pointwise = cuda_ops.KERNELS["conv2d"](image, values, indices, None, (1, 1), stream=stream)
    close(pointwise, conv2d_reference(image, weight.view(32, 64, 1, 1)))
    eight, eights = (
        eight_bit(16, 64, dtype=torch.int8),
        compressed(eight_bit(32, 64, dtype=torch.int8, sparse=True)),
    )
    sums = cuda_ops.KERNELS["scaled_linear"](eight, *eights, None, None, torch.int32, stream=stream)
    assert torch.equal(sums, scaled.scaled_linear_torch(eight, *eights, None, None, torch.int32))
    picture = eight.view(1, 64, 4, 4)
    sums = cuda_ops.KERNELS["scaled_conv2d"](picture, *eights, None, None, torch.int32, (1, 1), stream=stream)
    assert torch.equal(sums, scaled.scaled_conv2d_torch(picture, *eights, None, None, torch.int32, (1, 1)))
    quantized, _ = cuda_ops.KERNELS["quantize_per_token"](x, stream=stream)
    assert torch.equal(quantized, torch.ops.sparse24.quantize_per_token(x)[0])
    assert emulator.launches() == 4


# ---- tracing for a GPU that is not there -------------------------------------------------------------


def test_shapes_and_layouts_of_cuda_tensors_are_known_to_compilers() -> None:
    with FakeTensorMode():
        layer = SparseLinear(50, 40, dtype=HALF, device="cuda")
        conv = SparseConv2d(16, 24, 3, stride=2, padding=1, dtype=HALF, device="cuda")
        output = layer(torch.empty(3, 7, 50, dtype=HALF, device="cuda"))
        assert (output.shape, output.device.type, output.is_contiguous()) == ((3, 7, 40), "cuda", True)
        for layout in (torch.contiguous_format, torch.channels_last):
            image = torch.empty(2, 16, 9, 9, dtype=HALF, device="cuda", memory_format=layout)
            pixels = conv(image)
            assert pixels.shape == (2, 24, 5, 5)
            assert pixels.is_contiguous(memory_format=layout)


def test_a_model_of_cuda_layers_is_exported() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = torch.nn.Sequential(
            SparseLinear(64, 128, dtype=HALF, device="cuda", activation="relu"),
            SparseLinear(128, 32, dtype=HALF, device="cuda"),
        )
        exported = torch.export.export(model, (torch.empty(16, 64, dtype=HALF, device="cuda"),))
    called = [node.target for node in exported.graph.nodes if "sparse24" in str(node.target)]
    assert called == [torch.ops.sparse24.linear.default] * 2
