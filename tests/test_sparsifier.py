"""The Sparsifier: what it prunes, that training keeps it pruned, and that its state survives."""

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
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sparse24 import Sparsifier, is_sparse24, magnitude_mask, transposable_mask
from sparse24.pruning.prunable import find_candidates


class TransposedLinear(nn.Module):
    """What transformers' Conv1D does."""

    def __init__(self, outs: int, ins: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


Conv1D = type("Conv1D", (TransposedLinear,), {"__module__": "transformers.pytorch_utils"})


class Zoo(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 12, (3, 2))
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.conv1d = nn.Conv1d(6, 4, 5)
        self.attention = nn.MultiheadAttention(16, 4)
        self.cross = nn.MultiheadAttention(16, 4, kdim=8, vdim=12)
        self.odd = nn.Linear(30, 24)
        self.transposed = Conv1D(20, 16)
        self.lstm = nn.LSTM(8, 8)
        self.norm = nn.LayerNorm(16)
        self.half = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.tied = nn.Linear(16, 40, bias=False)
        self.tied.weight = self.embed.weight
        self.twin = nn.Linear(30, 24)
        self.twin.weight = self.odd.weight
        self.classifier = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1000))


def mlp(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(14, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3)).to(
        dtype
    )


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


def reason_of(sparsifier: Sparsifier, layer: str) -> str:
    return next(row.reason for row in sparsifier.report() if row.name == layer)


def same_state(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ---- what is pruned ---------------------------------------------------------------------------------


def test_every_kind_of_layer_is_pruned_along_its_input_channels() -> None:
    model = Zoo()
    before = copy.deepcopy(model.state_dict())
    sparsifier = Sparsifier(model)
    report = sparsifier.prune()
    dims = {
        "conv.weight": 1,
        "conv1d.weight": 1,
        "attention.in_proj_weight": 1,
        "attention.out_proj.weight": 1,
        "cross.q_proj_weight": 1,
        "cross.k_proj_weight": 1,
        "cross.v_proj_weight": 1,
        "cross.out_proj.weight": 1,
        "odd.weight": 1,
        "transposed.weight": 0,
        "half.weight": 1,
        "classifier.0.weight": 1,
    }
    assert list(sparsifier.masks) == list(dims)
    for name, value in model.state_dict().items():
        if name == "twin.weight":
            assert value is not before[name]
            assert is_sparse24(value)
        elif name in dims:
            mask = magnitude_mask(before[name], dim=dims[name])
            assert torch.equal(sparsifier.masks[name], mask)
            assert torch.equal(value, torch.where(mask, before[name], torch.zeros_like(value)))
            assert not value[~mask].signbit().any()
        else:
            assert torch.equal(value, before[name])
    assert [row.name for row in report.done] == [
        name.removesuffix(".weight") for name in [*[*dims][:-1], "twin.weight", *[*dims][-1:]]
    ]
    assert all(row.kept < 0.67 for row in report.done)
    assert report.action == "pruned"


def test_the_report_says_why_a_layer_is_left_alone() -> None:
    sparsifier = Sparsifier(Zoo())
    expected = {
        "embed": "looked up, not multiplied",
        "stem": "3 input channels (dim 1): 2:4 needs 4",
        "depthwise": "1 input channels (dim 1): 2:4 needs 4",
        "lstm.weight_ih_l0": "not a layer that is pruned",
        "tied": "tied to the embedding embed; select it by name",
        "classifier.2": "an output head by its name (classifier); select it by name",
        "odd": "not pruned yet: call prune()",
        "twin": "shares its weight with odd.weight",
    }
    for layer, reason in expected.items():
        assert reason in reason_of(sparsifier, layer)
    sparsifier.prune()
    assert reason_of(sparsifier, "odd") == "30 input channels: the last group has 2 and keeps 2"
    assert reason_of(sparsifier, "conv") == ""
    for layer, reason in expected.items():
        assert layer == "odd" or reason in reason_of(sparsifier, layer)
    rows = {row.name: row for row in sparsifier.report()}
    assert rows["odd"].bytes_before == rows["odd"].bytes_after == 30 * 24 * 4
    assert rows["twin"].bytes_before == rows["tied"].bytes_before == 0
    assert rows["conv"].shape == (12, 8, 3, 2)
    assert "13 of 20 layers pruned" in str(sparsifier.report())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (parametrizations.weight_norm(nn.Linear(8, 8)), "weight is parametrized by _WeightNorm"),
        (parametrizations.spectral_norm(nn.Linear(8, 8)), "weight is parametrized by _SpectralNorm"),
        (nn.LazyLinear(8), "not initialized"),
        (nn.Linear(8, 8, device="meta"), "meta device"),
        (nn.Linear(3, 8), "3 input channels"),
    ],
)
def test_layers_that_cannot_be_pruned_are_refused_by_name(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 8))
    sparsifier = Sparsifier(model, select=["*"])
    assert reason in reason_of(sparsifier, "1")
    sparsifier.prune()
    assert reason in reason_of(sparsifier, "1")
    assert list(sparsifier.masks) == ["0.weight", "2.weight"]


def test_weights_that_are_not_parameters_are_refused_by_name() -> None:
    computed, missing, low, flat = (nn.Linear(8, 8) for _ in range(4))
    computed.weight_g, computed.weight_v = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.randn(8, 8))
    del computed.weight, missing.weight
    low.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    flat.weight = nn.Parameter(torch.ones(64))
    sparsifier = Sparsifier(
        nn.ModuleDict({"computed": computed, "missing": missing, "low": low, "flat": flat})
    )
    assert "computed from weight_g, weight_v" in reason_of(sparsifier, "computed")
    assert reason_of(sparsifier, "missing") == "weight is not a parameter"
    assert "dtype int8" in reason_of(sparsifier, "low")
    assert reason_of(sparsifier, "flat") == "shape (64,): needs [out, in, ...]"
    assert not sparsifier.prune().done


def test_parametrized_attention_is_refused() -> None:
    attention = nn.MultiheadAttention(8, 2)
    parametrize.register_parametrization(attention, "in_proj_weight", nn.Identity())
    sparsifier = Sparsifier(attention)
    assert "in_proj_weight is parametrized by Identity" in reason_of(sparsifier, "in_proj_weight")
    assert Sparsifier(attention).prune().done[0].name == "out_proj"


def test_a_weight_shared_along_different_dims_is_refused() -> None:
    linear, transposed = nn.Linear(8, 8), Conv1D(8, 8)
    transposed.weight = linear.weight
    sparsifier = Sparsifier(nn.ModuleDict({"a": linear, "b": transposed}))
    assert reason_of(sparsifier, "a") == "a and b share it, but group it along different dims"
    assert not sparsifier.prune().done


class Headed(nn.Module):
    def __init__(self, head: nn.Module, name: str, vocabulary: int = 0) -> None:
        super().__init__()
        if vocabulary:
            self.positions = nn.Embedding(16, 16)
            self.embed = nn.Embedding(vocabulary, 16)
        self.body = nn.Linear(16, 16)
        self.add_module(name, head)


class WithGetter(Headed):
    def get_output_embeddings(self) -> nn.Module:
        return self.decode


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (Headed(nn.Linear(16, 1000), "fc"), "fc"),
        (Headed(nn.Linear(16, 1000), "lm_head"), "lm_head"),
        (Headed(nn.ModuleDict({"classifier": nn.Linear(16, 64)}), "top"), "top.classifier"),
        (Headed(nn.Linear(16, 10), "last"), "last"),
        (Headed(nn.Linear(16, 48), "last", vocabulary=48), "last"),
        (WithGetter(nn.Linear(16, 64), "decode"), "decode"),
        (mlp(), "4"),
    ],
)
def test_output_heads_are_skipped_unless_selected(model: nn.Module, head: str) -> None:
    left = [row.name for row in Sparsifier(copy.deepcopy(model)).prune().left if row.kind != "Embedding"]
    assert left == [head]
    assert "an output head" in reason_of(Sparsifier(model), head)
    assert Sparsifier(model, select=[head]).prune().done[0].name == head


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(16, 10),
        nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)),
        Headed(nn.Linear(16, 16), "pooler"),
        Headed(nn.Linear(16, 48), "widen"),
        Headed(nn.Conv2d(16, 10, 1), "conv"),
        Headed(nn.Linear(16, 16), "pooler", vocabulary=48),
    ],
)
def test_no_head_is_seen_where_there_is_none(model: nn.Module) -> None:
    assert all(row.kind == "Embedding" for row in Sparsifier(model).prune().left)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (["conv"], ["conv.weight"]),
        ("attention.in_proj_weight", ["attention.in_proj_weight"]),
        (["attention"], ["attention.in_proj_weight"]),
        (
            ["cross.*"],
            ["cross.q_proj_weight", "cross.k_proj_weight", "cross.v_proj_weight", "cross.out_proj.weight"],
        ),
        (["twin"], ["odd.weight"]),
        ({"tied"}, ["tied.weight"]),
        ([], []),
        (
            lambda name, layer: isinstance(layer, nn.Conv1d) or name == "half",
            ["conv1d.weight", "half.weight"],
        ),
    ],
)
def test_select_by_name_pattern_or_function(select: Any, expected: list[str]) -> None:
    sparsifier = Sparsifier(Zoo(), select=select)
    assert "not selected" in reason_of(sparsifier, "transposed")
    sparsifier.prune()
    assert list(sparsifier.masks) == expected


def test_wrappers_do_not_change_names() -> None:
    model = mlp()
    model[0] = torch.compile(model[0], backend="eager")
    compiled = torch.compile(model, backend="eager")
    sparsifier = Sparsifier(compiled)
    sparsifier.prune()
    assert list(sparsifier.masks) == ["0.weight", "2.weight"]
    assert [row.kind for row in sparsifier.report()] == ["Linear"] * 3
    assert Sparsifier(nn.DataParallel(mlp())).prune().done[0].name == "0"
    selected = Sparsifier(model, select=lambda name, layer: name == "0" and type(layer) is nn.Linear)
    assert [row.name for row in selected.prune().done] == ["0"]


def test_custom_layers_and_the_root_are_found() -> None:
    names = [(c.name, c.layer, c.dim) for c in find_candidates(nn.Linear(4, 4))]
    assert names == [("weight", "", 1)]
    bilinear = find_candidates(nn.Bilinear(4, 4, 4))
    assert bilinear[0].blocked
    assert not find_candidates(nn.Bilinear(4, 4, 4), {nn.Bilinear: ["weight"]})[0].blocked


# ---- patterns and scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["1:4", "4:8", "1:2", "transposable"])
def test_other_patterns(pattern: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Linear(16, 12))
    before = [layer.weight.detach().clone() for layer in model]
    sparsifier = Sparsifier(model, pattern, select=["*"])
    sparsifier.prune()
    for mask, weight in zip(sparsifier.masks.values(), before, strict=True):
        expected = transposable_mask(weight) if pattern == "transposable" else magnitude_mask(weight, pattern)
        assert torch.equal(mask, expected)
    assert sparsifier.state_dict()["pattern"] == pattern


def test_transposable_needs_multiples_of_four() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8).double())
    sparsifier = Sparsifier(model, "transposable", select=["*"])
    assert reason_of(sparsifier, "0") == "6 x 8: a transposable mask needs multiples of 4"
    sparsifier.prune()
    assert list(sparsifier.masks) == ["2.weight", "3.weight"]
    assert "int8" in reason_of(Sparsifier(with_int8(), "transposable", select=["*"]), "0")


def with_int8() -> nn.Sequential:
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return nn.Sequential(layer)


def test_a_score_decides_what_is_kept() -> None:
    model = mlp()
    seen = []

    def score(weight: Tensor, name: str) -> Tensor:
        seen.append(name)
        return (torch.arange(weight.shape[1]) % 4).float().expand_as(weight)

    Sparsifier(model, score=score).prune()
    assert seen == ["0.weight", "2.weight"]
    assert not model[0].weight[:, [0, 1, 4, 5, 8, 9]].any()
    assert model[0].weight[:, [2, 3, 6, 7, 10, 11, 12, 13]].all()


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda w, name: None, TypeError, "returned NoneType"),
        (lambda w, name: w[:1], ValueError, r"must be \(16, 20\) on cpu"),
        (lambda w, name: -w.abs(), ValueError, "not negative"),
        (lambda w, name: w.int(), ValueError, "floating"),
    ],
)
def test_a_bad_score_changes_nothing(
    score: Callable[[Tensor, str], Tensor], error: type[Exception], message: str
) -> None:
    model = mlp()
    before = copy.deepcopy(model)
    sparsifier = Sparsifier(model, score=lambda w, name: w.abs() if name == "0.weight" else score(w, name))
    with pytest.raises(error, match=rf"score\(2.weight\).*{message}"):
        sparsifier.prune()
    assert same_state(model, before)
    assert not sparsifier.masks


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "net"}, TypeError, "torch.nn.Module, not str"),
        ({"pattern": "4:2"}, ValueError, "N:M"),
        ({"pattern": 24}, TypeError, "string"),
        ({"score": "l1"}, ValueError, "'l1'"),
        ({"score": 3}, TypeError, "not int"),
        ({"select": ["0", "nope"]}, ValueError, "'nope' matches no layer.*: 0, 2, 4"),
        ({"select": [3]}, TypeError, "not int"),
        ({"select": 3}, TypeError, "select must be"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Sparsifier(**{"model": mlp(), **arguments})


# ---- training ---------------------------------------------------------------------------------------

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


# ---- state ------------------------------------------------------------------------------------------


def pruned_state() -> dict[str, Any]:
    sparsifier = Sparsifier(mlp())
    sparsifier.prune()
    return sparsifier.state_dict()


def with_masks(**changes: Any) -> dict[str, Any]:
    state = pruned_state()
    masks = {**state["masks"], **{name.replace("_", "."): mask for name, mask in changes.items()}}
    return {**state, "masks": {name: mask for name, mask in masks.items() if mask is not None}}


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([], TypeError, 'holds "pattern" and "masks", not list'),
        ({"masks": {}}, TypeError, "not \\['masks'\\]"),
        ({"pattern": "1:4", "masks": {}}, ValueError, "'1:4', this Sparsifier is '2:4'"),
        ({"pattern": "2:4", "masks": []}, TypeError, "not be a list"),
        (with_masks(**{"2_weight": None}), ValueError, r"missing \['2.weight'\], unknown \[\]"),
        (with_masks(**{"4_weight": torch.ones(3, 16).bool()}), ValueError, r"unknown \['4.weight'\]"),
        (
            with_masks(**{"2_weight": torch.ones(16, 20)}),
            TypeError,
            "2.weight must be a bool tensor, not torch.float32",
        ),
        (with_masks(**{"2_weight": 1}), TypeError, "not int"),
        (
            with_masks(**{"2_weight": torch.zeros(20, 16).bool()}),
            ValueError,
            r"2.weight is \(20, 16\), the weight \(16, 20\)",
        ),
        (
            with_masks(**{"2_weight": torch.ones(16, 20).bool()}),
            ValueError,
            "group 0 along dim 1 at .0. keeps more than 2 of 4",
        ),
    ],
)
def test_a_bad_state_changes_nothing(state: Any, error: type[Exception], message: str) -> None:
    sparsifier = Sparsifier(mlp(seed=5))
    sparsifier.prune()
    before = sparsifier.masks
    with pytest.raises(error, match=message):
        sparsifier.load_state_dict(state)
    assert all(sparsifier.masks[name] is mask for name, mask in before.items())


def test_a_transposable_state_is_checked_in_both_directions() -> None:
    model = nn.Linear(8, 8)
    sparsifier = Sparsifier(model, "transposable")
    sparsifier.prune()
    state = sparsifier.state_dict()
    sparsifier.load_state_dict(state)
    assert sparsifier.verify()[0].reason == ""
    rows_only = torch.tensor([True, True, False, False]).repeat(8, 2)
    with pytest.raises(ValueError, match="along dim 0"):
        sparsifier.load_state_dict({**state, "masks": {"weight": rows_only}})


def test_a_state_from_before_pruning_loads() -> None:
    sparsifier = Sparsifier(mlp())
    sparsifier.prune()
    sparsifier.load_state_dict(Sparsifier(mlp()).state_dict())
    assert not sparsifier.masks


def test_the_example_recovers_what_pruning_lost(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[1] / "examples" / "recipe.py"
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    dense, pruned, retrained = (
        float(share) for share in re.findall(r"([\d.]+)%(?=[,\n])", said.splitlines()[-1] + "\n")
    )
    assert pruned < retrained
    assert retrained > dense - 2
    assert "2 of 4 layers pruned" in said


def test_loaded_masks_are_copies() -> None:
    state = pruned_state()
    sparsifier = Sparsifier(mlp())
    sparsifier.load_state_dict(state)
    state["masks"]["0.weight"].fill_(False)
    assert sparsifier.masks["0.weight"].any()
