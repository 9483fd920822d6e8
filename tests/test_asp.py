"""ASP by apex's names: the talk's lines, the rules, several models, and checkpoints in apex's keys."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse24 import is_sparse24, magnitude_mask, transposable_mask
from sparse24.pruning.asp import ASP
from sparse24.pruning.asp_session import greedy_transposable_mask


@pytest.fixture(autouse=True)
def _no_model_stays() -> Iterator[None]:
    """Every test starts with no model initialised: those of the last one are gone."""
    gc.collect()
    assert not ASP._sessions
    yield
    ASP._sessions.clear()


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(3)) -> None:
    for step in steps:
        x = torch.randn(4, 16, 2, 2, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def same_state(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def masks_of(state: dict[str, Any]) -> list[str]:
    return [key for key in state if "_mma_" in key]


def reasons(model: nn.Module | None = None) -> dict[str, str]:
    return {row.name: row.reason for row in ASP.report(model)}


# ---- the talk ---------------------------------------------------------------------------------------


def test_the_three_lines_of_the_talk() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    keys = list(model.state_dict())

    ASP.prune_trained_model(model, optimizer)

    train(model, optimizer)
    assert is_sparse24(model[0].weight)
    assert is_sparse24(model[3].weight)
    assert model[5].weight.all()
    assert list(model.state_dict()) == keys
    assert ASP.is_sparsity_enabled()
    for layer in (0, 3):
        zeros = model[layer].weight[model[layer].weight == 0]
        assert not zeros.signbit().any()


def test_the_steps_one_by_one() -> None:
    model = network()
    before = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, "m4n2_1d", verbosity=0)
    optimizer = sgd(model)
    ASP.init_optimizer_for_pruning(optimizer)
    ASP.init_optimizer_for_pruning(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    assert not ASP.is_sparsity_enabled()
    assert same_state(model, before)
    ASP.compute_sparse_masks()
    assert ASP.is_sparsity_enabled()
    mask = magnitude_mask(before[3].weight)
    assert torch.equal(model[3].weight, torch.where(mask, before[3].weight, torch.tensor(0.0)))
    train(model, optimizer)
    assert torch.equal(model[3].weight != 0, mask)


def test_nothing_else_is_changed() -> None:
    model = network()
    state, flag = torch.get_rng_state(), torch.backends.cudnn.deterministic
    ASP.prune_trained_model(model, sgd(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.deterministic == flag


@pytest.mark.parametrize("verbosity", [0, 1, 2, 3])
def test_verbosity(verbosity: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    ASP.init_model_for_pruning(model, verbosity=verbosity)
    ASP.compute_sparse_masks()
    said = capsys.readouterr().out
    assert ("[ASP] Not sparsifying 5 of size=(10, 32): an output head" in said) is (verbosity >= 1)
    assert ("[ASP] Enabled 50.00% sparsity for 3 of size=(32, 96)" in said) is (verbosity >= 2)
    assert ("[ASP] Sparsifying 0 of size=(24, 16, 3, 3)" in said) is (verbosity >= 3)


# ---- mask patterns ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mask_of"),
    [
        ("m4n2_1d", magnitude_mask),
        ("m4n1_1d", lambda w: magnitude_mask(w, "1:4")),
        ("m8n4_1d", lambda w: magnitude_mask(w, "4:8")),
        ("m4n2_2d_best", transposable_mask),
        ("m4n2_2d_greedy", greedy_transposable_mask),
        (lambda w: (w > 0).float(), lambda w: w > 0),
        (torch.ones_like, lambda w: torch.ones_like(w).bool()),
    ],
)
def test_mask_patterns(name: Any, mask_of: Any) -> None:
    model = network()
    before = [model[layer].weight.detach().clone() for layer in (0, 3)]
    ASP.init_model_for_pruning(model, name, verbosity=0)
    ASP.compute_sparse_masks()
    for layer, weight in zip((0, 3), before, strict=True):
        assert torch.equal(model[layer].weight, torch.where(mask_of(weight), weight, torch.tensor(0.0)))


def greedy_reference(tile: Tensor) -> Tensor:
    """One 4x4 tile: entries in decreasing magnitude, kept while row and column have room."""
    mask = torch.zeros(4, 4, dtype=torch.bool)
    magnitudes = tile.double().abs()
    for place in sorted(range(16), key=lambda i: (-float(magnitudes[i // 4, i % 4]), i)):
        row, column = divmod(place, 4)
        if mask[row].sum() < 2 and mask[:, column].sum() < 2:
            mask[row, column] = True
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_masks_are_those_of_every_tile(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[:4] = weight[:4].round()  # ties
    mask = greedy_transposable_mask(weight)
    for row in range(0, 16, 4):
        for column in range(0, 24, 4):
            tile = (slice(row, row + 4), slice(column, column + 4))
            assert torch.equal(mask[tile], greedy_reference(weight[tile]))


def test_greedy_masks_keep_less_than_the_best() -> None:
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    kept = weight[greedy_transposable_mask(weight)].abs().sum() / weight.abs().sum()
    assert abs(float(kept) - 0.6934) < 0.002
    with pytest.raises(ValueError, match="multiples of 4"):
        greedy_transposable_mask(torch.ones(6, 8))


# ---- what is pruned ---------------------------------------------------------------------------------


class SubclassedLinear(nn.Linear):
    pass


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(16, 32))
        self.right = nn.Parameter(torch.randn(16, 32))


def layers() -> nn.ModuleDict:
    tied = nn.Linear(16, 64, bias=False)
    frozen = nn.Linear(16, 16).requires_grad_(False)
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(64, 16),
            "subclass": SubclassedLinear(16, 16),
            "conv": nn.Conv1d(32, 8, 3),
            "rows": nn.Linear(16, 12),
            "columns": nn.Linear(24, 16),
            "frozen": frozen,
            "attention": nn.MultiheadAttention(16, 2),
            "doubled": Doubled(),
            "tied": tied,
            "lm_head": nn.Linear(16, 32),
        }
    )
    tied.weight = model["embed"].weight
    return model


def test_the_rules_of_asp() -> None:
    model = layers()
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.compute_sparse_masks()
    done = [row.name for row in ASP.report().done]
    assert done == ["subclass", "conv", "attention.in_proj_weight", "attention.out_proj"]
    left = reasons()
    assert left["rows"] == "12 x 16 (out x in): ASP needs multiples of 8 x 16"
    assert left["columns"] == "16 x 24 (out x in): ASP needs multiples of 8 x 16"
    assert "requires_grad is False" in left["frozen"]
    assert "tied to the embedding embed; put it into allowed_layer_names" in left["tied"]
    assert "an output head" in left["lm_head"]
    assert "not a layer that is pruned" in left["doubled.left"]
    assert "looked up" in left["embed"]


def test_layers_by_name_and_type() -> None:
    model = layers()
    ASP.init_model_for_pruning(
        model,
        verbosity=0,
        whitelist=[SubclassedLinear, nn.MultiheadAttention],
        disallowed_layer_names=["attention"],
        custom_layer_dict={Doubled: ["right"]},
    )
    ASP.compute_sparse_masks()
    assert [row.name for row in ASP.report().done] == ["subclass", "doubled.right"]
    assert reasons()["attention.in_proj_weight"] == "in disallowed_layer_names"
    assert reasons()["conv"] == "not of a type in whitelist"
    ASP.release(model)
    ASP.init_model_for_pruning(model, verbosity=0, allowed_layer_names=["conv", "tied", "lm_head"])
    ASP.compute_sparse_masks()
    assert [row.name for row in ASP.report().done] == ["conv", "tied", "lm_head"]
    assert reasons()["attention.out_proj"] == "not in allowed_layer_names"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 1}, TypeError, "torch.nn.Module, not int"),
        ({"allow_permutation": True}, ValueError, "separate step"),
        ({"mask_calculator": "m4n2_3d"}, ValueError, "unknown mask_calculator 'm4n2_3d'"),
        ({"mask_calculator": "m2n4_1d"}, ValueError, "N:M"),
        ({"mask_calculator": 24}, TypeError, "not int"),
        ({"whitelist": [nn.Bilinear]}, ValueError, "whitelist has Bilinear"),
        ({"allowed_layer_names": ["3", "fc"]}, ValueError, "no layer of the model is called fc"),
        ({"disallowed_layer_names": ["fc"]}, ValueError, "called fc"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = network()
    with pytest.raises(error, match=message):
        ASP.init_model_for_pruning(**{"model": model, "verbosity": 0, **arguments})
    with pytest.raises(ValueError, match=r"call ASP.init_model_for_pruning"):
        ASP.compute_sparse_masks()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda w: None, TypeError, "returned NoneType"),
        (lambda w: w[:1] > 0, ValueError, r"\(1, 96\) for a weight of shape \(32, 96\)"),
    ],
)
def test_a_bad_mask_function_changes_nothing(function: Any, error: type[Exception], message: str) -> None:
    model = network()
    before = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, lambda w: w > 0 if w.dim() == 4 else function(w), verbosity=0)
    with pytest.raises(error, match=message):
        ASP.compute_sparse_masks()
    assert same_state(model, before)


# ---- several models, optimizers and lifetimes -------------------------------------------------------


def test_several_models_in_one_process() -> None:
    teacher, student = network(0), network(1)
    optimizers = [sgd(teacher), sgd(student)]
    ASP.init_model_for_pruning(teacher, verbosity=0)
    ASP.init_model_for_pruning(student, "m4n1_1d", verbosity=0)
    for optimizer in optimizers:
        ASP.init_optimizer_for_pruning(optimizer)
    ASP.compute_sparse_masks()
    for model, optimizer in zip((teacher, student), optimizers, strict=True):
        assert len(optimizer._optimizer_step_post_hooks) == 1
        train(model, optimizer)
        assert is_sparse24(model[3].weight)
    assert ASP.is_sparsity_enabled(teacher)
    with pytest.raises(ValueError, match=r"2 models were initialised: say which one with model="):
        ASP.is_sparsity_enabled()
    ASP.prune_trained_model(third := network(2), sgd(third))
    assert is_sparse24(third[3].weight)
    for model in (teacher, student, third):
        ASP.release(model)
    with pytest.raises(ValueError, match="no such model"):
        ASP.release(teacher)


def test_an_optimizer_that_holds_copies_goes_to_the_latest_model() -> None:
    first, second = network(), network()
    ASP.prune_trained_model(first, sgd(first))
    kept = sgd(first)
    ASP.init_optimizer_for_pruning(kept)
    ASP.init_model_for_pruning(second, verbosity=0)
    masters = sgd(copy.deepcopy(second))
    ASP.init_optimizer_for_pruning(masters)
    ASP.compute_sparse_masks()
    with torch.no_grad():
        second[3].weight.fill_(1)
    masters.step()
    assert is_sparse24(second[3].weight)
    with pytest.raises(ValueError, match="no model for this optimizer"):
        ASP.init_optimizer_for_pruning(sgd(network()))


def test_no_model_is_kept_alive() -> None:
    model = network()
    optimizer = sgd(model)
    ASP.prune_trained_model(model, optimizer)
    alive = weakref.ref(model)
    del model
    assert alive() is None
    assert not ASP._sessions
    with pytest.raises(ValueError, match="is gone: keep a reference"):
        optimizer.step()


def test_calls_out_of_order() -> None:
    model = network()
    with pytest.raises(TypeError, match="Optimizer, not Sequential"):
        ASP.init_optimizer_for_pruning(model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Optimizer, not Sequential"):
        ASP.prune_trained_model(model, model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"call ASP.init_model_for_pruning"):
        ASP.init_optimizer_for_pruning(sgd(model))
    for call in (ASP.compute_sparse_masks, ASP.restore_pruned_weights, ASP.is_sparsity_enabled, ASP.report):
        with pytest.raises(ValueError, match=r"call ASP.init_model_for_pruning"):
            call()
    ASP.init_model_for_pruning(model, verbosity=0)
    with pytest.raises(ValueError, match=r"initialised for pruning already; ASP.release"):
        ASP.prune_trained_model(torch.compile(model, backend="eager"), sgd(model))
    ASP.restore_pruned_weights()
    ASP.compute_sparse_masks()
    for call in (ASP.compute_sparse_masks, ASP.restore_pruned_weights):
        with pytest.raises(ValueError, match="allow_recompute_mask=True"):
            call()


def test_masks_may_be_computed_again_and_taken_back() -> None:
    model = network()
    dense = copy.deepcopy(model)
    calls = []

    def alternate(weight: Tensor) -> Tensor:
        calls.append(weight.clone())
        return weight > 0 if len(calls) <= 2 else weight < 0

    ASP.init_model_for_pruning(model, alternate, verbosity=0, allow_recompute_mask=True)
    optimizer = sgd(model)
    ASP.init_optimizer_for_pruning(optimizer)
    ASP.compute_sparse_masks()
    assert (model[3].weight >= 0).all()
    ASP.compute_sparse_masks()
    assert all(torch.equal(calls[i], calls[i + 2]) for i in range(2))
    assert (model[3].weight <= 0).all()
    state = ASP.state_dict(model)
    state["3.__weight_mma_mask"] = state["3.__weight_mma_mask"].float()  # a function's masks are free
    ASP.load_state_dict(model, state)
    ASP.restore_pruned_weights()
    assert same_state(model, dense)
    assert not ASP.is_sparsity_enabled()
    train(model, optimizer)
    assert model[3].weight.all()


def test_a_failed_recomputation_leaves_the_old_masks() -> None:
    model = network()

    def once(weight: Tensor) -> Tensor | None:
        return magnitude_mask(weight) if is_first else None

    is_first = True
    ASP.init_model_for_pruning(model, once, verbosity=0, allow_recompute_mask=True)  # type: ignore[arg-type]
    ASP.compute_sparse_masks()
    before = copy.deepcopy(model)
    is_first = False
    with pytest.raises(TypeError, match="NoneType"):
        ASP.compute_sparse_masks()
    assert same_state(model, before)
    assert ASP.is_sparsity_enabled()


def test_a_layer_that_becomes_prunable_joins_at_the_next_computation() -> None:
    model = network()
    model[0].requires_grad_(False)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    ASP.compute_sparse_masks()
    assert model[0].weight.all()
    model[0].requires_grad_(True)
    ASP.compute_sparse_masks()
    assert is_sparse24(model[0].weight)


# ---- checkpoints ------------------------------------------------------------------------------------


def apex_checkpoint(model: nn.Module, layers: set[str]) -> dict[str, Tensor]:
    """What apex saves: masks as buffers, and -0.0 where a negative weight was multiplied away."""
    state = {}
    for name, value in model.state_dict().items():
        layer, _, attribute = name.rpartition(".")
        state[name] = value.clone()
        if layer in layers and attribute == "weight":
            mask = magnitude_mask(value)
            state[name] = value * mask
            state[f"{layer}.__weight_mma_mask"] = mask
    return state


def test_a_checkpoint_of_apex_loads_and_training_goes_on() -> None:
    trained = network(3)
    state = apex_checkpoint(trained, {"0", "3"})
    assert state["3.weight"].eq(0).logical_and(state["3.weight"].signbit()).any()
    model = network(4)
    optimizer = sgd(model)
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.init_optimizer_for_pruning(optimizer)
    ASP.load_state_dict(model, state)
    assert ASP.is_sparsity_enabled()
    assert torch.equal(model[3].weight, state["3.weight"])
    assert not model[3].weight[~state["3.__weight_mma_mask"]].signbit().any()
    train(model, optimizer)
    assert torch.equal(model[3].weight != 0, state["3.__weight_mma_mask"])


def test_masks_of_layers_that_asp_leaves_alone_here_are_taken_over() -> None:
    model = nn.ModuleDict({"body": network()[:5], "fc": nn.Linear(32, 1000)})
    state = apex_checkpoint(model, {"body.0", "body.3", "fc"})
    ASP.init_model_for_pruning(model, verbosity=0)
    assert "an output head" in reasons()["fc"]
    ASP.load_state_dict(model, state)
    assert ASP.report()[-1].reason == ""
    assert [row.name for row in ASP.report().done] == ["body.0", "body.3", "fc"]
    assert masks_of(ASP.state_dict(model)) == masks_of(state)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
def test_state_in_apex_keys_survives_a_file(recompute: bool, pruned: bool) -> None:
    model = network()
    dense = copy.deepcopy(model)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=recompute)
    if pruned:
        ASP.compute_sparse_masks()
    state = ASP.state_dict(model)
    expected = [f"{layer}.__weight_mma_{what}" for layer in "03" for what in ("mask", "pruned_p")]
    assert masks_of(state) == (expected if recompute else expected[::2])
    assert state["0.__weight_mma_mask"].dtype == torch.bool
    assert bool(state["0.__weight_mma_mask"].all()) is not pruned
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)

    other = network(1)
    ASP.init_model_for_pruning(other, verbosity=0, allow_recompute_mask=recompute)
    ASP.load_state_dict(other, torch.load(file, weights_only=True))
    assert same_state(other, model)
    assert ASP.is_sparsity_enabled(other) is pruned
    if recompute:
        ASP.restore_pruned_weights(other)
        assert same_state(other, dense)


def test_wrapped_models_keep_their_prefix() -> None:
    base = network()
    base[3] = torch.compile(base[3], backend="eager")
    model = nn.DataParallel(base)
    ASP.prune_trained_model(model, sgd(model))
    state = ASP.state_dict(model)
    assert masks_of(state) == ["module.0.__weight_mma_mask", "module.3._orig_mod.__weight_mma_mask"]
    ASP.load_state_dict(model, state)
    assert ASP.is_sparsity_enabled(base)


def test_shared_weights_have_one_mask() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model["b"].weight = model["a"].weight
    ASP.prune_trained_model(model, sgd(model))
    state = ASP.state_dict(model)
    assert masks_of(state) == ["a.__weight_mma_mask"]
    state["b.__weight_mma_mask"] = state["a.__weight_mma_mask"]
    ASP.load_state_dict(model, state)
    assert list(ASP._session(model).masks) == ["a.weight"]


def long_network(seed: int) -> nn.Sequential:
    """With a layer that cannot be pruned (6), and one whose shape does not allow it (7)."""
    return network(seed).extend([Doubled(), nn.Linear(3, 8)])


def pruned_state() -> dict[str, Any]:
    model = long_network(0)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    ASP.compute_sparse_masks(model)
    return ASP.state_dict(model)


ONES = torch.ones(32, 96).bool()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"3.weight": None}, ValueError, r"missing \['3.weight'\], unexpected \[\]"),
        ({"9.weight": ONES}, ValueError, r"unexpected \['9.weight'\]"),
        ({"3.weight": ONES[:1]}, ValueError, r"3.weight is .*\[1, 96\].* in the checkpoint, \(32, 96\) in"),
        ({"3.weight": 3}, ValueError, "3.weight is int in the checkpoint"),
        ({"3.__weight_mma_mask": None}, ValueError, r"no masks for \['3.weight'\]"),
        ({"4.__weight_mma_mask": ONES}, ValueError, r"masks for \['4.weight'\], which the model does not"),
        ({"3.__weight_mma_mask": ONES}, ValueError, "mask of 3.weight is not m4n2_1d: group 0"),
        ({"3.__weight_mma_mask": ONES[:1]}, ValueError, r"of 3.weight is \(1, 96\), the weight \(32, 96\)"),
        ({"3.__weight_mma_mask": 1}, TypeError, "3.__weight_mma_mask must be a tensor, not int"),
        ({"6.__left_mma_mask": ONES}, ValueError, "mask for 6.left: not a layer that is pruned"),
        ({"7.__weight_mma_mask": ONES[:8, :3]}, ValueError, "mask for 7.weight: 3 input channels"),
        ({"3.__weight_mma_pruned_p": None}, ValueError, r"of 3.weight, \(32, 96\), .* no pruned values"),
        ({"3.__weight_mma_pruned_p": ONES[:1]}, ValueError, r"pruned values of shape \(1, 96\)"),
    ],
)
def test_a_bad_checkpoint_changes_nothing(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    state = {**pruned_state(), **changes}
    model = long_network(5)
    ASP.init_model_for_pruning(model, verbosity=0, allow_recompute_mask=True)
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message):
        ASP.load_state_dict(model, {key: value for key, value in state.items() if value is not None})
    assert same_state(model, before)
    assert not ASP.is_sparsity_enabled()


def test_pruned_values_are_ignored_where_they_are_not_kept() -> None:
    state = pruned_state()
    model = long_network(1)
    with pytest.raises(ValueError, match="no such model"):
        ASP.load_state_dict(model, state)
    ASP.init_model_for_pruning(model, verbosity=0)
    ASP.load_state_dict(model, state)
    assert ASP.is_sparsity_enabled()
