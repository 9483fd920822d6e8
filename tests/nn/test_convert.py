"""``to_sparse`` and ``to_dense`` over whole networks: what is converted, and that it answers alike."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from reference import assert_matches, prune_layers, relative_error
from sparse24 import SparseLinear, Sparsifier

from .conversions import converted, count, reasons

pytestmark = pytest.mark.usefixtures("seeded")


class Block(nn.Module):
    """A residual block as ResNeXt has it: 1x1, grouped 3x3, 1x1, around odd channel counts."""

    def __init__(self, channels: int, inner: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.grouped = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, channels, 1)
        self.skip = nn.Conv2d(channels, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.reduce(x)))
        y = F.relu(self.norm2(self.grouped(y)))
        return F.relu(self.expand(y) + self.skip(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 19, 7, 2, 3),
        Block(19, 24, groups=2),
        Block(19, 21, groups=3, stride=2),
        nn.Conv2d(19, 30, 3, padding="same", padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(30, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(37, 64), nn.ReLU(), nn.Linear(64, 50), nn.GELU(), nn.Linear(50, 6))


@pytest.mark.parametrize(
    ("build", "shape"),
    [(mlp, (5, 37)), (resnet, (2, 3, 33, 29))],
    ids=["mlp", "resnet"],
)
def test_a_network_answers_as_the_dense_one(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    dense, sparse, report = converted(build())
    assert not report.left
    x = torch.randn(shape)
    with torch.no_grad():
        expected = copy.deepcopy(dense).double()(x.double())
        assert relative_error(sparse(x), expected) < 5e-6
    calls = count(sparse, x)
    assert calls["sparse24::linear"] + calls["sparse24::conv2d"] == len(report.done)
    assert not calls["aten::addmm"] + calls["aten::convolution"] + calls["sparse24::decompress"]


def test_the_whole_recipe_from_prune_to_dense_again() -> None:
    model = mlp().eval()
    Sparsifier(model, select=lambda name, module: True).prune()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = torch.randn(3, 37)
    expected = model(x)
    report = sparse24.to_sparse(model, when="always")
    assert [row.name for row in report.done] == ["0", "2", "4"]
    assert_matches(model(x), expected)
    back = sparse24.to_dense(model)
    assert [(row.name, row.kind) for row in back.done] == [(n, "SparseLinear") for n in ("0", "2", "4")]
    assert [type(layer) for layer in model][::2] == [nn.Linear] * 3
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[key], state[key]) for key in state)


def test_a_state_dict_moves_between_converted_models() -> None:
    _, first, _ = converted(resnet())
    _, second, _ = converted(resnet())
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 3, 33, 29)
    assert torch.equal(first(x), second(x))


def test_the_report_counts_bytes_and_kept_weights() -> None:
    model = nn.ModuleDict({"a": prune_layers(nn.Linear(64, 16)), "b": nn.Linear(64, 16)})
    report = sparse24.to_sparse(model, when="always")
    a, b = report
    assert (a.name, a.kind, a.shape, a.done, a.reason) == ("a", "Linear", (16, 64), True, "")
    assert a.kept == 0.5
    assert a.bytes_before == 4 * (16 * 64 + 16)
    assert a.bytes_after == 4 * (16 * 32 + 16) + 16 * 8
    assert a.bytes_after == sum(t.numel() * t.element_size() for t in model["a"].state_dict().values())
    assert (b.done, b.kept, b.bytes_before == b.bytes_after) == (False, 1.0, True)
    assert b.reason == "not 2:4: row 0, columns 0-3 hold more than two non-zeros"
    text = str(report)
    assert "1 of 2 layers converted; 8,320 bytes -> 6,400" in text
    assert "16x64  yes        50.0%" in text
    assert len(report[:1]) == 1


def test_dtype_casts_what_is_converted() -> None:
    dense, sparse, report = converted(mlp(), dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in sparse.parameters())
    assert sum(r.bytes_after for r in report) < 0.32 * sum(r.bytes_before for r in report)
    x = torch.randn(4, 37)
    assert relative_error(sparse(x.bfloat16()), dense(x)) < 3e-2
    with pytest.raises(TypeError, match=r"float32, float16, bfloat16, not torch\.int8"):
        sparse24.to_sparse(mlp(), dtype=torch.int8)


def test_filter_fn_chooses_and_sees_names() -> None:
    seen = []

    def only_first(name: str, module: nn.Module) -> bool:
        seen.append((name, type(module)))
        return name == "0"

    _, sparse, report = converted(mlp(), filter_fn=only_first)
    assert seen == [("0", nn.Linear), ("2", nn.Linear), ("4", nn.Linear)]
    assert reasons(report) == {"2": "left out by filter_fn", "4": "left out by filter_fn"}
    assert type(sparse[0]) is SparseLinear


def test_training_flags_hooks_and_attributes_stay() -> None:
    model = prune_layers(nn.Sequential(nn.Linear(16, 8), nn.Conv2d(8, 8, 1)))
    model[0].eval()
    model[0].depth = 3
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    model[0].register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs), with_kwargs=True)
    report = sparse24.to_sparse(model, when="always")
    assert report[0].reason == "hooks carried over"
    assert (model[0].training, model[1].training, model[0].depth) == (False, True, 3)
    model[0](torch.randn(2, 16))
    handle.remove()
    model[0](torch.randn(2, 16))
    assert seen == [SparseLinear]
    sparse24.to_dense(model)
    assert (model[0].training, model[1].training, model[0].depth) == (False, True, 3)
    assert not hasattr(model[0], "activation")
    assert len(model[0]._forward_pre_hooks) == 1


def test_a_backward_hook_still_fires() -> None:
    model = prune_layers(nn.Sequential(nn.Linear(16, 8)))
    seen = []
    model[0].register_full_backward_hook(lambda module, grads, outputs: seen.append(grads[0].shape))
    sparse24.to_sparse(model, when="always")
    model(torch.randn(2, 16, requires_grad=True)).sum().backward()
    assert seen == [(2, 16)]


def test_a_module_with_two_names_is_converted_once() -> None:
    shared = prune_layers(nn.Linear(16, 16))
    model = nn.ModuleDict({"first": shared, "other": nn.Sequential(nn.ReLU(), shared)})
    report = sparse24.to_sparse(model, when="always")
    assert model["first"] is model["other"][1]
    assert type(model["first"]) is SparseLinear
    assert [(row.name, row.reason) for row in report] == [("first", "also other.1")]
    sparse24.to_dense(model)
    assert model["first"] is model["other"][1]
    assert type(model["first"]) is nn.Linear


def test_tied_weights_are_refused_by_name() -> None:
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(24, 16),
            "head": nn.Linear(16, 24, bias=False),
            "a": nn.Linear(16, 8),
            "b": nn.Linear(16, 8),
            "c": nn.Linear(16, 8),
        }
    )
    model["head"].weight = model["embed"].weight
    model["b"].weight = model["a"].weight
    prune_layers(model)
    report = sparse24.to_sparse(model, when="always")
    assert reasons(report) == {
        "head": "weight is shared with embed.weight: untie it first",
        "a": "weight is shared with b.weight: untie it first",
        "b": "weight is shared with a.weight: untie it first",
    }
    assert model["head"].weight is model["embed"].weight


def test_two_views_of_one_storage_are_shared_too() -> None:
    model = nn.ModuleDict({"a": prune_layers(nn.Linear(16, 8)), "b": nn.Linear(16, 4)})
    model["b"].weight = nn.Parameter(model["a"].weight.detach()[:4])
    assert (
        reasons(sparse24.to_sparse(model, when="always"))["b"]
        == "weight is shared with a.weight: untie it first"
    )


def test_a_float64_layer_is_converted_where_a_dtype_is_given() -> None:
    dense, sparse, report = converted(mlp().double(), dtype=torch.float32)
    assert not report.left
    x = torch.randn(4, 37)
    assert_matches(sparse(x), dense(x.double()))


@pytest.mark.parametrize(
    "root",
    [nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.MultiheadAttention(4, 2), SparseLinear(4, 4)],
    ids=lambda root: type(root).__name__,
)
def test_a_root_that_is_the_layer_is_refused(root: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"itself a {type(root).__name__}.*cannot be swapped in place"):
        sparse24.to_sparse(root)


def test_to_dense_refuses_a_sparse_root_and_other_types() -> None:
    with pytest.raises(ValueError, match=r"itself a SparseLinear.*to_dense\(\)"):
        sparse24.to_dense(SparseLinear(4, 4))
    with pytest.raises(TypeError, match=r"nn\.Module, not dict"):
        sparse24.to_dense({})
    with pytest.raises(TypeError, match=r"nn\.Module, not list"):
        sparse24.to_sparse([])


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prune_layers(mlp())
    before = list(model)
    build = SparseLinear.from_dense
    calls = []

    def fail_at_the_second(module: nn.Linear, dtype: torch.dtype | None = None) -> SparseLinear:
        calls.append(module)
        if len(calls) == 2:
            raise MemoryError("no room")
        return build(module, dtype)

    monkeypatch.setattr(SparseLinear, "from_dense", fail_at_the_second)
    with pytest.raises(MemoryError):
        sparse24.to_sparse(model, when="always")
    assert all(now is then for now, then in zip(model, before, strict=True))


def test_converting_twice_changes_nothing_more() -> None:
    _, sparse, _ = converted(mlp())
    layers = list(sparse)
    report = sparse24.to_sparse(sparse, when="always")
    assert set(reasons(report).values()) == {"already sparse"}
    assert all(now is then for now, then in zip(sparse, layers, strict=True))
