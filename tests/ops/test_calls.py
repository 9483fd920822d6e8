"""The short way from a layer to its kernel: taken for plain calls, and for nothing else."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reference import assert_matches, linear_reference, prune_layers
from sparse24 import SparseConv2d, SparseLinear, ops

pytestmark = pytest.mark.usefixtures("seeded")

ROOT = Path(__file__).parent.parent.parent


def linear(dtype: torch.dtype = torch.float32, bias: bool = True) -> SparseLinear:
    return SparseLinear.from_dense(prune_layers(nn.Linear(22, 9, bias=bias, dtype=dtype)))


def conv(dtype: torch.dtype = torch.float32) -> SparseConv2d:
    return SparseConv2d.from_dense(prune_layers(nn.Conv2d(8, 6, 3, padding=1, dtype=dtype)))


def short(layer: nn.Module, x: Any) -> Any:
    """What the short way answers: a tensor, or NotImplemented."""
    call = ops.call_linear if isinstance(layer, SparseLinear) else ops.call_conv2d
    return call(x, layer.__dict__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3, 4), (0,), (2, 0, 3)])
def test_plain_calls_take_it_and_agree_with_the_operator(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, x = linear(dtype), torch.randn(*lead, 22).to(dtype)
    with torch.no_grad():
        output = short(layer, x)
        expected = torch.ops.sparse24.linear(x, layer.values, layer.indices, layer.bias)
    assert output is not NotImplemented
    assert type(output) is Tensor
    assert torch.equal(output, expected)
    assert output.stride() == expected.stride()
    assert output.untyped_storage().resizable()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_convolutions_take_it(dtype: torch.dtype, layout: torch.memory_format) -> None:
    layer, x = conv(dtype), torch.randn(2, 8, 7, 5).to(dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        output = short(layer, x)
    geometry = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "none")
    expected = torch.ops.sparse24.conv2d(x, layer.values, layer.indices, layer.bias, *geometry)
    assert torch.equal(output, expected)
    assert output.stride() == expected.stride()


def test_rows_of_a_larger_tensor_are_read_where_they_lie() -> None:
    layer, base = linear(), torch.randn(6, 40)
    for x in (base[:, 3:25], base[::2, 3:25]):
        output = short(layer, x)
        assert output is not NotImplemented
        assert_matches(output, linear_reference(x, layer.weight.dense(), layer.bias))


def test_inference_mode_gives_inference_tensors() -> None:
    layer, x = linear(), torch.randn(3, 22)
    with torch.inference_mode():
        assert short(layer, x).is_inference()
    assert not short(layer, x).is_inference()


class Seeing(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def _profiled(layer: nn.Module, x: Tensor) -> Any:
    with torch.autograd.profiler.profile():
        return short(layer, x)


def _traced(layer: nn.Module, x: Tensor) -> Any:
    answers = []

    def call(x: Tensor) -> Tensor:
        answers.append(short(layer, x))
        return x + 1

    torch.jit.trace(call, x, check_trace=False)
    return answers[0]


def _mapped(layer: nn.Module, x: Tensor) -> Any:
    answers = []

    def call(row: Tensor) -> Tensor:
        answers.append(short(layer, row))
        return row + 1

    vmap(call)(x)
    return answers[0]


def _within(context: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Any]:
    def run(layer: nn.Module, x: Tensor) -> Any:
        with context():
            return short(layer, x)

    return run


#: Calls that have to go the long way, whatever they give.
LISTENERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "a dispatch mode": _within(Seeing),
    "a function mode": _within(Functions),
    "autocast": _within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "a profiler": _profiled,
    "jit.trace": _traced,
    "vmap": _mapped,
    "an input that wants gradients": lambda layer, x: short(layer, x.clone().requires_grad_()),
    "a bias that wants gradients": lambda layer, x: short(layer.requires_grad_(), x),
    "a subclass": lambda layer, x: short(layer, x.as_subclass(Subclass)),
    "a negative view": lambda layer, x: short(layer, torch.complex(x, x).conj().imag),
    "a zero tensor": lambda layer, x: short(layer, torch._efficientzerotensor(x.shape)),
    "the meta device": lambda layer, x: short(layer, x.to("meta")),
    "another dtype": lambda layer, x: short(layer, x.double()),
    "another width": lambda layer, x: short(layer, x[:, :-1]),
    "no tensor": lambda layer, x: short(layer, x.numpy()),
    "a scalar": lambda layer, x: short(layer, x[0, 0]),
    "columns apart": lambda layer, x: short(layer, x.t().contiguous().t()),
    "a layer on meta": lambda layer, x: short(copy.deepcopy(layer).to("meta"), x),
    "values in another dtype": lambda layer, x: short(layer.to(torch.bfloat16), x),
    "an unknown activation": lambda layer, x: (setattr(layer, "activation", "swish"), short(layer, x))[1],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", list(LISTENERS))
def test_it_is_not_taken_where_somebody_listens_or_something_is_not_plain(how: str) -> None:
    assert LISTENERS[how](linear(), torch.randn(3, 22)) is NotImplemented


def test_the_long_way_is_right_where_the_short_one_declines() -> None:
    layer, x = linear(), torch.randn(3, 22)
    weight = layer.weight.dense()
    expected = linear_reference(x, weight, layer.bias)
    with Seeing() as seen:
        assert_matches(layer(x), expected)
    assert "sparse24::linear" in seen.names
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg()
    assert_matches(layer(negative), expected)
    assert_matches(layer(x.t().contiguous().t()), expected)
    assert_matches(vmap(layer)(x), expected)
    zeros = torch._efficientzerotensor(x.shape)
    assert torch.equal(layer(zeros), layer.bias.expand(3, 9))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_compiled_exported_and_traced_programs_hold_the_operator() -> None:
    model, x = nn.Sequential(linear(), nn.ReLU()), torch.randn(3, 22)
    expected = model(x)
    exported = torch.export.export(model, (x,))
    assert "sparse24.linear" in exported.graph_module.code
    assert torch.equal(exported.module()(x), expected)
    traced = torch.jit.trace(model, x, check_trace=False)
    assert torch.equal(traced(x), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)


def test_an_exception_in_the_kernel_is_a_value_error_and_leaks_nothing() -> None:
    layer, x = linear(), torch.randn(3, 22)
    layer.indices.fill_(0)
    for _ in range(3):
        with pytest.raises(ValueError, match="row 0, group 0"):
            layer(x)


def test_a_torch_without_the_table_takes_the_long_way() -> None:
    """Before torch 2.10 there is no ``__dlpack_c_exchange_api__``: as right, and slower."""
    code = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
import sparse24
layer = sparse24.SparseLinear(8, 4)
x = torch.randn(2, 8)
answer = sparse24.ops.call_linear(x, layer.__dict__)
assert answer is NotImplemented
assert torch.equal(layer(x), torch.zeros(2, 4))
print("right")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "right", ran.stderr


def test_a_look_up_that_fails_takes_the_long_way(tmp_path: Path) -> None:
    """A cache file that cannot be read warns; where warnings are errors the process goes on all the same."""
    (tmp_path / "cpu.json").write_text("{")
    code = """
import warnings
import torch, sparse24
warnings.simplefilter("error")
layer = sparse24.SparseLinear(8, 4)
try:
    layer(torch.randn(2, 8))
except UserWarning as warning:
    assert "cpu.json cannot be read" in str(warning)
warnings.simplefilter("ignore")
assert torch.equal(layer(torch.randn(2, 8)), torch.zeros(2, 4))
print("right")
"""
    environment = {**os.environ, "SPARSE24_CACHE": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "right", ran.stderr
    assert "looking for a short way" in ran.stderr


def test_our_declarations_of_dlpack_are_those_of_torch(tmp_path: Path) -> None:
    """Layouts and codes in csrc/dlpack.h against the header that torch ships; a wrong one is noticed."""
    command = ["c++", "-std=c++20", "-fsyntax-only", f"-I{Path(torch.__file__).parent / 'include'}"]
    check = str(ROOT / "tests" / "abi" / "check_dlpack.cpp")
    subprocess.run([*command, f"-I{ROOT / 'csrc'}", check], check=True)
    ours = (ROOT / "csrc" / "dlpack.h").read_text()
    for right, wrong in (("kCPU = 1", "kCPU = 2"), ("std::int32_t ndim", "std::int64_t ndim")):
        assert right in ours
        (tmp_path / "dlpack.h").write_text(ours.replace(right, wrong))
        ran = subprocess.run([*command, f"-I{tmp_path}", check], capture_output=True, text=True, check=False)
        assert "static assertion failed" in ran.stderr


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    layer = SparseLinear.from_dense(prune_layers(nn.Linear(512, 384)))
    before = torch.get_num_threads()
    try:
        for tokens in (1, 3, 8, 100, 700):
            x = torch.randn(tokens, 512)
            torch.set_num_threads(1)
            one = layer(x)
            torch.set_num_threads(threads)
            assert torch.equal(layer(x), one)
    finally:
        torch.set_num_threads(before)


def test_the_activation_is_fused_on_the_short_way() -> None:
    layer, x = linear(), torch.randn(4, 22)
    plain = layer(x)
    layer.activation = "gelu"
    assert short(layer, x) is not NotImplemented
    assert_matches(layer(x), F.gelu(plain.double()))
