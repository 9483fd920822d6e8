"""Files and pickles of version 0.1 load, today's are 0.1's, and a newer format is refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import nn

import sparse24
from sparse24 import SparseConv2d, SparseLinear, SparseMultiheadAttention

from .layers import assert_same_state, pruned_linear

#: Three layers with inputs and outputs, pickled and saved by the released version 0.1.0.
OLD = Path(__file__).parent / "written_by_0_1_0.pt"
KINDS = (SparseLinear, SparseConv2d, SparseMultiheadAttention)


def _call(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output = module(x, x, x)[0] if isinstance(module, SparseMultiheadAttention) else module(x)
    assert isinstance(output, torch.Tensor)
    return output


@pytest.mark.parametrize("which", [0, 1, 2])
def test_pickles_and_checkpoints_of_0_1_load(which: int) -> None:
    old = torch.load(OLD, weights_only=True)
    module = torch.load(io.BytesIO(_as_file(old["pickled"][which])), weights_only=False)
    x, expected = old["inputs"][which], old["outputs"][which]
    assert type(module) is KINDS[which]
    assert torch.allclose(_call(module, x), expected, atol=1e-6)
    assert_same_state(module, old["state_dicts"][which])
    fresh = (SparseLinear(19, 8), SparseConv2d(6, 8, 3, padding=1), SparseMultiheadAttention(16, 2))[which]
    fresh.load_state_dict(old["state_dicts"][which])
    assert torch.allclose(_call(fresh, x), expected, atol=1e-6)


def _as_file(pickled: bytes) -> bytes:
    """``pickle.loads`` and torch.save again: the old classes are found under their old names."""
    import pickle  # noqa: PLC0415

    saved = io.BytesIO()
    torch.save(pickle.loads(pickled), saved)
    return saved.getvalue()


def test_a_state_dict_is_that_of_0_1_bit_for_bit() -> None:
    old = torch.load(OLD, weights_only=True)["state_dicts"][0]
    layer = SparseLinear(19, 8)
    layer.load_state_dict(old)
    layer(torch.randn(2, 19))
    new = layer.state_dict()
    assert list(new) == list(old) == ["values", "bias", "indices"]
    for key in old:
        assert new[key].dtype is old[key].dtype
        assert torch.equal(new[key].view(torch.uint8), old[key].view(torch.uint8))


def test_a_newer_format_is_refused_by_name_and_changes_nothing() -> None:
    model = nn.Sequential(SparseLinear.from_dense(pruned_linear(16, 8)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = SparseLinear.from_dense(pruned_linear(16, 8)).state_dict(prefix="0.")
    assert state._metadata["0"]["version"] == 1
    state._metadata["0"]["version"] = 2
    with pytest.raises(RuntimeError, match=r"0\.values and indices have format 2, .* newer than .* \(1\)"):
        model.load_state_dict(state)
    assert_same_state(model, before)


def test_the_old_names_of_modules_still_import() -> None:
    from sparse24.asp import ASP  # noqa: PLC0415
    from sparse24.attention import SparseMultiheadAttention as Attention  # noqa: PLC0415
    from sparse24.nn import SparseConv2d as Conv2d  # noqa: PLC0415
    from sparse24.sparsifier import Sparsifier  # noqa: PLC0415

    assert (Attention, Conv2d, Sparsifier) == (KINDS[2], KINDS[1], sparse24.Sparsifier)
    assert hasattr(ASP, "prune_trained_model")
