"""Calls of a layer on a GPU that are repeated without Python, what ends that, and what the host pays. On the
emulator.

Passing here is not validation on a GPU. Over 300 lines: what is repeated, and each thing that ends it.
"""

from __future__ import annotations

import copy
import ctypes
import pickle
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from emulated import BF16, FLOAT, HALF, EmulatedStream, Emulator, randn, sparse_weight
from own_forms import (
    FEW,
    MANY,
    K,
    M,
    check,
    forms,
    held_bytes,
    is_away,
    new_layer,
    repeated,
    run,
    wait_for_handles,
)
from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import SparseConv2d, SparseLinear, masks
from sparse24.commands.validate.layers import frames_of
from sparse24.nn import on_device
from sparse24.ops.cuda import repeats, route

pytestmark = pytest.mark.usefixtures("on_emulator")


def expected(x: Tensor, layer: SparseLinear, factor: float = 1, activation: str = "none") -> Tensor:
    bias = layer.__dict__["_parameters"]["bias"]
    return linear_reference(x, factor * sparse_weight(M, K, x.dtype), bias, activation)


def warm_layer(dtype: torch.dtype = HALF, tokens: int = MANY) -> tuple[SparseLinear, Tensor]:
    """A layer that has run so many tokens, and will repeat that."""
    layer, x = new_layer(dtype=dtype), randn(tokens, K, dtype=dtype)
    assert layer._on_device(x) is not None
    assert repeated(layer, x) is not None
    return layer, x


# ---- what is repeated --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_second_call_is_a_launch_and_no_more(
    dtype: torch.dtype, bias: bool, activation: str, emulator: Emulator, compressions: list[Any]
) -> None:
    layer = new_layer(dtype=dtype, bias=bias)
    layer.activation = activation
    for seed, shape in enumerate([(MANY,), (4, 8), (2, 4, 4), (1, MANY)]):
        x = randn(*shape, K, dtype=dtype, seed=seed)
        output = run(layer, x) if seed == 0 else repeated(layer, x)
        assert output is not None
        assert output.shape == (*shape, M)
        assert output.dtype is dtype
        assert_matches(output, expected(x, layer, activation=activation))
    assert emulator.launches() == 4
    assert compressions == [(0, M)]


def test_a_layers_call_takes_it(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = warm_layer()
    monkeypatch.setattr(SparseLinear, "_general", lambda self, input: pytest.fail("the long way"))
    before = emulator.launches()
    assert_matches(layer(x), expected(x, layer))
    assert emulator.launches() == before + 1


def test_ragged_tokens_are_two_launches_or_go_the_long_way(emulator: Emulator) -> None:
    layer = SparseLinear.from_weight(sparse_weight(16, K, HALF))
    overlapping, padded = randn(1001, K), randn(9, K)
    for x, launches in ((overlapping, 2), (padded, None)):
        run(layer, x)
        before = emulator.launches()
        output = repeated(layer, x)
        assert (output is None) == (launches is None)
        if output is not None:
            assert_matches(output, linear_reference(x, sparse_weight(16, K, HALF)))
            assert emulator.launches() == before + 2


def test_what_torch_has_to_follow_up_goes_the_long_way() -> None:
    layer = new_layer()
    layer.activation = "gelu"  # of erf: the library has that of tanh
    x = randn(MANY, K)
    for _ in range(2):
        assert repeated(layer, x) is None
        assert_matches(run(layer, x), expected(x, layer, activation="gelu"))
    padded = SparseLinear.from_weight(sparse_weight(37, 93, HALF))
    run(padded, randn(MANY, 93))
    assert repeated(padded, randn(MANY, 93)) is None


def test_float32_goes_the_long_way_for_what_torch_is_told_of_tf32() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        layer, x = new_layer(dtype=FLOAT), randn(MANY, K, dtype=FLOAT)
        run(layer, x)
        assert is_away(layer)
        assert repeated(layer, x) is None
    finally:
        torch.set_float32_matmul_precision(before)


def test_many_counts_are_kept_and_more_begin_anew() -> None:
    layer = new_layer()
    for tokens in range(8, 8 + 8 * 70, 8):
        check(layer, sparse_weight(M, K, HALF), tokens)
        assert repeated(layer, randn(tokens, K)) is not None
    assert 0 < len(layer.__dict__["_launches"]) <= 64


# ---- what ends it ------------------------------------------------------------------------------------


def _mul(layer: SparseLinear) -> None:
    layer.values.mul_(2)


def _mul_data(layer: SparseLinear) -> None:
    layer.values.data.mul_(2)


def _load(layer: SparseLinear) -> None:
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.load_state_dict({**state, "values": state["values"] * 2})


def _replace(layer: SparseLinear) -> None:
    layer.values = nn.Parameter(layer.values * 2, requires_grad=False)


def _assign(layer: SparseLinear) -> None:
    layer.weight = 2 * layer.weight


@pytest.mark.parametrize("write", [_mul, _mul_data, _load, _replace, _assign])
def test_a_write_is_never_missed(write: Callable[[SparseLinear], None]) -> None:
    layer, x = warm_layer()
    write(layer)
    assert repeated(layer, x) is None
    assert_matches(run(layer, x), expected(x, layer, 2))
    run(layer, x)
    assert_matches(run(layer, x), expected(x, layer, 2))


def test_a_tensor_in_hand_may_be_written_at_any_time() -> None:
    layer, x = warm_layer()
    held = layer.values
    for factor in (2, 4, 8):
        held.mul_(2)
        assert repeated(layer, x) is None
        assert_matches(run(layer, x), expected(x, layer, factor))
    del held
    run(layer, x)
    assert repeated(layer, x) is not None


def test_a_bias_is_read_at_every_call() -> None:
    layer, x = warm_layer()
    layer.__dict__["_parameters"]["bias"].add_(3)
    output = repeated(layer, x)
    assert output is not None
    assert_matches(output, expected(x, layer))
    for bias in (randn(M, seed=9), None, randn(M, seed=10)):
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        assert_matches(run(layer, x), linear_reference(x, sparse_weight(M, K, HALF), bias))
    run(layer, x)
    shifted = nn.Parameter(randn(M + 1)[1:], requires_grad=False)  # no multiple of 16 bytes
    dict.__setitem__(layer.__dict__["_parameters"], "bias", shifted)
    assert repeated(layer, x) is None
    assert_matches(run(layer, x), expected(x, layer))


def test_another_activation_is_another_launch() -> None:
    layer, x = warm_layer()
    for activation in ("relu", "none", "relu"):
        layer.activation = activation
        assert repeated(layer, x) is None
        for _ in range(2):
            assert_matches(run(layer, x), expected(x, layer, activation=activation))


def test_figures_a_dense_copy_and_another_library_are_followed() -> None:
    layer, x = warm_layer()
    route.forget()
    assert repeated(layer, x) is None
    run(layer, x)
    assert repeated(layer, x) is not None
    sparse24.keep_dense(layer)
    assert repeated(layer, x) is None
    sparse24.keep_dense(layer, keep=False)
    run(layer, x)
    assert repeated(layer, x) is not None


def test_a_move_and_a_cast_are_followed() -> None:
    layer, x = warm_layer()
    layer.to(BF16)
    assert "_launches" not in layer.__dict__
    assert_matches(
        run(layer, x.to(BF16)), linear_reference(x.to(BF16), sparse_weight(M, K, HALF).to(BF16), layer.bias)
    )
    layer, x = warm_layer()
    launches = layer.__dict__["_launches"]
    forms(layer).be_on(torch.device("meta"))
    assert len(launches) == 0
    layer, x = warm_layer()
    layer.to_int8()
    assert repeated(layer, x) is None


def test_memory_of_a_form_that_is_freed_is_not_held() -> None:
    layer, x = warm_layer()
    forms(layer).keep_only([], False, True, on_device.current_stream(x))
    assert len(layer.__dict__["_launches"]) == 0
    assert held_bytes(layer).blobs == 0


def test_copies_have_none_of_their_own() -> None:
    layer, x = warm_layer()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.__dict__.get("_launches") is None
        other.values.mul_(2)
        assert_matches(run(other, x), expected(x, layer, 2))
    layer, x = warm_layer()
    replica = copy.copy(layer)
    replica._parameters = dict(layer._parameters)
    replica._buffers = dict(layer._buffers)
    run(layer, x)
    assert repeated(replica, x) is None
    assert_matches(run(replica, x), expected(x, layer))


# ---- who has to see the call -------------------------------------------------------------------------


def test_whoever_listens_sees_the_call() -> None:
    layer, x = warm_layer()
    watched = x.clone().requires_grad_()
    assert repeated(layer, watched) is None
    with torch.no_grad():
        assert repeated(layer, watched) is not None
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert repeated(layer, x) is None
    with torch.overrides.TorchFunctionMode():
        assert repeated(layer, x) is None
    with torch._subclasses.FakeTensorMode() as mode:
        assert repeated(layer, mode.from_tensor(x)) is None
    assert torch.func.vmap(lambda row: torch.ones(()) * (repeated(layer, row) is None))(x).all()
    with torch.profiler.profile():
        assert repeated(layer, x) is None
    assert repeated(layer, nn.Parameter(x, requires_grad=False)) is None
    assert repeated(layer, x) is not None
    layer.__dict__["_parameters"]["bias"].requires_grad_()
    assert repeated(layer, x) is None


def test_autocast_is_followed() -> None:
    layer, x = warm_layer()
    with torch.autocast("cpu", BF16):
        assert repeated(layer, x) is None
        assert run(layer, x).dtype is BF16
        assert repeated(layer, x) is None
    with torch.autocast("cpu", HALF):  # what the layer computes in anyway
        output = repeated(layer, x)
        assert output is not None
        assert_matches(output, expected(x, layer))
        assert repeated(layer, x.float()) is None
    fresh = new_layer()
    with torch.autocast("cpu", HALF):
        run(fresh, x)
        assert repeated(fresh, x) is not None
    assert repeated(fresh, x) is not None


def test_inputs_that_do_not_lie_as_before() -> None:
    layer, x = warm_layer()
    wide = randn(MANY, K + 8)
    others = {
        "rows apart": wide[:, :K],
        "misaligned": randn(MANY * K + 1)[1:].view(MANY, K),
        "columns apart": randn(K, MANY).t(),
        "another count": randn(MANY + 8, K),
    }
    for name, other in others.items():
        assert repeated(layer, other) is None, name
        assert_matches(run(layer, other), expected(other, layer))
    for bad in (
        randn(MANY, K + 8),
        randn(MANY, K, dtype=BF16),
        randn(K),
        torch.empty(MANY, K, device="meta"),
    ):
        assert repeated(layer, bad) is None
    assert repeated(layer, x) is not None


def test_each_stream_has_its_own(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = warm_layer()
    other = emulator.new_stream()
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: other)
    assert repeated(layer, x) is None
    run(layer, x)
    (blob,) = forms(layer)._derived.blobs.values()
    assert other.recorded == [blob.data.data_ptr()]  # torch's allocator was told
    assert repeated(layer, x) is not None
    emulator.cuda("StreamDestroy", ctypes.c_void_p(other.handle))


def test_a_capture_goes_the_long_way(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to note what the graph reads, which lives as long as the layer from then on."""
    mine = emulator.new_stream()
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: mine)
    layer, x = warm_layer()
    assert repeated(layer, x) is not None
    handle, graph = ctypes.c_void_p(mine.handle), ctypes.c_void_p()
    emulator.cuda("StreamBeginCapture", handle, 2)
    assert repeated(layer, x) is None
    assert not forms(layer)._derived.is_captured
    output = layer._on_device(x)
    assert output is not None
    assert forms(layer)._derived.is_captured
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    emulator.cuda("GraphDestroy", graph)
    assert repeated(layer, x) is not None
    emulator.cuda("StreamDestroy", handle)


def test_another_current_device_goes_the_long_way(emulator: Emulator) -> None:
    emulator.set_device_count(2)
    layer, x = warm_layer()
    emulator.cuda("SetDevice", 1)
    assert repeated(layer, x) is None
    emulator.cuda("SetDevice", 0)
    assert repeated(layer, x) is not None


def test_a_launch_that_fails_is_left_to_the_long_way(emulator: Emulator) -> None:
    layer, x = warm_layer()
    calls = emulator.calls()
    assert repeated(layer, x) is not None
    emulator.fail_at(emulator.calls() - calls, 4)  # the library's call is the last
    assert repeated(layer, x) is None
    assert len(layer.__dict__["_launches"]) == 0
    assert_matches(run(layer, x), expected(x, layer))
    assert repeated(layer, x) is not None


def test_other_threads_repeat_with_plans_of_their_own(emulator: Emulator) -> None:
    layer, x = warm_layer()
    reference, errors = expected(x, layer), []

    def work() -> None:
        try:
            for _ in range(50):
                output = repeated(layer, x)
                assert output is not None
                assert_matches(output, reference)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    wait_for_handles(emulator)


def test_few_tokens_between_leave_it_alone() -> None:
    layer, x = warm_layer()
    check(layer, sparse_weight(M, K, HALF), FEW)
    output = repeated(layer, x)
    assert output is not None
    assert_matches(output, expected(x, layer))


# ---- what the host pays ------------------------------------------------------------------------------


def test_a_call_enters_few_python_functions(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        repeats, "ask_stream", int
    )  # torch's own is no Python function either; here: stream 0
    layer, x = warm_layer()
    launches = emulator.launches()
    frames = frames_of(lambda: layer(x))
    assert emulator.launches() == launches + 1
    assert frames <= 12
    assert frames_of(lambda: layer._on_device(x)) > 12  # the long way


def seconds_in_turns(
    works: list[Callable[[], object]], rounds: int = 40, calls: int = 100
) -> list[list[float]]:
    """Times of one call of each, by rounds."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, own in zip(works, times, strict=True):
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            own.append((time.perf_counter() - begin) / calls)
    return times


def test_a_call_costs_its_host_what_a_small_dense_layer_does(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own call left out: it answers at once."""
    monkeypatch.setattr(repeats, "ask_stream", int)
    layer, x = warm_layer()
    dense, small = nn.Linear(8, 8), torch.randn(MANY, 8)
    emulator.set_idle(1)
    with torch.no_grad():
        ratios = []
        for _ in range(5):  # a neighbour that wakes up between two turns is no news
            own, rival = seconds_in_turns([lambda: layer(x), lambda: dense(small)])
            ratios.append(statistics.median(own) / statistics.median(rival))
            if ratios[-1] <= 1.2:
                break
    assert min(ratios) <= 1.2
    emulator.set_idle(0)
    assert repeated(layer, x) is not None  # it was the launch that was timed
    assert isinstance(on_device.current_stream(x), EmulatedStream)


# ---- convolutions ------------------------------------------------------------------------------------


def _conv(kernel: int = 1, stride: int = 1, groups: int = 1) -> tuple[SparseConv2d, nn.Conv2d]:
    dense = nn.Conv2d(32, 64, kernel, stride, padding=kernel // 2, groups=groups, dtype=HALF)
    masks.prune_(dense.weight.data)
    return SparseConv2d.from_dense(dense), dense


def _images(*size: int, seed: int = 1) -> Tensor:
    return randn(*size, seed=seed).contiguous(memory_format=torch.channels_last)


def test_a_1x1_convolution_of_pixels_is_repeated(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, dense = _conv()
    layer.activation = "relu"
    for seed, size in enumerate([(2, 32, 4, 6), (2, 32, 6, 4), (3, 32, 4, 4)]):
        x = _images(*size, seed=seed)
        output = run(layer, x) if seed == 0 else repeated(layer, x)
        assert output is not None
        assert_matches(output, conv2d_reference(x, dense.weight, dense.bias).relu())
        assert output.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(SparseConv2d, "_general", lambda self, input: pytest.fail("the long way"))
    before = emulator.launches()
    layer(x)
    assert emulator.launches() == before + 1
    assert frames_of(lambda: layer(x)) <= 12


def test_other_convolutions_and_layouts_go_the_long_way() -> None:
    layer, dense = _conv()
    x = _images(2, 32, 4, 6)
    run(layer, x)
    assert repeated(layer, x) is not None
    for other in (x.contiguous(), x[:, :, :2], _images(1, 32, 4, 6)):
        assert repeated(layer, other) is None
        assert_matches(run(layer, other), conv2d_reference(other, dense.weight, dense.bias))
    assert repeated(layer, torch.randn(48, 32).half()) is None
    layer._window = (*layer._window[:8], 1)  # an equal window is another one
    assert repeated(layer, x) is None
    run(layer, x)
    assert repeated(layer, x) is not None
    layer.values.mul_(2)
    assert repeated(layer, x) is None
    assert_matches(run(layer, x), conv2d_reference(x, 2 * dense.weight, dense.bias))


@pytest.mark.usefixtures("patches_gain")
@pytest.mark.parametrize("geometry", [(3, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_convolutions_that_copy_or_have_groups_are_not_noted(geometry: tuple[int, int, int]) -> None:
    layer, dense = _conv(*geometry)
    x = _images(2, 32, 4, 6)
    for _ in range(2):
        expected = conv2d_reference(
            x, dense.weight, dense.bias, stride=geometry[1], padding=geometry[0] // 2, groups=geometry[2]
        )
        assert_matches(run(layer, x), expected)
        assert repeated(layer, x) is None
