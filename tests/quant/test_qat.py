"""int8 in the forward while a network is trained, and what it becomes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse24
from sparse24.nn import SparseConv2d, SparseLinear
from sparse24.quant import convert, prepare_qat
from sparse24.quant.qat import QatConv2d, QatLinear, fake_quantized

from .networks import Encoder, encoder, images, pruned, same, state

pytestmark = pytest.mark.usefixtures("seeded")


def small() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)
    )
    pruned(model)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("activations", ["static", "dynamic", None])
def test_masks_hold_and_what_was_trained_is_what_runs(activations: str | None, optimizer: str) -> None:
    model = small()
    masks = {n: p.detach() != 0 for n, p in model.named_parameters() if p.dim() > 1}
    made = OPTIMIZERS[optimizer](model.parameters())  # before: the parameters stay the same
    kept = dict(model.named_parameters())
    prepare_qat(model, activations)
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in kept.items()}
    before = model[0].weight.detach().clone()
    for _ in range(6):
        step(model, made, torch.randn(4, 8, 6, 6))
    assert not torch.equal(model[0].weight, before)
    model.eval()
    x = torch.randn(4, 8, 6, 6)
    wanted = model(x).detach()
    report = convert(model)
    assert len(report.done) == 2
    assert isinstance(model[0], SparseConv2d)
    assert isinstance(model[4], SparseLinear)
    assert model[0].is_int8
    assert (model(x).detach() - wanted).norm() < 1e-5 * wanted.norm() + 1e-6
    for name, mask in masks.items():
        weight = model.get_submodule(name.removesuffix(".weight")).weight.to_dense()
        assert not weight[~mask].any()


def test_gradients_pass_straight_through() -> None:
    x = torch.randn(50, requires_grad=True)
    scale = torch.tensor(1.2 / 127)
    fake_quantized(x, scale).sum().backward()
    assert torch.equal(x.grad, (x.detach().abs() <= 1.2).float())
    assert (fake_quantized(x, scale) - x.clamp(-1.2, 1.2)).abs().max() <= scale / 2 + 1e-7


def test_learned_scales_get_the_published_gradient() -> None:
    x, scale = torch.randn(200), torch.tensor(1.2 / 127, requires_grad=True)
    fake_quantized(x, scale).sum().backward()
    v = (x / scale.detach()).double()
    inside = v.abs() <= 127
    slope = torch.where(inside, v.round() - v, 127 * v.sign())
    assert float(scale.grad) == pytest.approx(float(slope.sum() / math.sqrt(200 * 127)), rel=1e-3)


def test_learned_scales_are_parameters_and_move() -> None:
    model = small()
    prepare_qat(model, scales="learned")
    assert "0.input_scale" in dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step(model, optimizer, torch.randn(4, 8, 6, 6))
    first = float(model[0].input_scale.detach())
    for _ in range(3):
        step(model, optimizer, torch.randn(4, 8, 6, 6))
    assert float(model[0].input_scale.detach()) != first > 0
    convert(model)
    assert float(model[0].input_scale) > 0


def test_averages_move_in_training_only() -> None:
    model = small()
    prepare_qat(model, momentum=0.5)
    model(torch.full((1, 8, 6, 6), 127.0))
    assert float(model[0].input_scale) == 1.0
    model(torch.full((1, 8, 6, 6), 254.0))
    assert float(model[0].input_scale) == pytest.approx(1.5)
    model.eval()
    model(torch.full((1, 8, 6, 6), 1270.0))
    assert float(model[0].input_scale) == pytest.approx(1.5)


def test_state_dicts_are_taken_up_again() -> None:
    model, twin = small(), small()
    for each in (model, twin):
        prepare_qat(each)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step(model, optimizer, torch.randn(4, 8, 6, 6))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(4, 8, 6, 6)
    assert torch.equal(model.eval()(x), twin.eval()(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_batch_norms_fold_before_training() -> None:
    model, batches = images()
    wanted = model(batches[0]).detach()
    report = prepare_qat(model, None, batches=batches)
    assert {row.name for row in report if row.reason.startswith("folded")} == {"stem.1", "norm", "plain"}
    assert (model(batches[0]).detach() - wanted).norm() < 0.02 * wanted.norm()


def test_attention_is_left_for_after_training() -> None:
    model, batches = encoder()
    report = {row.name: row for row in prepare_qat(model)}
    assert "quantized after training" in report["attention"].reason
    assert isinstance(model.up, QatLinear)
    model(batches[0])
    convert(model)
    done = sparse24.quantize(model, batches, when="always")
    assert {row.name for row in done.done} == {
        f"attention.{n}" for n in ("q_proj", "k_proj", "v_proj", "out_proj")
    }


def test_learned_scales_win_back_what_int8_loses() -> None:
    teacher = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    pruned(teacher)
    with torch.no_grad():
        teacher[0].weight[:, 0] = (
            0  # nobody reads the channel with outliers, which the largest magnitude serves
        )
    student = copy.deepcopy(teacher)
    x, fresh = torch.randn(512, 32), torch.randn(256, 32)
    x[:, 0] *= 100
    fresh[:, 0] *= 100
    prepare_qat(student, scales="learned")

    def lost() -> float:
        return float(F.mse_loss(student(fresh), teacher(fresh)).detach())

    student(x)
    before = lost()
    optimizer = torch.optim.Adam((student[0].input_scale, student[2].input_scale), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(student(x), teacher(x).detach()).backward()
        optimizer.step()
    student.eval()
    assert lost() < 0.1 * before


@pytest.mark.parametrize(
    ("make", "options", "error", "text"),
    [
        (lambda: 3, {}, TypeError, "torch.nn.Module is needed"),
        (Encoder, {}, ValueError, "no 2:4 Linear or Conv2d"),
        (small, {"activations": "int8"}, ValueError, "must be 'static', 'dynamic' or None"),
        (small, {"scales": "fixed"}, ValueError, "must be 'average' or 'learned'"),
        (small, {"scales": "learned", "activations": None}, ValueError, "belong to activations='static'"),
        (small, {"momentum": 1.0}, ValueError, "momentum must be"),
        (small, {"batches": []}, ValueError, "at least one batch"),
    ],
    ids=str,
)
def test_bad_input_is_refused(make: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    model = make()
    before = state(model) if isinstance(model, nn.Module) else {}
    with pytest.raises(error, match=text):
        prepare_qat(model, **options)
    assert not before or same(before, model)


def test_prepared_once_and_converted_after_a_batch() -> None:
    model = small()
    with pytest.raises(ValueError, match="call prepare_qat first"):
        convert(model)
    prepare_qat(model)
    assert isinstance(model[0], QatConv2d)
    with pytest.raises(ValueError, match="prepared already"):
        prepare_qat(model)
    before = state(model)
    with pytest.raises(ValueError, match=r"0 has no input scale \(0.0\): run the prepared model on a batch"):
        convert(model)
    assert same(before, model)
    model(torch.randn(2, 8, 6, 6))
    model[4].weight.data[0, model[4].weight[0].nonzero()[0, 0]] = torch.nan
    before_ids = {n: id(m) for n, m in model.named_modules()}
    with pytest.raises(ValueError, match="4: "):
        convert(model)
    assert {n: id(m) for n, m in model.named_modules()} == before_ids
    compressed, _ = images()
    sparse24.to_sparse(compressed, when="always")
    with pytest.raises(ValueError, match="prepared already"):
        prepare_qat(compressed)
