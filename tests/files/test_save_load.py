"""``sparse24.save`` and ``sparse24.load``: any network, any file, nothing half done.

Over 300 lines: one network in every kind of file.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from sparse24.files import FileError, saving
from sparse24.nn import SparseConv2d, SparseLinear, SparseMultiheadAttention

pytestmark = pytest.mark.usefixtures("seeded")

PATHS = pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "folder"])


class Network(nn.Module):
    """Every kind of layer, a tied weight, and a buffer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.body = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.conv = nn.Conv2d(8, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        x = self.body(self.embed(tokens))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        found: Tensor = self.head(x).sum() + self.norm(self.conv(image))
        return found


INPUTS = (torch.arange(10).view(2, 5), torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)))


def pruned() -> Network:
    model = Network().eval()
    sparse24.Sparsifier(model).prune()
    return model


def sparse() -> Network:
    model = pruned()
    assert len(sparse24.to_sparse(model, when="always").done) == 4
    return model


def meta() -> Network:
    with torch.device("meta"):
        return Network()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    a, b = bits(one), bits(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
    with torch.no_grad():
        assert torch.equal(one.eval()(*INPUTS), other.eval()(*INPUTS))


@PATHS
@pytest.mark.parametrize("make", [Network, meta, pruned, sparse])
def test_a_sparse_network_comes_back_into_any(name: str, make: Any, tmp_path: Path) -> None:
    model = sparse()
    sparse24.save(model, tmp_path / name)
    other = make()
    report = sparse24.load(other, tmp_path / name)
    assert len(report.done) == 4
    assert isinstance(other.attention, SparseMultiheadAttention)
    assert isinstance(other.conv, SparseConv2d)
    assert other.head.weight is other.embed.weight
    assert_same(model, other)


@PATHS
def test_8_bits_come_back(name: str, tmp_path: Path) -> None:
    model = sparse()
    model.body[0].to_int8("static", 0.1)
    model.body[2].to_float8()
    sparse24.save(model, tmp_path / name)
    for other in (meta(), Network()):
        sparse24.load(other, tmp_path / name)
        assert_same(model, other)


@PATHS
def test_float8_comes_back_and_is_widened_by_floating_layers(name: str, tmp_path: Path) -> None:
    model = sparse()
    for layer in (model.body[0], model.conv):
        layer.to_float8()
    sparse24.save(model, tmp_path / name)
    for other in (meta(), Network(), copy.deepcopy(model)):
        sparse24.load(other, tmp_path / name)
        assert other.body[0].is_float8
        assert other.conv.is_float8
        for key, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[key].float(), tensor.float()), key
    floating = sparse()
    sparse24.load(floating, tmp_path / name)
    for own, layer in ((floating.body[0], model.body[0]), (floating.conv, model.conv)):
        assert "dequantized from float8_e4m3fn" in repr(own)
        assert torch.equal(own.weight.dense(), layer.weight.dense())


def test_compressed_layers_become_what_the_file_says(tmp_path: Path) -> None:
    floating, narrow = sparse(), sparse()
    narrow.conv.to_int8("dynamic")
    for one, other in ((floating, narrow), (narrow, floating)):
        sparse24.save(one, tmp_path / "m.pt")
        loaded = copy.deepcopy(other)
        sparse24.load(loaded, tmp_path / "m.pt")
        assert_same(one, loaded)


def test_dtypes_are_the_models_or_where_it_has_none_the_files(tmp_path: Path) -> None:
    model = sparse().bfloat16()
    sparse24.save(model, tmp_path / "m.safetensors")
    blank, wide = meta(), Network()
    sparse24.load(blank, tmp_path / "m.safetensors")
    sparse24.load(wide, tmp_path / "m.safetensors")
    assert {p.dtype for p in blank.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert torch.equal(wide.body[0].weight.dense(), model.body[0].weight.dense().float())


def test_small_shards_and_their_index(tmp_path: Path) -> None:
    model = sparse()
    sparse24.save(model, tmp_path / "folder", max_shard_size=4000)
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 3
    for path in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors.index.json"):
        other = meta()
        sparse24.load(other, path)
        assert_same(model, other)


def test_state_dicts_in_checkpoints_are_found(tmp_path: Path) -> None:
    model = sparse()
    path = tmp_path / "last.ckpt"
    state = model.state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    for checkpoint in (
        {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        {"model": prefixed, "loss": {"weight": torch.ones(3)}},
        {f"_orig_mod.{name}": tensor for name, tensor in prefixed.items()},
    ):
        torch.save(checkpoint, path)
        other = meta()
        sparse24.load(other, path)
        assert_same(model, other)


def test_of_several_state_dicts_one_is_chosen_by_key(tmp_path: Path) -> None:
    model, path = sparse(), tmp_path / "last.pt"
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.body[0].bias.add_(1)
    torch.save({"model": model.state_dict(), "ema": other.state_dict()}, path)
    with pytest.raises(FileError, match="several state_dicts that fit: 'model', 'ema'; choose one with key="):
        sparse24.load(meta(), path)
    with pytest.raises(FileError, match="has no state_dict 'x', but 'model', 'ema'"):
        sparse24.load(meta(), path, key="x")
    found = meta()
    sparse24.load(found, path, key="ema")
    assert_same(other, found)


def test_layers_that_are_dense_in_the_file_are_dense(tmp_path: Path) -> None:
    model = sparse()
    partly = Network().eval()
    partly.load_state_dict(pruned().state_dict())
    sparse24.to_sparse(partly, filter_fn=lambda name, _: name == "body.0", when="always")
    with torch.no_grad():
        partly.body[2].weight.fill_(1.0)  # not 2:4
    sparse24.save(partly, tmp_path / "m.pt")
    sparse24.load(model, tmp_path / "m.pt")
    assert type(model.body[2]) is nn.Linear
    assert type(model.attention) is nn.MultiheadAttention
    assert isinstance(model.conv, SparseConv2d)  # 2:4 in the file
    with torch.no_grad():
        assert torch.allclose(model.eval()(*INPUTS), partly(*INPUTS), atol=1e-5)


def test_a_dense_network_of_ours_comes_back(tmp_path: Path) -> None:
    for name in ("m.safetensors", "m.pt", "folder"):
        model = Network()
        sparse24.save(model, tmp_path / name)
        other = Network()
        assert not sparse24.load(other, tmp_path / name).done
        assert_same(model, other)


# ---- faults ------------------------------------------------------------------------------------------


def refused(model: nn.Module, path: Path, says: str, **options: Any) -> None:
    before, kinds = bits(model), [type(m) for m in model.modules()]
    with pytest.raises(FileError, match=says):
        sparse24.load(model, path, **options)
    assert [type(m) for m in model.modules()] == kinds
    if not any(t.is_meta for t in before.values()):
        assert all(torch.equal(before[name], tensor) for name, tensor in bits(model).items())


@pytest.mark.parametrize("make", [Network, meta, sparse])
def test_what_does_not_fit_is_named_and_changes_nothing(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    sparse24.save(sparse(), path)
    refused(nn.Sequential(nn.Linear(32, 64)), path, "compressed in it, and no layer of the model")
    swapped = make()
    swapped.conv = nn.ReLU()
    refused(swapped, path, "conv is compressed in it, and a ReLU in the model")
    larger = make()
    larger.extra = nn.Linear(8, 8)
    refused(larger, path, "Network: extra.bias is missing in it, and 1 others")
    smaller = make()
    del smaller.norm
    refused(smaller, path, "norm.bias has no place in the model, and 4 others")
    with torch.device("meta") if make is meta else torch.device("cpu"):
        wider = Network(64)
    refused(wider, path, r"is \(.*\) in it, \(.*\) in the model")


def test_a_dense_file_is_refused(tmp_path: Path) -> None:
    torch.save(pruned().state_dict(), tmp_path / "dense.pt")
    refused(
        Network(), tmp_path / "dense.pt", "no compressed weight in it: a dense checkpoint is for load_state"
    )


@pytest.mark.parametrize("make", [Network, meta, sparse])
def test_damage_is_named_and_changes_nothing(make: Any, tmp_path: Path) -> None:
    state = sparse().state_dict()
    torch.save(state | {"body.0.indices": torch.zeros(64, 4, dtype=torch.uint8)}, tmp_path / "damaged.pt")
    refused(make(), tmp_path / "damaged.pt", "body.0.indices are damaged")
    del state["body.0.values"]
    torch.save(state, tmp_path / "half.pt")
    refused(make(), tmp_path / "half.pt", "is missing in it")
    sparse24.save(sparse(), tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[: len(data) // 2])
    refused(make(), tmp_path / "m.safetensors", "not a safetensors file")
    refused(make(), tmp_path / "none.pt", "no such file")


def test_a_model_that_is_the_layer_itself(tmp_path: Path) -> None:
    layer = SparseLinear(16, 8)
    sparse24.save(layer, tmp_path / "m.pt")
    refused(nn.Linear(16, 8), tmp_path / "m.pt", "the model is itself a Linear")
    sparse24.load(SparseLinear(16, 8), tmp_path / "m.pt")


def test_a_buffer_without_numbers_is_named(tmp_path: Path) -> None:
    def network() -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 16))
        model.register_buffer("table", torch.ones(3), persistent=False)
        return model

    model = network()
    sparse24.Sparsifier(model, select=["0.weight"]).prune()
    sparse24.to_sparse(model, when="always")
    sparse24.save(model, tmp_path / "m.pt")
    with torch.device("meta"):
        blank = network()
    refused(blank, tmp_path / "m.pt", "table is on the meta device, and no file holds it")


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = saving.write

    def stop(file: Any, path: Path) -> None:
        written(file, path)
        if "00002" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(saving, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        sparse24.save(sparse(), tmp_path / "folder", max_shard_size=4000)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="save needs an"):
        sparse24.save({}, tmp_path / "m.pt")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="load needs an"):
        sparse24.load({}, tmp_path / "m.pt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_shard_size is in bytes and positive, not 0"):
        sparse24.save(Network(), tmp_path / "m", max_shard_size=0)
    with pytest.raises(FileError, match="is on the meta device and holds no numbers"):
        sparse24.save(meta(), tmp_path / "m.pt")

    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"steps": 3}

        def set_extra_state(self, state: Any) -> None:
            self.steps = state

    with pytest.raises(FileError, match=r"_extra_state is no tensor: only a file of torch.save"):
        sparse24.save(Extra(4, 4), tmp_path / "m.safetensors")
    sparse24.save(Extra(4, 4), tmp_path / "m.pt")
    other = Extra(4, 4)
    sparse24.load(other, tmp_path / "m.pt")
    assert other.steps == {"steps": 3}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(FileError, match="is there already"):
        sparse24.save(Network(), tmp_path / "full")


def test_wrappers_are_left_out(tmp_path: Path) -> None:
    model = nn.DataParallel(sparse())
    sparse24.save(model, tmp_path / "m.pt")
    other = nn.DataParallel(meta())
    sparse24.load(other, tmp_path / "m.pt")
    assert_same(model.module, other.module)


@pytest.mark.parametrize("storage", ["int8", "dynamic", "float8"])
def test_an_8_bit_file_loads_into_compressed_layers_on_meta(storage: str, tmp_path: Path) -> None:
    dense = nn.Linear(32, 16)
    sparse24.masks.prune_(dense.weight.data)
    layer = SparseLinear.from_dense(dense)
    if storage == "float8":
        layer.to_float8()
    else:
        layer.to_int8("dynamic" if storage == "dynamic" else None)
    model = nn.Sequential(layer, nn.ReLU())
    sparse24.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        shell = nn.Sequential(SparseLinear(32, 16), nn.ReLU())
    kept = shell[0]
    x = torch.randn(3, 32)
    sparse24.load(shell, tmp_path / "m.safetensors")
    assert torch.equal(shell(x), model(x))
    assert shell[0].values.dtype == layer.values.dtype
    other = nn.Sequential(kept, nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(FileError, match=r"2\.bias is missing in it"):
        sparse24.load(other, tmp_path / "m.safetensors")
    assert other[0] is kept
    assert kept.values.is_meta
    assert kept.values.dtype == torch.float32
