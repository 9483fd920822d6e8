"""Training keeps pruned what the Sparsifier pruned."""

from __future__ import annotations

import copy
import gc
import io
import re
import runpy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse24 import Sparsifier

from .networks import mlp, same_state


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, dtype: torch.dtype = torch.float32
) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 14, generator=generator).to(dtype)
        y = torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=False),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_training_is_the_loop_with_masks_written_out(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model, reference = mlp(), mlp()
    optimizer, plain = make(model.parameters()), make(reference.parameters())
    train(model, optimizer, range(3))  # dense first: the moments are not zero where weights get pruned
    train(reference, plain, range(3))
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    sparsifier.attach(optimizer)
    train(model, optimizer, range(3, 8))

    masked = dict(reference.named_parameters())
    zero = torch.tensor(0.0)
    with torch.no_grad():
        for name, mask in sparsifier.masks.items():
            masked[name].copy_(torch.where(mask, masked[name], zero))
    plain.register_step_pre_hook(lambda *_: apply_to(sparsifier, masked, "grad"))
    plain.register_step_post_hook(lambda *_: apply_to(sparsifier, masked, "data"))
    train(reference, plain, range(3, 8))
    assert same_state(model, reference)
    for name, mask in sparsifier.masks.items():
        pruned = model.get_parameter(name)[~mask]
        assert not pruned.any()
        assert not pruned.signbit().any()


def apply_to(sparsifier: Sparsifier, parameters: dict[str, nn.Parameter], attribute: str) -> None:
    for name, mask in sparsifier.masks.items():
        tensor = getattr(parameters[name], attribute)
        tensor.copy_(torch.where(mask, tensor, torch.tensor(0.0)))


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("model_first", [True, False])
def test_an_interrupted_run_goes_on_bit_for_bit(
    make: Callable[[Any], torch.optim.Optimizer], model_first: bool
) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    sparsifier.attach(optimizer)
    train(model, optimizer, range(4))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()], file)
    train(model, optimizer, range(4, 8))

    file.seek(0)
    weights, moments, masks = torch.load(file, weights_only=True)
    resumed = mlp(seed=1)
    optimizer = make(resumed.parameters())
    sparsifier = Sparsifier(resumed)
    steps = [lambda: resumed.load_state_dict(weights), lambda: sparsifier.load_state_dict(masks)]
    for step in steps if model_first else reversed(steps):
        step()
    optimizer.load_state_dict(moments)
    sparsifier.attach(optimizer)
    sparsifier.verify()
    train(resumed, optimizer, range(4, 8))
    assert same_state(model, resumed)


def test_nothing_is_added_to_the_state_dict_or_to_random_numbers() -> None:
    model = mlp()
    keys = list(model.state_dict())
    state = torch.get_rng_state()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    sparsifier.attach(torch.optim.SGD(model.parameters()))
    sparsifier.verify()
    assert list(model.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), state)


def test_attaching_twice_is_harmless_and_detach_frees() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model)
    sparsifier.attach(optimizer)
    sparsifier.attach(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    with pytest.warns(UserWarning, match=r"has no masks.*call prune\(\)"):
        train(model, optimizer, range(1))
    train(model, optimizer, range(1))
    assert model[0].weight.all()
    sparsifier.prune()
    train(model, optimizer, range(2))
    sparsifier.verify()
    sparsifier.detach()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, range(2))
    with pytest.raises(
        ValueError, match=r"0.weight\[0, \d+\] is .*, but it was pruned \(group \d along dim 1"
    ):
        sparsifier.verify()
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer, not Sequential"):
        sparsifier.attach(model)  # type: ignore[arg-type]


def test_several_optimizers_of_one_model_and_several_models() -> None:
    models = [mlp(seed=seed) for seed in range(2)]
    sparsifiers = [Sparsifier(model, pattern) for model, pattern in zip(models, ("2:4", "1:2"), strict=True)]
    for model, sparsifier in zip(models, sparsifiers, strict=True):
        sparsifier.prune()
        for layer in (0, 2, 4):
            optimizer = torch.optim.Adam(model[layer].parameters(), lr=0.1)
            sparsifier.attach(optimizer)
            model[layer].optimizer = optimizer
    for model in models:
        for layer in (0, 2, 4):
            train(model, model[layer].optimizer, range(2))
    for sparsifier in sparsifiers:
        assert [row.name for row in sparsifier.verify()] == ["0", "2"]
        assert len(sparsifier.optimizers()) == 3


def test_no_optimizer_is_kept_alive() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters())
    sparsifier = Sparsifier(model)
    sparsifier.attach(optimizer)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    assert not sparsifier.optimizers()
    sparsifier.detach()


def test_gradients_may_be_accumulated_or_missing() -> None:
    model, reference = mlp(torch.float64), mlp(torch.float64)
    results = []
    for net, parts in ((model, [slice(0, 4), slice(4, 8)]), (reference, [slice(0, 8)])):
        net[2].bias.requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        sparsifier = Sparsifier(net)
        sparsifier.prune()
        sparsifier.attach(optimizer)
        optimizer.step()  # no gradient yet
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            x = torch.randn(8, 14, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            for part in parts:
                (net(x[part]).square().mean() / len(parts)).backward()
            optimizer.step()
        sparsifier.verify()
        results.append(net[0].weight.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_a_step_that_the_grad_scaler_skips_changes_nothing() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    sparsifier.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for overflow in (False, True, False):
        before = copy.deepcopy(model)
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(8, 14)).square().mean()).backward()
        if overflow:
            model[2].weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert same_state(model, before) is overflow
        sparsifier.verify()


def test_infinite_gradients_of_pruned_weights_do_not_become_nan() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    sparsifier.attach(optimizer)
    train(model, optimizer, range(1))
    model[0].weight.grad[~sparsifier.masks["0.weight"]] = torch.inf
    optimizer.step()
    sparsifier.verify()
    assert optimizer.state[model[0].weight]["momentum_buffer"].isfinite().all()


def test_masks_follow_a_compiled_model_and_a_new_dtype() -> None:
    model = mlp()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    model[2] = torch.compile(model[2], backend="eager")
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    train(torch.compile(model, backend="eager"), optimizer, range(2), torch.float64)
    assert len(sparsifier.verify()) == 2


def test_layers_that_were_replaced_are_noticed() -> None:
    model = mlp()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    kept = model[2]
    model[2] = nn.Linear(24, 16)
    with pytest.raises(ValueError, match=r"2.weight is now \(16, 24\), its mask is \(16, 20\): prune again"):
        sparsifier.verify()
    model[2] = nn.ReLU()
    with pytest.raises(ValueError, match=r"2\.weight is no longer a parameter"):
        sparsifier.verify()
    with pytest.raises(ValueError, match=r"2\.weight is no longer"):
        sparsifier.report()
    model[2] = kept
    assert len(sparsifier.verify()) == 2
    del model[4]  # not pruned: its row is empty
    assert sparsifier.report()[-1].shape == ()


def test_pruning_again_keeps_what_is_pruned() -> None:
    model = mlp()
    sparsifier = Sparsifier(model)
    sparsifier.prune()
    before = copy.deepcopy(model)
    sparsifier.prune()
    assert same_state(model, before)


def test_verify_names_the_group() -> None:
    model = mlp()
    sparsifier = Sparsifier(model)
    with pytest.raises(ValueError, match="call prune"):
        sparsifier.verify()
    sparsifier.prune()
    row, column = (~sparsifier.masks["2.weight"]).nonzero()[37].tolist()
    with torch.no_grad():
        model[2].weight[row, column] = torch.nan
    message = (
        rf"2.weight\[{row}, {column}\] is nan, but it was pruned \(group {column // 4} along dim 1; 1 such"
    )
    with pytest.raises(ValueError, match=message):
        sparsifier.verify()


def test_the_example_recovers_what_pruning_lost(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "recipe.py"
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    dense, pruned, retrained = (
        float(share) for share in re.findall(r"([\d.]+)%(?=[,\n])", said.splitlines()[-1] + "\n")
    )
    assert pruned < retrained
    assert retrained > dense - 2
    assert "2 of 4 layers pruned" in said
