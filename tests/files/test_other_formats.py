"""Weights of other programs: compressed-tensors' bitmask, apex's masks, torch's semi-structured tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sparse24
from sparse24.asp import ASP
from sparse24.files import (
    FileError,
    from_apex,
    from_bitmask,
    from_semi_structured,
    to_bitmask,
    to_semi_structured,
)

pytestmark = pytest.mark.usefixtures("seeded")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 12, bias=False)).eval()


def sparse(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    model = network().to(dtype)
    sparse24.Sparsifier(model, select=["*weight"]).prune()
    assert not sparse24.to_sparse(model, when="always").left
    return model


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


# ---- sparse-24-bitmask -------------------------------------------------------------------------------


def by_definition(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Kept values by rows, and a bit a weight, low bits first."""
    mask = weight != 0
    padded = torch.nn.functional.pad(mask, (0, -weight.shape[1] % 8)).view(len(weight), -1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])
    return weight[mask].view(len(weight), -1), (padded * powers).sum(-1).to(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bitmask_is_written_as_it_is_defined(dtype: torch.dtype) -> None:
    model = sparse(dtype)
    state = to_bitmask(model)
    assert sorted(state) == ["0.bias", "0.bitmask", "0.compressed", "0.shape"] + [
        f"2.{part}" for part in ("bitmask", "compressed", "shape")
    ]
    for name in ("0", "2"):
        kept, mask = by_definition(model.get_submodule(name).weight.dense())
        assert torch.equal(bits(state[f"{name}.compressed"]), bits(kept))
        assert torch.equal(state[f"{name}.bitmask"], mask)
        assert state[f"{name}.shape"].tolist() == list(model.get_submodule(name).weight.shape)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_a_bitmask_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    values = torch.randint(0, 255, (6, 10), dtype=torch.uint8).repeat(1, dtype.itemsize).view(dtype)
    order = torch.rand(6, 5, 4).argsort(-1) < 2  # two of every four
    spread = torch.nn.functional.pad(order.view(6, 20), (0, 4)).view(6, 3, 8)
    mask = (spread * torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])).sum(-1).to(torch.uint8)
    state = {"a.compressed": values, "a.bitmask": mask, "a.shape": torch.tensor([6, 20]), "a.bias": values[0]}
    found = from_bitmask(state)
    assert found.keys() == {"a.values", "a.indices", "a.bias"}
    assert torch.equal(bits(found["a.values"][:, :10]), bits(values))
    words = found["a.values"].view(torch.uint8).view(6, 12, -1)[..., :1].squeeze(-1)
    wide = sparse24.decompress(words.float(), found["a.indices"])[:, :20]
    assert torch.equal(wide[order.view(6, 20)].view(6, 10), words[:, :10].float())
    assert state.keys() == {"a.compressed", "a.bitmask", "a.shape", "a.bias"}  # as it was


def test_a_network_goes_there_and_back(tmp_path: Path) -> None:
    model = sparse()
    model[0].to_int8()
    save_file(to_bitmask(model), tmp_path / "m.safetensors")
    other = network()
    assert len(sparse24.load(other, tmp_path / "m.safetensors").done) == 2
    a, b = model.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_other_layers_are_dense_in_a_bitmask_file() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3), "one": nn.Conv1d(8, 8, 3), "linear": nn.Linear(16, 8)})
    sparse24.Sparsifier(model, select=["*weight"]).prune()
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparse24.to_sparse(model, when="always")
    state = to_bitmask(model)
    assert torch.equal(state["conv.weight"], dense["conv.weight"])
    assert torch.equal(state["one.weight"], dense["one.weight"])
    assert "linear.compressed" in state
    assert not [name for name in state if name.endswith(("values", "indices"))]


def test_damaged_bitmasks_are_named() -> None:
    state = to_bitmask(sparse())

    def refused(says: str, **changes: Any) -> None:
        with pytest.raises(FileError, match=says):
            from_bitmask(state | {name.replace("_", "."): value for name, value in changes.items()})

    refused(r"0\.compressed, 0\.bitmask and 0\.shape belong together", **{"0.bitmask": None})
    refused("0.bitmask keeps 4 of the four weights in row 0, columns 0-3", **{
        "0.bitmask": torch.full((24, 3), 255, dtype=torch.uint8)
    })  # fmt: skip
    refused("do not make a 2:4 weight 24x24", **{"0.shape": torch.tensor([24, 24])})
    refused("must be uint8 and 0.shape two numbers", **{"0.bitmask": torch.zeros(24, 3)})
    with pytest.raises(TypeError, match="to_bitmask needs an"):
        to_bitmask({})  # type: ignore[arg-type]
    odd = nn.Sequential(nn.Linear(18, 8))
    sparse24.Sparsifier(odd, select=["*weight"]).prune()
    sparse24.to_sparse(odd, when="always")
    with pytest.raises(FileError, match="0: 18 input features: sparse-24-bitmask holds multiples of 4"):
        to_bitmask(odd)


# ---- apex --------------------------------------------------------------------------------------------


def apexs_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 24), nn.Conv2d(16, 16, 3), nn.MultiheadAttention(16, 2), nn.Linear(16, 16)
    )


def apex_checkpoint() -> tuple[nn.Module, dict[str, Any]]:
    model = nn.Sequential(
        nn.Linear(16, 24), nn.Conv2d(16, 16, 3), nn.MultiheadAttention(16, 2), nn.Linear(16, 16)
    )
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    ASP.compute_sparse_masks()
    state = ASP.state_dict(model)
    ASP.release(model)
    assert "0.__weight_mma_mask" in state
    assert "0.__weight_mma_pruned_p" in state
    return model, state


def test_a_checkpoint_of_apex_is_loaded_into_a_dense_network(tmp_path: Path) -> None:
    model, state = apex_checkpoint()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.pt")
    other = apexs_network()
    assert len(sparse24.load(other, tmp_path / "last.pt").done) == 4
    sparse24.to_dense(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_apexs_masks_are_applied_and_gone() -> None:
    model, state = apex_checkpoint()
    state["0.weight"] = state["0.weight"] + 1  # an optimizer that ASP did not know
    found = from_apex(state, compress=False)
    assert found.keys() == model.state_dict().keys()
    mask = state["0.__weight_mma_mask"] != 0
    assert torch.equal(found["0.weight"], torch.where(mask, state["0.weight"], 0.0))
    assert not found["0.weight"][~mask].signbit().any()
    with pytest.raises(FileError, match=r"apex's mask of 0.weight is \(24, 16\), and the weight missing"):
        from_apex({"0.__weight_mma_mask": mask})
    with pytest.raises(FileError, match=r"is \(24, 16\), and the weight \(8, 8\)"):
        from_apex({"0.__weight_mma_mask": mask, "0.weight": torch.ones(8, 8)})


# ---- torch's own -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_torchs_tensors_there_and_back(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 128)
    weight = (weight * sparse24.magnitude_mask(weight) * 20).to(dtype)
    values, indices = sparse24.compress(weight)
    theirs = to_semi_structured(values, indices)
    assert type(theirs) is torch.sparse.SparseSemiStructuredTensorCUTLASS
    assert torch.equal(theirs.to_dense(), weight)
    again = from_semi_structured(theirs)
    assert torch.equal(sparse24.decompress(*again), weight)


def test_what_torchs_tensors_cannot_hold_is_named() -> None:
    values, indices = sparse24.compress(torch.zeros(8, 16))
    with pytest.raises(TypeError, match=r"of float16, bfloat16 and int8, not of torch\.float32"):
        to_semi_structured(values, indices)
    with pytest.raises(ValueError, match=r"multiples of 32 output and 64 input features in .*, not 8x16"):
        to_semi_structured(values.half(), indices)
    with pytest.raises(TypeError, match="needs a SparseSemiStructuredTensor, not Tensor"):
        from_semi_structured(torch.zeros(8, 16))
