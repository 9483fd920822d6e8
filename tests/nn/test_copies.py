"""What every compressed module can do: be copied, cast, moved, made on meta."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from reference import relative_error
from sparse24 import SparseLinear

from .layers import DTYPES, compressed_layers, pruned_linear

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_copies_answer_alike_and_share_nothing(which: int) -> None:
    module, x = compressed_layers()[which]
    expected = module(x)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert not module(x).any()
    for twin in copies:
        assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_keep_the_indices(which: int, dtype: torch.dtype) -> None:
    module, x = compressed_layers()[which]
    expected = module(x)
    cast = copy.deepcopy(module).to(dtype)
    output = cast(x.to(dtype))
    assert output.dtype == dtype
    assert (
        relative_error(output, expected)
        < {torch.float32: 1e-9, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    )
    assert all(buffer.dtype == torch.uint8 for buffer in cast.buffers())
    assert relative_error(cast.float()(x), expected) < 2e-2


def test_a_float64_cast_is_refused_at_the_call() -> None:
    module = SparseLinear.from_dense(pruned_linear(8, 4)).double()
    with pytest.raises(TypeError, match="float64"):
        module(torch.randn(2, 8, dtype=torch.float64))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_meta_modules_have_shapes_and_come_to_life(which: int) -> None:
    module, x = compressed_layers()[which]
    expected = module(x)
    twin = copy.deepcopy(module).to("meta")
    assert twin(x.to("meta")).shape == expected.shape
    twin.to_empty(device="cpu")
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), expected)
    twin.to("meta").load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(twin(x), expected)


def test_meta_construction_then_reset() -> None:
    with torch.device("meta"):
        module = SparseLinear(12, 4)
    assert module.values.is_meta
    module.to_empty(device="cpu").reset_parameters()
    assert not module(torch.randn(2, 12)).any()


def test_the_default_dtype_and_device_are_honoured() -> None:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert SparseLinear(8, 4).values.dtype == torch.bfloat16
    finally:
        torch.set_default_dtype(previous)
