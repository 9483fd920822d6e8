"""On a CPU nothing is derived from a compressed weight: each call reads values and indices where they lie."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from reference import assert_matches, linear_reference, prune_layers, relative_error
from sparse24 import SparseConv2d, SparseLinear

from .layer_cases import CASES, IN_PLACE, WRITES
from .operands import DTYPES

pytestmark = pytest.mark.usefixtures("seeded")


# ---- nothing is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_after_calls_a_layer_holds_what_it_held(kind: str, dtype: torch.dtype) -> None:
    case = CASES[kind](dtype)
    layer = case.layer
    held = dict(layer.__dict__)
    tensors = {"values": layer.values, "bias": layer.bias, "indices": layer.indices}
    before = {name: (id(t), t.data_ptr(), t._version, t.clone()) for name, t in tensors.items()}
    case.check()
    case.check(run=lambda x: layer(x.clone().requires_grad_()))
    with torch.no_grad():
        case.check()
    with torch.inference_mode():
        case.check()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(case.inputs[0].float()).dtype == torch.bfloat16
    layer.eval()
    case.check()
    assert layer.__dict__ == held | {"training": False}
    assert type(layer._parameters) is type(layer._buffers) is dict
    assert list(layer._parameters) == ["values", "bias"]
    assert list(layer._buffers) == ["indices"]
    for name, (identity, address, version, numbers) in before.items():
        now = getattr(layer, name)
        assert (id(now), now.data_ptr(), now._version) == (identity, address, version)
        assert torch.equal(now, numbers)
        assert vars(now) == {}


def resident() -> int:
    """Bytes of this process in memory."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in each)
    return 1024 * int(line.split()[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_calls_leave_no_memory_behind(kind: str, dtype: torch.dtype) -> None:
    small: nn.Module
    if kind == "linear":
        small, layer = SparseLinear(64, 64, dtype=dtype), SparseLinear(4096, 4096, dtype=dtype)
        inputs = [torch.randn(tokens, 4096).to(dtype) for tokens in (1, 3, 40)]
    else:
        small, layer = SparseConv2d(64, 64, 3, dtype=dtype), SparseConv2d(1024, 1024, 3, dtype=dtype)
        image = torch.randn(1, 1024, 6, 6).to(dtype)
        inputs = [image, image.contiguous(memory_format=torch.channels_last)]
    layer.values.data.fill_(1)
    weight_bytes = layer.values.nbytes + layer.indices.nbytes
    for x in inputs:  # threads, and their scratch for inputs of this size
        small(x[:, :64].contiguous())
    before = resident()
    for _ in range(2):
        for x in inputs:
            layer(x)
    assert resident() - before < weight_bytes // 4


@pytest.mark.parametrize("kind", CASES)
def test_a_weight_goes_with_its_layer(kind: str) -> None:
    case = CASES[kind]()
    case.check()
    parameter = weakref.ref(case.layer.values)
    array = case.layer.values.numpy().copy()
    case.layer.values.data = torch.from_numpy(array)
    memory = weakref.ref(array)
    del array
    case.check()
    assert memory() is not None
    other = case.layer.values.detach().clone()
    case.layer.values.data = other
    assert memory() is None  # nobody holds the storage that was there before
    case.check()
    del case
    assert parameter() is None


def test_two_layers_of_one_shape_do_not_mix() -> None:
    x = torch.randn(2, 40)
    for _ in range(20):  # each at the addresses of the one before, often
        dense = prune_layers(nn.Linear(40, 8))
        assert_matches(SparseLinear.from_dense(dense)(x), linear_reference(x, dense.weight, dense.bias))
    pairs = [prune_layers(nn.Linear(40, 8)) for _ in range(2)]
    layers = [SparseLinear.from_dense(dense) for dense in pairs]
    for _ in range(3):
        for dense, layer in zip(pairs, layers, strict=True):
            assert_matches(layer(x), linear_reference(x, dense.weight, dense.bias))
    layers[0].values.data, layers[1].values.data = layers[1].values.data, layers[0].values.data
    layers[0].indices, layers[1].indices = layers[1].indices, layers[0].indices
    for mine, other in ((0, 1), (1, 0)):
        assert_matches(layers[mine](x), linear_reference(x, pairs[other].weight, pairs[mine].bias))


# ---- nothing goes stale ----------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", CASES)
def test_every_write_is_in_the_next_call(kind: str, write: str) -> None:
    case = CASES[kind]()
    case.check()
    for factor, whole in ((2, 2), (2, 4), (-0.25, -1)):  # exact
        WRITES[write](case.layer, factor)
        case.check(whole)


@pytest.mark.parametrize("kind", CASES)
def test_conversions_are_in_the_next_call(kind: str) -> None:
    case = CASES[kind]()
    before = [case.layer(x) for x in case.inputs]
    case.layer.half().float()
    for x, output in zip(case.inputs, before, strict=True):
        assert relative_error(case.layer(x), output) < 1e-3


@pytest.mark.parametrize("tokens", [1, 100])
def test_changed_indices_are_seen(tokens: int) -> None:
    layer, x = SparseLinear(8, 1, bias=False), torch.arange(8.0).expand(tokens, 8).contiguous()
    layer.values.data.fill_(1)
    assert layer(x).unique().tolist() == [0 + 1 + 4 + 5]
    layer.indices.fill_(0b1110_1110)
    assert layer(x).unique().tolist() == [2 + 3 + 6 + 7]
    layer.indices.numpy()[:] = 0b1000_1110
    assert layer(x).unique().tolist() == [2 + 3 + 4 + 6]
    layer.indices.data = torch.full((1, 1), 0b0100_1110, dtype=torch.uint8)
    assert layer(x).unique().tolist() == [2 + 3 + 4 + 5]


def test_changed_indices_of_a_convolution_are_seen() -> None:
    conv = SparseConv2d(8, 1, 1, bias=False)
    conv.values.data.fill_(1)
    x = torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 3, 3)
    for image in (x.contiguous(), x.contiguous(memory_format=torch.channels_last)):
        for byte, total in ((0b0100_0100, 0 + 1 + 4 + 5), (0b1110_1110, 2 + 3 + 6 + 7)):
            conv.indices.fill_(byte)
            assert conv(image).unique().tolist() == [total]


# ---- programs that torch makes of a layer ----------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_compiled_programs_follow_the_weight(kind: str, backend: str) -> None:
    case = CASES[kind]()
    case = case._replace(inputs=case.inputs[-1:])
    torch._dynamo.reset()
    compiled = torch.compile(case.layer, fullgraph=True, backend=backend)
    with torch.no_grad():
        case.check(run=compiled)
        whole = 1.0
        for write in IN_PLACE.values():
            factor = 2 if whole < 4 else -0.125
            whole *= factor
            write(case.layer, factor)
            case.check(whole, run=compiled)
            case.check(whole)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_exported_programs_follow_their_weight(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]()
    case = case._replace(inputs=case.inputs[-1:])
    torch.export.save(torch.export.export(case.layer, tuple(case.inputs)), tmp_path / "layer.pt2")
    program = torch.export.load(tmp_path / "layer.pt2").module()
    case.check(run=program)
    values = program.get_parameter("values")
    values.data.mul_(2)
    case.check(2, run=program)
    array = values.detach().numpy()
    array *= 2
    case.check(4, run=program)
    values.data = -values.data
    case.check(-4, run=program)
    case.check()  # the layer's own weight is another
