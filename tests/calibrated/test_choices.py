"""What a caller decides: masks of one's own, biases, layers that stay dense; and weights that are shared."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from reference import relative_error
from sparse24.calibrated import oneshot

from .networks import Images, Stack, correlated, mlp, network

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("method", ["sparsegpt", "admm", "magnitude", "wanda", "ria"])
@pytest.mark.parametrize("name", ["stack", "images", "encoder"])
def test_masks_of_the_callers_own_are_kept_to(name: str, method: str) -> None:
    model, batches = network(name)
    twin = copy.deepcopy(model).eval()
    pruned = sparse24.Sparsifier(twin)
    pruned.prune()
    masks = {n: m for n, m in pruned.masks.items() if n != "unused.weight"}
    shifted = {n: m.roll(1, 0) for n, m in masks.items()}  # nobody would choose these
    oneshot(model, batches, method, masks=shifted, steps=3, skip=["unused"] if name == "stack" else ())
    for parameter_name, mask in shifted.items():
        parameter = model.get_parameter(parameter_name)
        assert not parameter[~mask].any()
        assert (parameter[mask] != 0).float().mean() > 0.9


def test_a_given_mask_is_refitted_better_than_left() -> None:
    model, batches = network("mlp")
    fresh = correlated(64, 16)
    dense = model(fresh).detach()
    sparsifier = sparse24.Sparsifier(copy.deepcopy(model))
    sparsifier.prune()
    errors = {}
    for method, refit in (("magnitude", 0), ("magnitude", 10), ("admm", 0), ("sparsegpt", 0)):
        twin = copy.deepcopy(model)
        oneshot(twin, batches, method, refit=refit, reconstruct=None, masks=sparsifier.masks)
        errors[method, refit] = float((twin(fresh).detach() - dense).square().sum())
    assert max(errors["magnitude", 10], errors["admm", 0], errors["sparsegpt", 0]) < errors["magnitude", 0]


def bad_masks() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    good = torch.zeros(32, 16, dtype=torch.bool)
    return {
        "unknown": (
            {"9.weight": good},
            ValueError,
            "'9.weight', which is not pruned here; pruned are: 0.weight",
        ),
        "shape": ({"0.weight": good[:, :8]}, ValueError, r"the shape \(32, 8\), and the weight \(32, 16\)"),
        "dense": ({"0.weight": ~good}, ValueError, "not 2:4: it keeps more than two of four"),
        "dtype": (
            {"0.weight": good.float()},
            TypeError,
            r"must be a bool tensor, True = kept, not torch\.float32",
        ),
        "kind": ({"0.weight": [1]}, TypeError, "not list"),
    }


@pytest.mark.parametrize("case", bad_masks())
def test_masks_that_do_not_fit_are_refused(case: str) -> None:
    masks, error, text = bad_masks()[case]
    model, batches = network("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=text):
        oneshot(model, batches, masks=masks)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Projection(nn.Module):
    """One layer alone, of each kind that has a bias."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer: nn.Module = {
            "linear": lambda: nn.Linear(16, 8),
            "conv2d": lambda: nn.Conv2d(16, 8, 3, groups=2),
            "conv1d": lambda: nn.Conv1d(16, 8, 2),
            "attention": lambda: nn.MultiheadAttention(16, 2, batch_first=True),
            "separate": lambda: nn.MultiheadAttention(16, 2, kdim=12, vdim=8, batch_first=True),
        }[kind]()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "attention":
            return self.layer(x, x, x)[0]
        if self.kind == "separate":
            return self.layer(x, x[..., :12], x[..., :8])[0]
        if self.kind == "conv2d":
            return self.layer(x.permute(0, 2, 1).unflatten(2, (4, 4)))
        return self.layer(x.permute(0, 2, 1) if self.kind == "conv1d" else x)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv1d", "attention", "separate"])
def test_biases_take_up_the_mean_of_what_is_lost(kind: str) -> None:
    batches = [correlated(4, 16, 16) + 3 for _ in range(8)]
    model = Projection(kind).eval()
    if kind in {"attention", "separate"}:
        nn.init.normal_(model.layer.in_proj_bias)
    wanted = [model(x).detach() for x in batches]
    errors, means = {}, {}
    for bias in (False, True):
        twin = copy.deepcopy(model)
        oneshot(twin, batches, refit=10, reconstruct=None, bias=bias, select=["layer*"])
        lost = torch.cat([(twin(x) - y).detach() for x, y in zip(batches, wanted, strict=True)])
        errors[bias] = float(lost.square().mean())
        means[bias] = float(
            lost.mean((0, 2, 3) if kind == "conv2d" else (0, 2) if kind == "conv1d" else (0, 1)).norm()
        )
    assert errors[True] < errors[False]
    if kind not in {"attention", "separate"}:  # whose mean passes through a softmax
        assert means[True] < 1e-5 * max(float(y.abs().max()) for y in wanted) * 10


def test_a_convolution_of_transformers_has_its_bias_corrected() -> None:
    layer = pytest.importorskip("transformers", reason="the extra dev brings it").pytorch_utils.Conv1D(8, 16)
    model = nn.Sequential(layer)
    batches = [correlated(64, 16) + 3]
    wanted = model(batches[0]).detach()
    oneshot(model, batches, reconstruct=None)
    assert float((model(batches[0]).detach() - wanted).mean(0).abs().max()) < 1e-4


def test_layers_can_be_left_dense() -> None:
    model, batches = network("stack")
    before = model.blocks[1].up.weight.detach().clone()
    report = {
        row.name: row for row in oneshot(model, batches, reconstruct=None, skip=["blocks.1.*", "embed"])
    }
    assert not report["blocks.1.up.weight"].done
    assert report["blocks.1.up.weight"].reason == "kept dense by skip"
    assert torch.equal(model.blocks[1].up.weight, before)
    assert report["blocks.0.up.weight"].done
    with pytest.raises(ValueError, match="matches no layer"):
        oneshot(model, batches, skip=["nothing"])


class Tied(nn.Module):
    """Two blocks that share a layer, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"own": nn.Linear(16, 16), "both": shared}) for _ in range(3)
        )
        self.other = nn.Linear(16, 16)
        self.other.weight = self.blocks[0]["own"].weight

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + F.gelu(block["both"](F.gelu(block["own"](x))))
        return self.other(x)


@pytest.mark.parametrize("steps", [None, 30])
def test_what_is_shared_is_pruned_once_and_stays_2_4(steps: int | None) -> None:
    model = Tied()
    batches = [correlated(8, 16) for _ in range(10)]
    report = oneshot(
        model,
        batches,
        reconstruct="component" if steps else None,
        steps=steps or 1,
        select=["*own*", "*both*"],
    )
    names = [row.name for row in report.done]
    assert len(names) == len(set(names))
    assert "blocks.0.both.weight" in names
    for name in names:
        assert sparse24.is_sparse24(model.get_parameter(name).detach()), name


def test_inputs_that_never_vary_and_dead_ones_are_no_obstacle() -> None:
    model = mlp()
    batches = [torch.cat([correlated(32, 8), torch.zeros(32, 4), torch.full((32, 4), 2.0)], 1)]
    wanted = model(batches[0])
    for method in ("sparsegpt", "admm", "wanda", "ria", "magnitude"):
        twin = copy.deepcopy(model)
        oneshot(twin, batches, method, reconstruct=None)
        assert all(bool(p.isfinite().all()) for p in twin.parameters())
        assert relative_error(twin(batches[0]), wanted) < 0.5


@pytest.mark.parametrize("train", [{"reconstruct": None}, {"steps": 5}], ids=str)
def test_layers_narrower_than_four(train: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.Linear(2, 1))
    batches = [torch.randn(6, 3) for _ in range(4)]
    oneshot(model, batches, **train)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def refusals() -> dict[str, tuple[Any, Any, type[Exception], str]]:
    hurt = mlp()
    hurt[0].weight.data[1, 1] = torch.nan
    return {
        "one tensor": (mlp(), torch.randn(4, 16), TypeError, "an iterable of batches, not a Tensor"),
        "one mapping": (mlp(), {"x": torch.randn(4, 16)}, TypeError, "not a dict"),
        "numbers": (mlp(), [1, 2], TypeError, "a batch is a tensor, a tuple .* not int"),
        "labels": (
            mlp(), [(torch.randn(4, 16), torch.zeros(4))], ValueError,
            r"2 positional arguments: TypeError: .* without labels",
        ),
        "wrong width": (mlp(), [torch.randn(4, 9)], ValueError, r"a tensor \(4, 9\) of .*: RuntimeError"),
        "wrong names": (Stack(), [{"y": torch.randn(4, 16)}], ValueError, "named arguments y: TypeError"),
        "no values": (
            nn.Sequential(nn.Linear(16, 8, device="meta")), [torch.randn(2, 16)], ValueError, "meta device",
        ),
        "NaN weights": (hurt, [torch.randn(4, 16)], ValueError, "0.weight holds NaN or Inf"),
        "none": (Images(), iter(()), ValueError, "at least one batch"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_bad_batches_and_weights_are_refused(case: str) -> None:
    model, batches, error, text = refusals()[case]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.is_meta}
    with pytest.raises(error, match=text):
        oneshot(model, batches)
    assert all(torch.equal(model.get_parameter(n).nan_to_num(7), t.nan_to_num(7)) for n, t in before.items())


def test_a_generator_that_fails_changes_nothing() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())

    def batches() -> Any:
        yield torch.randn(4, 16)
        raise OSError("the disk was taken out")

    with pytest.raises(OSError, match="taken out"):
        oneshot(model, batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_whose_weights_are_compressed_in_their_places_are_left_alone() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.lstm = nn.Linear(16, 16), nn.LSTM(16, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.lstm(self.linear(x))[0]
            return output

    model = Steps().eval()
    report = oneshot(model, [torch.randn(4, 6, 16)], steps=2)
    assert [row.name for row in report.done] == ["linear.weight"]
    assert "a LSTM is not calibrated: sparse24.Sparsifier prunes it" in report.left[0].reason
    with pytest.raises(TypeError, match="a LSTM is not calibrated: Linear, Conv1d"):
        oneshot(model, [torch.randn(4, 6, 16)], select=["lstm.weight_ih_l0"])
