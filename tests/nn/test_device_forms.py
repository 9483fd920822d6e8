"""The forms of a weight that a layer owns on a GPU, on the emulator: no old weight ever answers.

Passing here is not validation on a GPU.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from emulated import EmulatedStream, Emulator, compressed, randn, sparse_weight
from reference import assert_matches, conv2d_reference, linear_reference
from sparse24 import SparseConv2d, SparseLinear, masks
from sparse24.nn import device_forms, lent, on_device
from sparse24.nn.compressed import CompressedModule
from sparse24.ops.cuda import blobs, cusparselt

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
M, K, MANY, FEW = 288, 128, 32, 4


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The rows of every blob that is made, as it is made."""
    made: list[tuple[int, int]] = []
    compress = blobs.compress

    def counted(values: Tensor, indices: Tensor, rows: tuple[int, int], *rest: Any) -> blobs.Blob:
        made.append(rows)
        return compress(values, indices, rows, *rest)

    monkeypatch.setattr(blobs, "compress", counted)
    return made


@pytest.fixture(autouse=True)
def on_emulator(emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are on the GPU, whose stream this is."""
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: stream)


def new_layer(seed: int = 0, dtype: torch.dtype = HALF, bias: bool = True) -> SparseLinear:
    return SparseLinear.from_weight(
        sparse_weight(M, K, dtype, seed), randn(M, dtype=dtype, seed=5) if bias else None
    )


def run(layer: CompressedModule, x: Tensor) -> Tensor:
    output = layer._on_device(x)
    assert output is not None
    return output


def forms(layer: CompressedModule) -> device_forms.DeviceForms:
    found = layer.__dict__["_forms"]
    assert isinstance(found, device_forms.DeviceForms)
    return found


def held_bytes(layer: CompressedModule) -> device_forms.Bytes:
    return forms(layer).bytes(layer)


def is_away(layer: CompressedModule) -> bool:
    return on_device.Glance(layer).is_away


def check(layer: SparseLinear, weight: Tensor, tokens: int = MANY, bias: Tensor | None = None) -> None:
    """The layer computes with ``weight``, and its own bias unless another is given."""
    x = randn(tokens, K, dtype=weight.dtype)
    own = layer.__dict__["_parameters"]["bias"]
    assert_matches(run(layer, x), linear_reference(x, weight, own if bias is None else bias))


# ---- one form for each way of running ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [HALF, BF16])
def test_many_tokens_leave_the_blob_alone_on_the_device(
    dtype: torch.dtype, emulator: Emulator, compressions: list[tuple[int, int]]
) -> None:
    layer, weight = new_layer(dtype=dtype), sparse_weight(M, K, dtype)
    for tokens in (MANY, 8, 77):
        check(layer, weight, tokens)
    held = held_bytes(layer)
    assert (held.canonical, held.dense) == (0, 0)
    assert 0 < held.blobs <= 0.65 * weight.nbytes
    assert compressions == [(0, M)]
    assert emulator.launches() == 4


def test_few_tokens_leave_the_canonical_form_alone_on_the_device(compressions: list[Any]) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    before = layer._parameters
    check(layer, weight, FEW)
    held = held_bytes(layer)
    assert (held.blobs, held.dense) == (0, 0)
    assert 0 < held.canonical <= 0.65 * weight.nbytes
    assert compressions == []
    assert layer._parameters is before
    assert type(before) is dict


@pytest.mark.parametrize("order", [(FEW, MANY), (MANY, FEW)], ids=str)
def test_both_forms_are_there_after_both_ways_ran(order: tuple[int, int], compressions: list[Any]) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    for tokens in (*order, *order):
        check(layer, weight, tokens)
    held = held_bytes(layer)
    assert held.blobs > 0
    assert held.canonical > 0
    assert held.dense == 0
    assert len(compressions) == 1
    assert is_away(layer)


def test_a_dense_copy_is_kept_only_where_it_was_asked_for(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    assert sparse24.keep_dense(layer) == 1
    check(layer, weight, FEW)
    assert held_bytes(layer) == (0, 0, weight.nbytes)
    first = forms(layer)._derived.dense
    check(layer, weight, FEW)
    assert forms(layer)._derived.dense is first
    layer.values.mul_(2)
    check(layer, 2 * weight, FEW)
    assert forms(layer)._derived.dense is not first
    sparse24.keep_dense(layer, keep=False)
    check(layer, 2 * weight, FEW)
    held = held_bytes(layer)
    assert (held.blobs, held.dense) == (0, 0)
    assert held.canonical > 0
    assert emulator.launches() == 0


def test_convolutions_own_a_blob_for_each_group(compressions: list[Any]) -> None:
    dense = nn.Conv2d(32, 64, 3, padding=1, groups=2, dtype=HALF)
    masks.prune_(dense.weight.data)
    layer = SparseConv2d.from_dense(dense)
    x = randn(2, 32, 6, 6).contiguous(memory_format=torch.channels_last)
    for factor in (1, 1, 2):
        if factor == 2:
            layer.values.mul_(2)
        expected = conv2d_reference(x, factor * dense.weight, dense.bias, padding=1, groups=2)
        output = run(layer, x)
        assert_matches(output, expected)
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert is_away(layer)
    assert compressions == [(0, 32), (32, 32)] * 2
    image = x[:1, :, :2, :2]
    assert_matches(
        run(layer, image), conv2d_reference(image, 2 * dense.weight, dense.bias, padding=1, groups=2)
    )
    assert held_bytes(layer).canonical > 0  # four pixels are few


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_autocast_uses_the_layers_own_forms(tokens: int) -> None:
    layer, x = new_layer(), randn(tokens, K, dtype=FLOAT)
    expected = linear_reference(x.half(), sparse_weight(M, K, HALF), layer.bias)
    for _ in range(2):
        with torch.autocast("cpu", BF16):
            output = run(layer, x)
        assert output.dtype is BF16
        assert_matches(output, expected)
    assert is_away(layer) == (tokens == MANY)


def test_no_tokens_make_no_form() -> None:
    layer = new_layer()
    assert run(layer, randn(3, 0, K)).shape == (3, 0, M)
    conv = SparseConv2d(16, 32, 3, dtype=HALF)
    assert run(conv, randn(0, 16, 5, 5)).shape == (0, 32, 3, 3)
    assert not is_away(layer)
    assert not is_away(conv)


def test_bad_inputs_change_nothing() -> None:
    layer = new_layer()
    check(layer, sparse_weight(M, K, HALF))
    with pytest.raises(TypeError, match="must have one dtype"):
        run(layer, randn(MANY, K, dtype=BF16))
    with pytest.raises(ValueError, match="holds K = 128"):
        run(layer, randn(MANY, K + 8))
    assert is_away(layer)
    assert repr(layer) == f"SparseLinear(in_features={K}, out_features={M}, dtype=torch.float16)"
    assert is_away(layer)


# ---- who has to see the canonical form ---------------------------------------------------------------


def test_operators_are_left_what_somebody_watches() -> None:
    layer, x = new_layer(), randn(MANY, K)
    check(layer, sparse_weight(M, K, HALF))
    watched = x.clone().requires_grad_()
    assert layer._on_device(watched) is None
    with torch.no_grad():
        assert layer._on_device(watched) is not None
    assert torch.func.vmap(lambda row: torch.ones(()) * (layer._on_device(row) is None))(x).all()
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert layer._on_device(x) is None
    with torch._subclasses.FakeTensorMode() as mode:
        assert layer._on_device(mode.from_tensor(x)) is None
    assert is_away(layer)
    layer.bias.requires_grad_()
    assert layer._on_device(x) is None


def test_a_weight_that_wants_gradients_is_no_blob() -> None:
    layer, x = new_layer(), randn(MANY, K)
    layer.values.requires_grad_()
    assert layer._on_device(x) is None
    with torch.no_grad():
        check(layer, sparse_weight(M, K, HALF))
    assert not is_away(layer)
    assert layer.values.requires_grad


def test_a_tensor_elsewhere_is_left_to_the_operators() -> None:
    layer = new_layer()
    assert layer._on_device(torch.empty(MANY, K, dtype=HALF, device="meta")) is None
    check(layer, sparse_weight(M, K, HALF))
    assert layer._on_device(torch.empty(MANY, K, dtype=HALF, device="meta")) is None


@pytest.mark.parametrize("first", ["compiled", "eager"])
def test_compiled_programs_and_eager_calls_take_turns(first: str) -> None:
    layer, x = new_layer(), randn(MANY, K)
    expected = linear_reference(x, sparse_weight(M, K, HALF), layer.bias)
    if first == "eager":
        check(layer, sparse_weight(M, K, HALF))
        assert is_away(layer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            assert_matches(compiled(x), expected)
            check(layer, sparse_weight(M, K, HALF))
        layer.values.mul_(2)
        assert_matches(compiled(x), linear_reference(x, 2 * sparse_weight(M, K, HALF), layer.bias))
        check(layer, 2 * sparse_weight(M, K, HALF))
    torch._dynamo.reset()


def test_an_exported_program_has_the_weight() -> None:
    layer, x = new_layer(), randn(MANY, K)
    check(layer, sparse_weight(M, K, HALF))
    exported = torch.export.export(layer, (x,))
    assert_matches(exported.module()(x), linear_reference(x, sparse_weight(M, K, HALF), layer.bias))
    check(layer, sparse_weight(M, K, HALF))


# ---- reading -----------------------------------------------------------------------------------------


def test_what_is_read_is_what_was_compressed_bit_for_bit() -> None:
    layer = new_layer()
    layer.values.data[0, 0] = float("nan")
    layer.values.data[0, 1] = -0.0
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    run(layer, randn(MANY, K))
    for _ in range(2):
        assert is_away(layer)
        state = layer.state_dict()
        assert list(state) == ["values", "bias", "indices"]
        for name, tensor in state.items():
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        assert not is_away(layer)
        del state, tensor
        run(layer, randn(MANY, K))


READS: dict[str, Callable[[SparseLinear], Any]] = {
    "attribute": lambda layer: layer.values,
    "buffer": lambda layer: layer.indices,
    "weight": lambda layer: layer.weight,
    "state_dict": lambda layer: layer.state_dict(),
    "parameters": lambda layer: list(layer.parameters()),
    "buffers": lambda layer: list(layer.named_buffers()),
    "dict": lambda layer: dict(layer._parameters),
    "double star": lambda layer: {**layer._buffers},
    "raw getitem": lambda layer: dict.__getitem__(layer._parameters, "values"),
    "get": lambda layer: layer._parameters.get("values"),
    "copy": lambda layer: layer._parameters.copy(),
    "union": lambda layer: layer._parameters | {},
    "shallow copy of the dict": lambda layer: copy.copy(layer._parameters),
    "equality": lambda layer: layer._parameters == {},
    "operands": lambda layer: layer._operands(),
    "to_dense": lambda layer: layer.to_dense(),
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("read", READS)
def test_every_way_of_reading_gets_plain_tensors(read: str) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    values, indices = (tensor.clone() for tensor in layer._operands()[:2])
    check(layer, weight)
    assert is_away(layer)
    READS[read](layer)
    assert not is_away(layer)
    assert type(layer._parameters) is lent.Lent
    assert list(layer._parameters) == ["values", "bias"]
    assert type(layer.values) is nn.Parameter
    assert torch.equal(layer.values, values)
    assert torch.equal(layer.indices, indices)
    check(layer, weight)
    assert is_away(layer)


def test_what_is_asked_about_names_brings_nothing_back() -> None:
    layer = new_layer()
    run(layer, randn(MANY, K))
    parameters = layer._parameters
    assert "values" in parameters
    assert "weight" not in parameters
    assert len(parameters) == 2
    assert parameters["bias"] is not None
    assert layer.bias is parameters["bias"]
    assert hasattr(layer, "bias")
    with pytest.raises(KeyError):
        parameters["weight"]
    assert is_away(layer)


def test_tensors_read_in_any_mode_are_ordinary_ones() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    contexts: list[Callable[[], Any]] = [
        torch.inference_mode,
        torch.no_grad,
        torch.utils._python_dispatch.TorchDispatchMode,
        torch._subclasses.FakeTensorMode,
        lambda: torch.device("meta"),
    ]
    for context in contexts:
        check(layer, weight)
        assert is_away(layer)
        with context():
            values = layer.values
        assert type(values) is nn.Parameter
        assert not values.is_inference()
        assert values.device.type == "cpu"
        assert torch.equal(torch.ops.sparse24.decompress(values, layer.indices), weight)
        del values
    check(layer, weight)

    def scaled(factor: Tensor) -> Tensor:
        return (factor * layer.values).sum()

    torch.func.grad(scaled)(torch.ones(()).half())
    assert type(layer.values) is nn.Parameter
    assert torch._C._functorch.is_functorch_wrapped_tensor(layer.values) is False
    check(layer, weight)


# ---- writing: no old weight answers ------------------------------------------------------------------


def _set_data(layer: SparseLinear, new: Tensor) -> None:
    layer.values.data = new


def _set_parameter(layer: SparseLinear, new: Tensor) -> None:
    layer.values = nn.Parameter(new, requires_grad=False)


def _through_a_view(layer: SparseLinear, new: Tensor) -> None:
    layer.values.view(-1)[:] = new.view(-1)


def _through_numpy(layer: SparseLinear, new: Tensor) -> None:
    layer.values.numpy()[:] = new.numpy()


def _through_dlpack(layer: SparseLinear, new: Tensor) -> None:
    torch.from_dlpack(layer.values).copy_(new)


def _in_inference_mode(layer: SparseLinear, new: Tensor) -> None:
    with torch.inference_mode():
        layer.values.copy_(new)


def _foreach(layer: SparseLinear, new: Tensor) -> None:
    torch._foreach_copy_([layer.values], [new])


def _by_an_optimizer(layer: SparseLinear, new: Tensor) -> None:
    layer.values.requires_grad_()
    layer.values.grad = layer.values.detach() - new
    torch.optim.SGD([layer.values], lr=1.0).step()
    layer.values.grad = None
    layer.values.requires_grad_(False)


def _by_load_state_dict(layer: SparseLinear, new: Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "values": new})


def _by_assigning_a_state_dict(layer: SparseLinear, new: Tensor) -> None:
    layer.load_state_dict({**layer.state_dict(), "values": new}, assign=True)


def _by_set_(layer: SparseLinear, new: Tensor) -> None:
    with torch.no_grad():
        layer.values.set_(new)


def _into_the_dict(layer: SparseLinear, new: Tensor) -> None:
    layer._parameters["values"] = nn.Parameter(new, requires_grad=False)


def _by_swapping_tensors(layer: SparseLinear, new: Tensor) -> None:
    torch.utils.swap_tensors(layer.values, nn.Parameter(new, requires_grad=False))


def _by_update(layer: SparseLinear, new: Tensor) -> None:
    layer._parameters.update(values=nn.Parameter(new, requires_grad=False))


WRITES: dict[str, Callable[[SparseLinear, Tensor], Any]] = {
    "copy_": lambda layer, new: layer.values.copy_(new),
    "data.copy_": lambda layer, new: layer.values.data.copy_(new),
    "detach().copy_": lambda layer, new: layer.values.detach().copy_(new),
    "a storage behind .data": _set_data,
    "a parameter": _set_parameter,
    "the dict": _into_the_dict,
    "update": _by_update,
    "a view": _through_a_view,
    "numpy": _through_numpy,
    "dlpack": _through_dlpack,
    "inference_mode": _in_inference_mode,
    "foreach": _foreach,
    "an optimizer": _by_an_optimizer,
    "load_state_dict": _by_load_state_dict,
    "load_state_dict(assign)": _by_assigning_a_state_dict,
    "set_": _by_set_,
    "swap_tensors": _by_swapping_tensors,
    "the storage": lambda layer, new: layer.values.untyped_storage().copy_(new.untyped_storage()),
    "_fill": lambda layer, new: layer._fill(new, layer.indices, None),
}


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("write", WRITES)
def test_every_write_takes_effect(write: str, tokens: int, compressions: list[Any]) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    for factor in (1, 2, -2):  # exact in every dtype
        if factor != 1:
            WRITES[write](layer, compressed(factor * weight)[0])
        check(layer, factor * weight)
        assert is_away(layer)
        check(layer, factor * weight, tokens)
    assert len(compressions) == 3


def test_another_mask_takes_effect() -> None:
    layer, other = new_layer(), sparse_weight(M, K, HALF, seed=3)
    check(layer, sparse_weight(M, K, HALF))
    values, indices = compressed(other)
    layer.values.data.copy_(values)
    layer.indices.copy_(indices)
    check(layer, other)
    layer.values.expand(2, *values.shape)[1].zero_()
    check(layer, 0 * other)
    layer.reset_parameters()
    check(layer, 0 * other)


def test_a_bias_is_read_at_every_call() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    layer.bias.data.fill_(3)
    check(layer, weight, bias=torch.full((M,), 3.0))
    assert is_away(layer)
    layer.bias = nn.Parameter(torch.full((M,), -1, dtype=HALF), requires_grad=False)
    check(layer, weight, bias=torch.full((M,), -1.0))
    layer.bias = None
    x = randn(MANY, K)
    assert_matches(run(layer, x), linear_reference(x, weight))


@pytest.mark.parametrize("swap", [False, True])
def test_conversions(swap: bool) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        check(layer, weight)
        layer.to(BF16)
        check(layer, weight.to(BF16))
        assert is_away(layer)
        layer.to("meta")
        assert layer.values.is_meta
        assert forms(layer)._derived.bytes() == 0  # freed with the device
        layer.to_empty(device="cpu")
        values, indices = compressed(weight.to(BF16))
        layer.load_state_dict({"values": values, "indices": indices, "bias": layer.bias})
        check(layer, weight.to(BF16))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


# ---- handed out --------------------------------------------------------------------------------------

HOLDERS: dict[str, Callable[[SparseLinear], Any]] = {
    "parameter": lambda layer: layer.values,
    "data": lambda layer: layer.values.data,
    "view": lambda layer: layer.values[1:],
    "numpy": lambda layer: layer.values.numpy(),
    "storage": lambda layer: layer.values.untyped_storage(),
    "typed storage": lambda layer: layer.values.storage(),
    "state_dict": lambda layer: layer.state_dict(),
    "indices": lambda layer: layer.indices.detach(),
    "dlpack": lambda layer: torch.utils.dlpack.to_dlpack(layer.values),
    "iterator": lambda layer: _begun(layer.named_parameters()),
    "items": lambda layer: layer._buffers.items(),
    "weak reference": lambda layer: weakref.ref(layer.values),
    "autograd": lambda layer: torch.ones(1, requires_grad=True) * layer.values,
    "optimizer": lambda layer: torch.optim.SGD(layer.parameters()),
}


def _begun(iterator: Iterator[Any]) -> Iterator[Any]:
    next(iterator)
    return iterator


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("when", ["before the first call", "after a blob was made"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_what_is_handed_out_is_followed_until_it_is_released(
    holder: str, when: str, emulator: Emulator, compressions: list[Any]
) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    earlier = 0
    if when == "after a blob was made":
        check(layer, weight)
        earlier = 1
    held = HOLDERS[holder](layer)
    launches = emulator.launches()
    for factor in (1, 2, 4):
        if factor > 1:
            layer.values.data.mul_(2)
        check(layer, factor * weight)
        assert not is_away(layer)
        assert (emulator.launches(), len(compressions)) == (launches, earlier)
        assert held is not None
    del held
    gc.collect()
    for _ in range(2):
        check(layer, 4 * weight)
    assert is_away(layer)
    assert held_bytes(layer).canonical == 0
    assert len(compressions) == earlier + 1
    assert emulator.launches() == launches + 2


def test_writes_through_what_was_handed_out_are_followed_call_by_call() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    alias = layer.values.data
    for factor in (2, 4, 8):
        alias.mul_(2)
        check(layer, factor * weight)
    del alias
    check(layer, 8 * weight)
    assert is_away(layer)


def test_a_dict_that_is_held_is_the_modules_own() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    held = layer._parameters  # a plain dict: the tensors stay in it
    check(layer, weight)
    assert not is_away(layer)
    del held
    check(layer, weight)
    assert is_away(layer)
    held = layer._parameters  # one that has the tensors brought back
    check(layer, weight)
    held["values"] = nn.Parameter(2 * held["values"], requires_grad=False)
    check(layer, 2 * weight)
    held.pop("values").data.zero_()
    assert "values" not in layer._parameters
    assert layer._on_device(randn(MANY, K)) is None


def test_functional_call_computes_with_what_it_is_given() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = new_layer()

        def forward(self, x: Tensor) -> Tensor:
            return run(self.layer, x)

    model, weight, x = Wrapped(), sparse_weight(M, K, HALF), randn(MANY, K)
    check(model.layer, weight)
    values, _ = compressed(3 * weight)
    output = torch.func.functional_call(model, {"layer.values": values}, (x,))
    assert_matches(output, linear_reference(x, 3 * weight, model.layer.bias))
    check(model.layer, weight)
    assert is_away(model.layer)


# ---- copies ------------------------------------------------------------------------------------------


def test_copies_are_layers_of_their_own() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    for other in copies:
        assert type(other._parameters) is dict
        assert other.__dict__.get("_forms") is None
        other.values.mul_(2)
        check(other, 2 * weight)
        assert is_away(other)
        check(layer, weight)
        assert is_away(layer)


def test_a_shallow_copy_shares_the_tensors_and_misses_no_write() -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    twin = copy.copy(layer)
    check(twin, weight)
    twin.values.mul_(2)
    check(layer, 2 * weight)
    check(twin, 2 * weight)


def test_a_replica_does_not_answer_with_the_blob_of_its_original() -> None:
    """As nn.DataParallel replicates: a __dict__ that is copied, with tensors of its own."""
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)
    replica = layer._replicate_for_data_parallel()
    values, indices = compressed(2 * weight)
    replica._parameters = {"values": nn.Parameter(values, requires_grad=False), "bias": layer.bias}
    replica._buffers = {"indices": indices}
    del values, indices
    check(replica, 2 * weight)
    check(layer, weight)
    check(replica, 2 * weight)
    assert forms(replica) is not forms(layer)


def test_a_layer_that_goes_takes_its_forms_along() -> None:
    layer = new_layer()
    run(layer, randn(MANY, K))
    data = next(iter(forms(layer)._derived.blobs.values())).data
    gone = weakref.ref(data)
    del data
    gc.disable()
    try:
        del layer
        assert gone() is None  # without the collector
    finally:
        gc.enable()


# ---- threads, failures, graphs -----------------------------------------------------------------------


def test_first_calls_from_many_threads_build_once(emulator: Emulator, compressions: list[Any]) -> None:
    layer, weight, x = new_layer(), sparse_weight(M, K, HALF), randn(MANY, K)
    expected, bias = [], layer.bias.clone()
    start = threading.Barrier(6)

    def work() -> None:
        start.wait()
        output = run(layer, x)
        expected.append(output)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(expected) == 6
    for output in expected:
        assert_matches(output, linear_reference(x, weight, bias))
    check(layer, weight)
    assert compressions == [(0, M)]
    _wait_for_handles(emulator)


def _wait_for_handles(emulator: Emulator) -> None:
    """A thread's handles go when the thread does, which is a little after join returns."""
    cusparselt.forget()
    deadline = time.monotonic() + 10
    while emulator.live_objects() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_reading_while_other_threads_run_loses_nothing(emulator: Emulator) -> None:
    layer, weight, x = new_layer(), sparse_weight(M, K, HALF), randn(MANY, K)
    reference, bias = linear_reference(x, weight, layer.bias), layer.bias.clone()
    errors: list[BaseException] = []
    stop = threading.Event()

    def work(step: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                step()
        except BaseException as error:
            errors.append(error)
            raise

    def compute() -> None:
        assert_matches(run(layer, x), reference)

    def read() -> None:
        assert list(layer.state_dict()) == ["values", "bias", "indices"]
        assert torch.equal(layer._parameters["bias"], bias)

    threads = [threading.Thread(target=work, args=(step,)) for step in (compute, compute, read, read)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    check(layer, weight)
    _wait_for_handles(emulator)


@pytest.mark.parametrize("where", ["compress", "_host_copy"])
def test_a_failure_while_building_leaves_the_layer_whole(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    def out_of_memory(*given: Any) -> Any:
        raise torch.OutOfMemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(blobs if where == "compress" else device_forms, where, out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            run(layer, randn(MANY, K))
        check(layer, weight, FEW)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
    check(layer, weight)


def test_bringing_back_that_fails_leaves_the_layer_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, weight = new_layer(), sparse_weight(M, K, HALF)
    check(layer, weight)

    def out_of_memory(*given: Any) -> Any:
        raise torch.OutOfMemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(device_forms._Canonical, "bring", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            layer.state_dict()
        assert is_away(layer)
        check(layer, weight)
    assert torch.equal(layer.weight, weight)


def test_captures(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, compressions: list[Any]) -> None:
    """What is not ready is refused, a captured blob keeps its place, and a new weight is written there."""
    pool: list[Tensor] = []  # torch's CUDA allocator keeps what a graph uses; that of CPU tensors does not
    unpooled = blobs.workspace
    monkeypatch.setattr(blobs, "workspace", lambda *given: pool.append(unpooled(*given)) or pool[-1])
    mine = emulator.new_stream()
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: mine)
    handle = ctypes.c_void_p(mine.handle)
    layer, weight, x = new_layer(bias=False), sparse_weight(M, K, HALF), randn(MANY, K)
    other = new_layer(bias=False)
    run(layer, x)
    assert is_away(layer)
    emulator.cuda("StreamBeginCapture", handle, 2)
    captured = run(layer, x)
    with pytest.raises(
        sparse24.Error, match=r"weight \[288, 128\] has not been compressed .* sparse24.prepare"
    ):
        run(other, x)
    with pytest.raises(sparse24.Error, match=r"no plan exists yet for 64 tokens .* sparse24.prepare"):
        run(layer, randn(64, K))
    with pytest.raises(sparse24.Error, match=r"canonical form of a weight \(288, 128\) .* sparse24.prepare"):
        run(layer, randn(FEW, K))
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    emulator.cuda("GraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    emulator.cuda("GraphLaunch", executable, handle)
    assert_matches(captured, linear_reference(x, weight))
    (blob,) = forms(layer)._derived.blobs.values()
    place = blob.data.data_ptr()
    del blob
    layer.values.mul_(2)
    run(layer, x)
    (blob,) = forms(layer)._derived.blobs.values()
    assert blob.data.data_ptr() == place
    captured.zero_()
    emulator.cuda("GraphLaunch", executable, handle)
    assert_matches(captured, linear_reference(x, 2 * weight))
    emulator.cuda("GraphExecDestroy", executable)
    emulator.cuda("GraphDestroy", graph)
    emulator.cuda("StreamDestroy", handle)


def test_a_canonical_form_that_a_graph_reads_stays_where_it_is(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = emulator.new_stream()
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: mine)
    handle, layer = ctypes.c_void_p(mine.handle), new_layer()
    address = layer.values.data_ptr()
    emulator.cuda("StreamBeginCapture", handle, 2)
    run(layer, randn(FEW, K))
    graph = ctypes.c_void_p()
    emulator.cuda("StreamEndCapture", handle, ctypes.byref(graph))
    check(layer, sparse_weight(M, K, HALF))
    assert is_away(layer)
    assert layer.values.data_ptr() == address
    emulator.cuda("GraphDestroy", graph)
    emulator.cuda("StreamDestroy", handle)
