"""Whole networks pruned in one shot: what becomes of them, and that nothing is left between."""

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
from sparse24.calibrated.blocks import find_blocks, trace

pytestmark = pytest.mark.usefixtures("seeded")


class Residual(nn.Module):
    """A block that hands on a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down, self.norm = (
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, str]:
        return self.norm(x + scale * self.down(F.gelu(self.up(x)))), "a second output"


class Stack(nn.Module):
    """Keyword inputs, blocks with tuples, a layer that is used twice and one that never is."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.shared, self.unused = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.blocks = nn.ModuleList(Residual(width) for _ in range(depth))
        self.head = nn.Linear(width, 5)

    def forward(self, *, x: Tensor) -> dict[str, Tensor]:
        x = self.shared(F.gelu(self.embed(x)))
        scale = torch.full((), 0.5)
        for block in self.blocks:
            x, _ = block(x, scale)
        return {"logits": self.head(self.shared(x))}


class Images(nn.Module):
    """Convolutions with groups and batch norms, a residual block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU()) for _ in range(2))
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def correlated(*shape: int) -> Tensor:
    """Inputs whose channels depend on each other, as those of networks do."""
    mixing = torch.randn(shape[-1] // 2, shape[-1], generator=torch.Generator().manual_seed(1))
    return torch.randn(*shape[:-1], shape[-1] // 2) @ mixing + 0.1 * torch.randn(*shape)


def images() -> Tensor:
    return correlated(2, 6, 6, 4).permute(0, 3, 1, 2)


NETWORKS: dict[str, tuple[Any, Any]] = {
    "stack": (Stack, lambda: {"x": correlated(4, 7, 16)}),
    "images": (Images, images),
    "encoder": (encoder, lambda: correlated(3, 5, 16)),
    "mlp": (mlp, lambda: (correlated(9, 16),)),
}


def run(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(batch, dict):
            output = model(**batch)
        else:
            output = model(*batch) if isinstance(batch, tuple) else model(batch)
    return output["logits"] if isinstance(output, dict) else output


def network(name: str) -> tuple[nn.Module, list[Any]]:
    make, batch = NETWORKS[name]
    return make(), [batch() for _ in range(12)]


def error_of(name: str, **options: Any) -> float:
    torch.manual_seed(3)
    model, batches = network(name)
    fresh = NETWORKS[name][1]()
    model.eval()
    dense = run(model, fresh)
    report = oneshot(model, batches, **options)
    assert report.done
    return relative_error(run(model, fresh), dense)


@pytest.mark.parametrize("name", NETWORKS)
def test_calibration_beats_magnitude(name: str) -> None:
    plain = error_of(name, method="magnitude", refit=0, reconstruct=None)
    refitted = error_of(name, method="sparsegpt", reconstruct=None)
    assert refitted < plain
    assert error_of(name, method="sparsegpt", steps=60) < plain


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "ria", "admm", "magnitude"])
def test_the_weights_are_those_that_a_sparsifier_prunes(name: str, method: str) -> None:
    model, batches = network(name)
    twin = copy.deepcopy(model)
    report = oneshot(model, batches, method=method, reconstruct=None)
    done = {row.name for row in report.done}
    unreached = {row.name for row in report.left if "no calibration batch" in row.reason}
    pruned = {row.name for row in sparse24.Sparsifier(twin).prune().done}
    assert done | unreached == {name if name.endswith("weight") else f"{name}.weight" for name in pruned}
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in done:
            assert sparse24.is_sparse24(parameter.detach())
            assert not torch.signbit(parameter[parameter == 0]).any()
    assert sparse24.to_sparse(model, when="always").done


def test_what_no_batch_reaches_is_named_and_dense() -> None:
    model, batches = network("stack")
    before = model.unused.weight.detach().clone()
    report = {row.name: row for row in oneshot(model, batches, reconstruct=None)}
    assert not report["unused.weight"].done
    assert "no calibration batch reached it" in report["unused.weight"].reason
    assert torch.equal(model.unused.weight, before)
    assert report["shared.weight"].done
    assert not report["head.weight"].done


def test_the_model_is_left_as_it_was_used() -> None:
    model, batches = network("images")
    model.train()
    model.stem[1].eval()
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    running = model.stem[1].running_mean.clone()
    random = torch.get_rng_state()
    oneshot(model, batches, steps=5)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not model.stem[1].training
    assert torch.equal(model.stem[1].running_mean, running)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_training_a_block_never_makes_it_worse() -> None:
    model, batches = network("stack")
    report = oneshot(model, batches, method="magnitude", refit=0, steps=40)
    trained = [row.reason for row in report.done if "trained" in row.reason]
    assert trained
    for reason in trained:
        errors = reason.split("of the block")[1].split(", trained")
        before, after = (float(part.split()[-1]) for part in errors)
        assert after < before


@pytest.mark.parametrize("how", ["nan", "interrupt"])
def test_a_failure_leaves_every_weight_as_it_was(how: str) -> None:
    model, batches = network("stack")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if how == "interrupt" and len(said) == 3:
            raise KeyboardInterrupt

    if how == "nan":
        batches[1]["x"][0, 0, 0] = torch.nan
    error = ValueError if how == "nan" else KeyboardInterrupt
    with pytest.raises(error):
        oneshot(model, batches, reconstruct=None, progress=stop)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"batches": []}, ValueError, "needs at least one batch"),
        ({"method": "obs"}, ValueError, "method 'obs' is not one of sparsegpt, admm, magnitude"),
        ({"reconstruct": "layer"}, ValueError, "must be 'component' or None"),
        ({"refit": -1}, ValueError, "refit must be 0 or more"),
        ({"steps": 0}, ValueError, "steps 1 or more"),
        ({"blocks": ["block"]}, ValueError, "no block called 'block'"),
        ({"select": ["nothing*"]}, ValueError, "matches no layer"),
        ({"model": 3}, TypeError, "needs a torch.nn.Module, not int"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_and_change_nothing(
    change: dict[str, Any], error: type[Exception], text: str
) -> None:
    model, batches = network("stack")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(error, match=text):
        oneshot(**{"model": model, "batches": batches, **change})
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_blocks_are_found_by_structure() -> None:
    def blocks(model: nn.Module) -> list[str]:
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.MultiheadAttention)]
        return find_blocks(model, layers)

    assert blocks(Stack()) == ["embed", "shared", "unused", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert blocks(encoder()) == ["layers.0", "layers.1"]
    assert blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))) == ["0", "2"]
    assert blocks(Residual(8)) == [""]


def test_blocks_that_follow_each_other_are_fed_directly() -> None:
    model, batches = network("stack")
    parts = {
        name: model.get_submodule(name) for name in ("embed", "shared", "blocks.0", "blocks.1", "blocks.2")
    }
    seen = trace(model, parts, batches[0])
    assert seen.follows == {"blocks.1": "blocks.0", "blocks.2": "blocks.1"}
    assert seen.times["shared"] == 2
    assert seen.order == ["embed", "shared", "blocks.0", "blocks.1", "blocks.2"]
