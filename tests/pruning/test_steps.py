"""A step touches what its optimizer holds, and nothing else of the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from sparse24 import Sparsifier

from .networks import backward, mlp, pruned, same_state


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.discriminator = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


def test_a_gan_in_one_module_steps_one_half_between_the_passes_of_the_other() -> None:
    gan = Gan()
    sparsifier = Sparsifier(gan)
    assert len(sparsifier.prune().done) == 4
    halves = [SGD(half.parameters(), lr=0.1) for half in (gan.discriminator, gan.generator)]
    for optimizer in halves:
        sparsifier.attach(optimizer)
    of_d, of_g = halves
    fake = gan.generator(torch.randn(4, 8))
    gan.discriminator(fake.detach()).mean().backward()
    version = gan.generator[0].weight._version
    of_d.step()
    assert gan.generator[0].weight._version == version
    gan.discriminator(fake).mean().backward()  # through the generator's graph from before the step
    of_g.step()
    sparsifier.verify()


def test_an_optimizer_for_each_parameter_steps_inside_the_backward_pass() -> None:
    model, sparsifier = pruned()
    twin = copy.deepcopy(model)
    optimizers = {p: SGD([p], lr=0.1) for p in model.parameters()}
    for optimizer in optimizers.values():
        sparsifier.attach(optimizer)

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    reference = Sparsifier(twin)
    reference.load_state_dict(sparsifier.state_dict())
    whole = SGD(twin.parameters(), lr=0.1)
    reference.attach(whole)
    for each in range(3):
        backward(model, each)
        backward(twin, each)
        whole.step()
        whole.zero_grad()
    sparsifier.verify()
    assert same_state(model, twin)


def test_masks_computed_after_the_first_steps_are_enforced_from_then_on() -> None:
    model = mlp()
    optimizers = [SGD([p], lr=0.1) for p in model.parameters()]
    sparsifier = Sparsifier(model)
    for optimizer in optimizers:
        sparsifier.attach(optimizer)
    for step in range(3):
        backward(model, step)
        if step == 0:
            with pytest.warns(UserWarning, match=r"has no masks.*call prune\(\) or load_state_dict\(\)"):
                optimizers[0].step()
        for optimizer in optimizers:
            optimizer.step()
        if step == 1:
            sparsifier.prune()
    sparsifier.verify()
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())  # the optimizer's is another one now
    backward(model)
    optimizers[0].param_groups[0]["params"][0] = model[0].weight
    optimizers[0].step()
    sparsifier.verify()


def test_gradients_masked_by_hand_leave_pruned_entries_out_of_the_norm() -> None:
    model, sparsifier = pruned()
    backward(model)
    masks = sparsifier.masks
    expected = torch.stack(
        [
            (p.grad if name not in masks else torch.where(masks[name], p.grad, 0.0)).norm()
            for name, p in model.named_parameters()
            if p.grad is not None
        ]
    ).norm()
    sparsifier.mask_gradients()
    assert torch.allclose(nn.utils.get_total_norm([p.grad for p in model.parameters()]), expected)
    fresh = Sparsifier(mlp())
    with pytest.raises(ValueError, match="no masks to apply to gradients"):
        fresh.mask_gradients()
