"""The operators: contracts with torch (opcheck, compile, export, autocast), the panel cache, threads."""

from __future__ import annotations

import gc
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from reference import (
    ACTIVATIONS,
    TOLERANCE,
    assert_matches,
    conv2d_reference,
    linear_reference,
    prune_layers,
    relative_error,
)
from sparse24 import SparseConv2d, SparseLinear, ops

DTYPES = list(TOLERANCE)
MACHINE = platform.machine().lower().replace("aarch64", "arm64")
sparse = torch.ops.sparse24


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every weight packed while the test runs."""
    calls: list[int] = []
    pack = ops.panels._C.pack

    def counted(*args: Any) -> None:
        calls.append(args[3])
        pack(*args)

    monkeypatch.setattr(ops.panels._C, "pack", counted)
    return calls


def pruned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(*shape)
    return (weight * sparse24.magnitude_mask(weight)).to(dtype)


def compressed_linear(
    rows: int, columns: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, values, indices, bias."""
    weight = pruned(rows, columns, dtype=dtype)
    return weight, *sparse.compress(weight), torch.randn(rows).to(dtype)


def compressed_conv(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = pruned(*shape, dtype=dtype)
    return weight, *sparse.compress(ops.conv_weight_to_matrix(weight)), torch.randn(shape[0]).to(dtype)


# ---- contracts with torch ---------------------------------------------------------------------------


def linear_arguments() -> tuple[Any, ...]:
    _, values, indices, bias = compressed_linear(6, 20)
    return torch.randn(3, 20), values, indices, bias, "relu"


def conv_arguments() -> tuple[Any, ...]:
    _, values, indices, bias = compressed_conv(6, 5, 3, 3)
    return torch.randn(2, 10, 7, 7), values, indices, bias, [3, 3], [2, 1], [1, 1], [1, 1], 2


def int8_arguments(*shape: int) -> tuple[Any, ...]:
    """An int8 input, a compressed int8 weight [8, 40], a scale and a bias, to float16."""
    weight = pruned(8, 40).mul(20).to(torch.int8)
    input = torch.randint(-9, 10, shape, dtype=torch.int8)
    return (input, *sparse.compress(weight), torch.rand(8), torch.randn(8), torch.float16)


OPERATORS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "nm_mask": lambda: (torch.randn(4, 10), 2, 4, 1),
    "prune_": lambda: (torch.randn(4, 10), 2, 4, 0),
    "transposable_mask": lambda: (torch.randn(8, 12),),
    "compress": lambda: (pruned(4, 10),),
    "decompress": lambda: sparse.compress(pruned(4, 10)),
    "linear": linear_arguments,
    "conv2d": conv_arguments,
    "scaled_linear": lambda: int8_arguments(3, 40),
    "scaled_conv2d": lambda: (*int8_arguments(2, 40, 4, 4), (1, 1)),
    "quantize_per_token": lambda: (torch.randn(2, 3, 10),),
}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_opcheck(name: str) -> None:
    results = torch.library.opcheck(getattr(sparse, name).default, OPERATORS[name]())
    assert set(results.values()) == {"SUCCESS"}


def test_every_operator_is_checked() -> None:
    registered = {
        n.removeprefix("sparse24::") for n in torch._C._dispatch_get_all_op_names() if "sparse24::" in n
    }
    assert registered == set(OPERATORS)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_fake_convolution_has_the_strides_of_the_real_one(channels_last: bool) -> None:
    input, *rest = conv_arguments()
    if channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = sparse.conv2d(mode.from_tensor(input), *rest)
    real = sparse.conv2d(input, *rest)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2, padding="same"),
        nn.Flatten(),
        nn.Linear(8 * 20, 9),
    )
    return prune_layers(model).eval()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_takes_the_whole_graph_and_packs_once(backend: str, packs: list[int]) -> None:
    model = network()
    x = torch.randn(3, 6, 4, 5)
    expected = model(x)
    assert not sparse24.to_sparse(model).left
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(4):
        with torch.no_grad():
            assert_matches(compiled(x), expected)
    assert len(packs) == 3
    with torch.no_grad():
        assert_matches(model(x), expected)
    assert len(packs) == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_gradients_are_the_eager_ones() -> None:
    model = prune_layers(nn.Sequential(nn.Linear(20, 8), nn.GELU(), nn.Linear(8, 4)))
    sparse24.to_sparse(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        x = torch.linspace(-1, 1, 60).view(3, 20).requires_grad_()
        run(x).square().sum().backward()
        gradients.append(x.grad)
    assert_matches(gradients[1], gradients[0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_keeps_the_operators_and_packs_once(tmp_path: Any, packs: list[int]) -> None:
    model = network()
    x = torch.randn(3, 6, 4, 5)
    expected = model(x)
    sparse24.to_sparse(model)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    targets = [str(node.target) for node in loaded.graph.nodes if node.op == "call_function"]
    assert targets.count("sparse24.conv2d.default") == 2
    assert targets.count("sparse24.linear.default") == 1
    assert not packs
    run = loaded.module()
    for rows in (3, 1, 2):
        assert_matches(run(x[:rows]), expected[:rows])
    assert len(packs) == 3
    with pytest.raises(AssertionError, match=r"batch|shape|Guard"):
        run(torch.randn(3, 5, 4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_autocast_computes_in_the_weights_dtype(weight_dtype: torch.dtype, dtype: torch.dtype) -> None:
    linear = SparseLinear.from_dense(prune_layers(nn.Linear(20, 6, dtype=weight_dtype)))
    conv = SparseConv2d.from_dense(prune_layers(nn.Conv2d(6, 4, 3, dtype=weight_dtype)))
    for input_dtype in (torch.float32, dtype):
        x, image = torch.randn(3, 20).to(input_dtype), torch.randn(2, 6, 5, 5).to(input_dtype)
        with torch.autocast("cpu", dtype):
            outputs = linear(x), conv(image)
        expected = (
            linear_reference(x.to(weight_dtype), linear.weight, linear.bias),
            conv2d_reference(image.to(weight_dtype), conv.weight, conv.bias),
        )
        for output, reference in zip(outputs, expected, strict=True):
            assert output.dtype == dtype
            assert relative_error(output, reference) <= TOLERANCE[dtype] + TOLERANCE[weight_dtype]
    with torch.autocast("cpu", enabled=False):
        assert linear(torch.randn(3, 20).to(weight_dtype)).dtype == weight_dtype


# ---- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_plain_torch_bodies_agree_with_the_kernels(dtype: torch.dtype, activation: str) -> None:
    _, values, indices, bias = compressed_linear(9, 30, dtype)
    x = torch.randn(5, 30).to(dtype)
    arguments = (x, values, indices, bias, activation)
    assert relative_error(ops.linear_torch(*arguments), sparse.linear(*arguments)) <= 2 * TOLERANCE[dtype]
    _, values, indices, bias = compressed_conv(8, 6, 3, 2, dtype=dtype)
    image = torch.randn(2, 12, 6, 7).to(dtype)
    arguments = (image, values, indices, bias, (3, 2), (1, 2), (1, 0), (1, 1), 2, activation)
    assert relative_error(ops.conv2d_torch(*arguments), sparse.conv2d(*arguments)) <= 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8, 9, 15, 16, 17, 40, 113, 257])
def test_linear_over_token_counts(tokens: int) -> None:
    weight, values, indices, bias = compressed_linear(71, 150)
    x = torch.randn(tokens, 150)
    assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))


@pytest.mark.parametrize("shape", [(1, 4), (8, 64), (9, 65), (16, 129), (33, 1000), (390, 72)])
def test_linear_over_weight_shapes(shape: tuple[int, int]) -> None:
    weight, values, indices, bias = compressed_linear(*shape)
    for tokens in (1, 5, 70):
        x = torch.randn(tokens, shape[1])
        assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))


def test_linear_of_strided_broadcast_and_empty_inputs() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    base = torch.randn(24, 12, 3)
    inputs = [
        base[:, :, 0].t(),
        base.permute(2, 1, 0),
        torch.randn(12, 48)[:, ::2],
        torch.randn(12, 100)[:, 7:31],
        torch.randn(1, 24).expand(50, 24),
        torch.randn(24).expand(3, 2, 24),
        torch.randn(0, 24),
        torch.randn(24),
        torch.randn(24).flip(0)[None],
    ]
    for x in inputs:
        assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))


def test_weights_may_be_views() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    x = torch.randn(7, 24)
    for rows in (slice(2, 7), slice(0, 10, 3)):
        output = sparse.linear(x, values[rows], indices[rows], bias[rows])
        assert_matches(output, linear_reference(x, weight[rows], bias[rows]))
    transposed = values.t().contiguous().t()
    assert_matches(sparse.linear(x, transposed, indices, bias), linear_reference(x, weight, bias))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_conv_of_strided_broadcast_and_empty_inputs(layout: torch.memory_format) -> None:
    weight, values, indices, bias = compressed_conv(6, 7, 3, 3)
    inputs = [
        torch.randn(2, 7, 9, 10)[:, :, ::2, 1:],
        torch.randn(9, 2, 8, 7).permute(1, 3, 0, 2),
        torch.randn(1, 7, 6, 6).expand(3, 7, 6, 6),
        torch.randn(2, 14, 5, 5)[:, ::2],
        torch.randn(0, 7, 5, 5),
    ]
    for x in inputs:
        for image in (x, x.contiguous(memory_format=layout)):
            output = sparse.conv2d(image, values, indices, bias, (3, 3))
            assert_matches(output, conv2d_reference(image, weight, bias))


def test_results_ignore_the_default_dtype() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    kernel, conv_values, conv_indices, conv_bias = compressed_conv(6, 8, 3, 3)
    x, image = torch.randn(3, 24), torch.randn(1, 8, 5, 5)
    torch.set_default_dtype(torch.float64)
    try:
        linear = sparse.linear(x, values, indices, bias)
        conv = sparse.conv2d(image, conv_values, conv_indices, conv_bias, (3, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (linear.dtype, conv.dtype) == (torch.float32, torch.float32)
    assert_matches(linear, linear_reference(x, weight, bias))
    assert_matches(conv, conv2d_reference(image, kernel, conv_bias))


def test_results_ignore_the_default_device() -> None:
    weight, values, indices, bias = compressed_linear(10, 24)
    x = torch.randn(3, 24)
    with torch.device("meta"):
        output = sparse.linear(x, values, indices, bias)
    assert_matches(output, linear_reference(x, weight, bias))


def test_nan_and_inf_reach_their_outputs_and_no_others() -> None:
    weight, values, indices, bias = compressed_linear(12, 32)
    x = torch.randn(20, 32)
    x[3, 5], x[8, 0] = torch.nan, torch.inf
    output = sparse.linear(x, values, indices, bias)
    clean = torch.tensor([row not in (3, 8) for row in range(20)])
    assert_matches(output[clean], linear_reference(x[clean], weight, bias))
    touched = weight[:, 5] != 0
    assert output[3, touched].isnan().all()
    assert not output[8, weight[:, 0] != 0].isfinite().any()


PRODUCTS = """
import torch, sparse24
from reference import assert_matches, conv2d_reference, linear_reference
from test_ops import compressed_conv, compressed_linear, ops, sparse
print(ops.cpu_isa())
torch.manual_seed(0)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for rows, columns in ((1, 4), (9, 65), (40, 200)):
        weight, values, indices, bias = compressed_linear(rows, columns, dtype)
        for tokens in (1, 3, 9, 130):
            x = torch.randn(tokens, columns).to(dtype)
            assert_matches(sparse.linear(x, values, indices, bias), linear_reference(x, weight, bias))
    for shape, groups in (((6, 7, 3, 3), 1), ((8, 4, 1, 1), 2), ((8, 5, 2, 3), 4)):
        weight, values, indices, bias = compressed_conv(*shape, dtype=dtype)
        x = torch.randn(2, shape[1] * groups, 9, 11).to(dtype)
        for image in (x, x.contiguous(memory_format=torch.channels_last)):
            output = sparse.conv2d(image, values, indices, bias, shape[2:], (1, 2), (1, 0), (1, 1), groups)
            expected = conv2d_reference(image, weight, bias, stride=(1, 2), padding=(1, 0), groups=groups)
            assert_matches(output, expected)
weight = torch.randn(12, 40)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    twin = weight.to(dtype, copy=True)
    assert torch.equal(sparse.nm_mask(twin, 2, 4, 1), ops.nm_mask_torch(twin, 2, 4, 1))
    assert torch.equal(sparse.prune_(twin, 2, 4, 1), twin != 0)
assert torch.equal(sparse.transposable_mask(weight), ops.transposable_mask_torch(weight))
"""


def run_with_isa(isa: str, code: str = PRODUCTS) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"SPARSE24_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("isa", ["scalar", "neon"] if "arm" in MACHINE else ["scalar", "avx2", "avx512"])
def test_every_instruction_set_of_this_machine_agrees_with_the_oracle(isa: str) -> None:
    result = run_with_isa(isa)
    if re.search(r"does not run it|is not one of", result.stderr):
        pytest.skip(f"this machine does not run {isa}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == isa


def test_an_unknown_instruction_set_is_refused_with_the_known_ones() -> None:
    result = run_with_isa("mmx", "from sparse24 import ops; ops.cpu_isa()")
    assert result.returncode == 1
    assert re.search(r"ValueError: .*SPARSE24_CPU_ISA=mmx is not one of .*scalar", result.stderr)


# ---- panels -----------------------------------------------------------------------------------------


def packable(kind: str) -> tuple[nn.Module, Tensor]:
    if kind == "linear":
        return SparseLinear.from_dense(prune_layers(nn.Linear(40, 16))), torch.randn(3, 40)
    return SparseConv2d.from_dense(prune_layers(nn.Conv2d(8, 16, 3))), torch.randn(1, 8, 6, 6)


@pytest.fixture(params=["linear", "conv"])
def layer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return packable(request.param)


def test_a_weight_is_packed_once(layer: tuple[nn.Module, Tensor], packs: list[int]) -> None:
    module, x = layer
    first = module(x)
    for _ in range(5):
        assert torch.equal(module(x), first)
    module.eval()
    with torch.no_grad():
        module(x[:1])
    with torch.inference_mode():
        module(x)
    assert len(packs) == 1


def test_a_weight_is_packed_again_after_it_changed(layer: tuple[nn.Module, Tensor], packs: list[int]) -> None:
    module, x = layer
    before = module(x)
    with torch.no_grad():
        module.values.mul_(2)
    assert len(packs) == 1
    assert not torch.equal(module(x), before)
    assert len(packs) == 2
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    state["values"] /= 2
    module.load_state_dict(state)
    assert_matches(module(x), before)
    assert len(packs) == 3
    module.load_state_dict(state, assign=True)
    assert_matches(module(x), before)
    module.values.data = module.values.data.clone()
    assert_matches(module(x), before)
    module.half().float()
    assert relative_error(module(x), before) < 1e-3


def test_changed_indices_are_seen(packs: list[int]) -> None:
    module = SparseLinear(8, 1, bias=False)
    x = torch.arange(8.0)
    with torch.no_grad():
        module.values.fill_(1)
    assert module(x).item() == 0 + 1 + 4 + 5
    module.indices.fill_(0b1110_1110)
    assert module(x).item() == 2 + 3 + 6 + 7
    assert len(packs) == 2


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("swap_data", [False, True])
def test_panels_die_with_their_module(kind: str, swap_data: bool) -> None:
    gc.collect()
    before = set(ops.panels._panels)
    module, x = packable(kind)
    module(x)
    if swap_data:
        module.values.data = module.values.data.clone()
        module(x)
    assert len(set(ops.panels._panels) - before) == 1
    del module
    gc.collect()
    assert set(ops.panels._panels) <= before


def test_two_modules_of_one_shape_do_not_mix(packs: list[int]) -> None:
    x = torch.randn(2, 40)
    for _ in range(20):
        dense = prune_layers(nn.Linear(40, 8))
        assert_matches(SparseLinear.from_dense(dense)(x), linear_reference(x, dense.weight, dense.bias))
    assert len(packs) == 20


# ---- threads and processes --------------------------------------------------------------------------


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


# ---- refusals ---------------------------------------------------------------------------------------


def linear_call(**changes: Any) -> Callable[[], Tensor]:
    _, values, indices, bias = compressed_linear(6, 20)
    arguments = {"input": torch.randn(3, 20), "values": values, "indices": indices, "bias": bias} | changes
    return lambda: sparse.linear(**arguments)


def conv_call(**changes: Any) -> Callable[[], Tensor]:
    _, values, indices, bias = compressed_conv(6, 8, 3, 3)
    arguments = {
        "input": torch.randn(1, 8, 5, 5), "values": values, "indices": indices, "bias": bias,
        "kernel_size": [3, 3],
    } | changes  # fmt: skip
    return lambda: sparse.conv2d(**arguments)


def crowded() -> Tensor:
    weight = pruned(6, 20)
    weight[4, 12:15] = 1
    return weight


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "pattern": (lambda: sparse.nm_mask(torch.randn(4, 8), 5, 4, 1), ValueError, "1 <= N <= M, not 5:4"),
    "pattern 0": (lambda: sparse.prune_(torch.randn(4, 8), 0, 4, 1), ValueError, "1 <= N <= M, not 0:4"),
    "dim": (lambda: sparse.nm_mask(torch.randn(4, 8), 2, 4, 2), ValueError, r"dim 2 .* \(4, 8\)"),
    "complex": (
        lambda: sparse.nm_mask(torch.zeros(4, 8) + 1j, 2, 4, 1),
        ValueError,
        "complex64 cannot be ranked",
    ),
    "tile shape": (
        lambda: sparse.transposable_mask(torch.randn(6, 8)),
        ValueError,
        r"nearest legal shape is \(8, 8\)",
    ),
    "tile dtype": (
        lambda: sparse.transposable_mask(torch.ones(4, 4, dtype=torch.int8)),
        ValueError,
        r"floating dtype, not torch\.int8",
    ),
    "scalar": (lambda: sparse.compress(torch.tensor(1.0)), ValueError, "not a scalar"),
    "compress dtype": (lambda: sparse.compress(torch.zeros(4, 8).double()), TypeError, r"not torch\.float64"),
    "crowded": (lambda: sparse.compress(crowded()), ValueError, "row 4.*group 3"),
    "values dtype": (
        lambda: sparse.decompress(torch.zeros(2, 4).double(), torch.zeros(2, 1, dtype=torch.uint8)),
        TypeError,
        r"not torch\.float64 and torch\.uint8",
    ),
    "pair shape": (
        lambda: sparse.decompress(torch.zeros(2, 4), torch.zeros(2, 2, dtype=torch.uint8)),
        ValueError,
        r"do not fit: \(2, 4\) and \(2, 2\)",
    ),
    "damaged": (
        lambda: sparse.decompress(torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.uint8)),
        ValueError,
        "row 0",
    ),
    "damaged linear": (linear_call(indices=torch.zeros(6, 3, dtype=torch.uint8)), ValueError, "row 0"),
    "activation": (linear_call(activation="tanh"), ValueError, "'tanh' is not one of"),
    "input dtype": (linear_call(input=torch.randn(3, 20).half()), TypeError, "one dtype, not torch.float16"),
    "bias dtype": (linear_call(bias=torch.randn(6).double()), TypeError, "one dtype"),
    "compute dtype": (
        linear_call(
            input=torch.zeros(3, 20, dtype=torch.int8), values=torch.zeros(6, 12, dtype=torch.int8), bias=None
        ),
        TypeError,
        "products need values of float32, float16, bfloat16, not torch.int8",
    ),
    "matrix": (
        linear_call(values=torch.zeros(2, 6, 12), indices=torch.zeros(2, 6, 3, dtype=torch.uint8)),
        ValueError,
        r"\[rows, K/2\]",
    ),
    "bias shape": (linear_call(bias=torch.randn(5)), ValueError, r"bias must be \[6\], not \(5,\)"),
    "width": (linear_call(input=torch.randn(3, 30)), ValueError, r"\(3, 30\).*K = 24"),
    "no dims": (linear_call(input=torch.tensor(1.0)), ValueError, r"shape \(\)"),
    "image dims": (conv_call(input=torch.randn(8, 5, 5)), ValueError, r"\[N, C, H, W\], not \(8, 5, 5\)"),
    "stride": (conv_call(stride=[0, 1]), ValueError, "must be positive"),
    "padding": (conv_call(padding=[0, -1]), ValueError, "padding not negative"),
    "channels": (conv_call(input=torch.randn(1, 16, 5, 5)), ValueError, "needs K = 144 columns"),
    "groups": (conv_call(groups=3), ValueError, "groups 3"),
    "too small": (conv_call(input=torch.randn(1, 8, 2, 5)), ValueError, "smaller than the kernel"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_bad_arguments_are_refused(case: str) -> None:
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()
