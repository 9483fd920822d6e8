"""``to_sparse`` and ``to_dense`` over whole networks: what is converted, what is not, and why."""

from __future__ import annotations

import collections
import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

import sparse24
from reference import assert_matches, prune_layers, relative_error
from sparse24 import SparseConv2d, SparseLinear, SparseMultiheadAttention, Sparsifier
from sparse24.nn import convert


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class CountOperators(TorchDispatchMode):
    """How often every operator ran, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


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


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(32, 4, 56, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not options.get("norm_first", False)).eval()


def converted(model: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module, sparse24.Report]:
    """The pruned dense model, its converted copy, and the report."""
    dense = prune_layers(model).eval()
    sparse = copy.deepcopy(dense)
    return dense, sparse, sparse24.to_sparse(sparse, **options)


def count(model: nn.Module, *inputs: Tensor, **options: Any) -> collections.Counter[str]:
    with CountOperators() as counter, torch.no_grad():
        model(*inputs, **options)
    return counter.calls


def reasons(report: sparse24.Report) -> dict[str, str]:
    return {row.name: row.reason for row in report.left}


# ---- whole networks ---------------------------------------------------------------------------------


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
    report = sparse24.to_sparse(model)
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
    report = sparse24.to_sparse(model)
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
    report = sparse24.to_sparse(model)
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
    sparse24.to_sparse(model)
    model(torch.randn(2, 16, requires_grad=True)).sum().backward()
    assert seen == [(2, 16)]


# ---- layers that are shared -------------------------------------------------------------------------


def test_a_module_with_two_names_is_converted_once() -> None:
    shared = prune_layers(nn.Linear(16, 16))
    model = nn.ModuleDict({"first": shared, "other": nn.Sequential(nn.ReLU(), shared)})
    report = sparse24.to_sparse(model)
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
    report = sparse24.to_sparse(model)
    assert reasons(report) == {
        "head": "weight is shared with embed.weight: untie it first",
        "a": "weight is shared with b.weight: untie it first",
        "b": "weight is shared with a.weight: untie it first",
    }
    assert model["head"].weight is model["embed"].weight


def test_two_views_of_one_storage_are_shared_too() -> None:
    model = nn.ModuleDict({"a": prune_layers(nn.Linear(16, 8)), "b": nn.Linear(16, 4)})
    model["b"].weight = nn.Parameter(model["a"].weight.detach()[:4])
    assert reasons(sparse24.to_sparse(model))["b"] == "weight is shared with a.weight: untie it first"


# ---- layers that stay, each with its reason ---------------------------------------------------------


class ScaledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return -super()._conv_forward(input, weight, bias)


class NamedLinear(nn.Linear):
    """Computes what nn.Linear does."""


class Adapted(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Linear(inputs, 4)
        self.register_parameter("scale", nn.Parameter(torch.ones(())))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized() -> nn.Module:
    layer = nn.Linear(16, 8)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def masked_by_hook() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(16, 8), "weight", amount=3)


def replaced_forward() -> nn.Module:
    layer = nn.Linear(16, 8)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def renamed_state() -> nn.Module:
    layer = nn.Linear(16, 8)
    layer.register_state_dict_post_hook(lambda module, state, prefix, metadata: None)
    return layer


def wrapped_weight() -> nn.Module:
    layer = nn.Linear(16, 8)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(NamedTensor))
    return layer


def weight_as_attribute() -> nn.Module:
    layer = nn.Linear(16, 8)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


class NamedTensor(torch.Tensor):
    pass


STAY = {
    "own forward": (lambda: ScaledLinear(16, 8), "ScaledLinear is a subclass of Linear with its own forward"),
    "own conv forward": (
        lambda: OwnConvolution(8, 8, 1),
        "OwnConvolution is a subclass of Conv2d with its own _conv_forward",
    ),
    "extra weights": (lambda: Adapted(16, 8), "holds more than a Linear does: scale, down"),
    "parametrized": (parametrized, "parametrized (weight): call torch.nn.utils.parametrize"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(16, 8)), "parametrized (weight)"),
    "torch prune": (masked_by_hook, "holds more than a Linear does: weight_orig, weight_mask"),
    "replaced forward": (replaced_forward, "its forward was replaced by hand"),
    "plain weight": (weight_as_attribute, "weight is not a parameter"),
    "state hooks": (renamed_state, "has hooks that know its weight's name (_state_dict_hooks)"),
    "lazy": (lambda: nn.LazyLinear(8), "LazyLinear has no weight yet: run a batch through"),
    "meta": (lambda: nn.Linear(16, 8, device="meta"), "weight is on the meta device"),
    "float64": (lambda: prune_layers(nn.Linear(16, 8).double()), "weight is torch.float64: pass dtype="),
    "subclass tensor": (wrapped_weight, "weight is a NamedTensor: only plain tensors are converted"),
    "conv1d": (lambda: prune_layers(nn.Conv1d(8, 8, 3)), "no sparse kernel for Conv1d"),
    "conv3d": (lambda: prune_layers(nn.Conv3d(8, 8, 3)), "no sparse kernel for Conv3d"),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), "2:4, but no smaller when compressed"),
    "dense conv": (lambda: nn.Conv2d(8, 8, 3), "not 2:4: row 0, tap (0, 0), channels 0-3 hold more than two"),
    "dense attention": (
        lambda: nn.MultiheadAttention(16, 2),
        "not 2:4: q_proj, row 0, columns 0-3 hold more",
    ),
    "sparse": (lambda: SparseLinear(16, 8), "already sparse"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("case", list(STAY))
def test_a_layer_that_stays_is_reported_with_its_reason(case: str) -> None:
    build, reason = STAY[case]
    layer = build()
    model = nn.ModuleDict({"layer": layer, "good": prune_layers(nn.Linear(16, 8))})
    report = sparse24.to_sparse(model)
    rows = {row.name: row for row in report}
    assert rows["layer"].reason.startswith(reason)
    assert not rows["layer"].done
    assert rows["layer"].bytes_before == rows["layer"].bytes_after
    assert model["layer"] is layer
    assert rows["good"].done
    assert str(report)


def test_a_float64_layer_is_converted_where_a_dtype_is_given() -> None:
    dense, sparse, report = converted(mlp().double(), dtype=torch.float32)
    assert not report.left
    x = torch.randn(4, 37)
    assert_matches(sparse(x), dense(x.double()))


def test_a_subclass_that_computes_the_same_is_converted_and_remarked() -> None:
    model = nn.ModuleDict({"layer": prune_layers(NamedLinear(16, 8))})
    report = sparse24.to_sparse(model)
    assert report[0].done
    assert report[0].reason == "was a NamedLinear, a subclass of Linear"


def test_other_layers_get_no_row() -> None:
    model = nn.ModuleList(
        [
            nn.ConvTranspose2d(8, 8, 3),
            nn.Bilinear(8, 8, 4),
            nn.Embedding(8, 8),
            nn.LSTM(8, 8),
            nn.LayerNorm(8),
        ]
    )
    assert len(sparse24.to_sparse(model)) == 0
    assert str(sparse24.to_sparse(model)).endswith("0 of 0 layers converted; 0 bytes -> 0")


def test_a_module_without_data_has_no_share() -> None:
    report = sparse24.to_sparse(nn.ModuleList([nn.Linear(16, 8, device="meta")]))
    assert math.isnan(report[0].kept)


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


def test_to_dense_leaves_what_fuses_an_activation() -> None:
    model = nn.Sequential(SparseLinear(8, 8, activation="relu"), SparseConv2d(8, 8, 1))
    report = sparse24.to_dense(model)
    assert reasons(report) == {"0": "fuses activation='relu'"}
    assert [type(layer) for layer in model] == [SparseLinear, nn.Conv2d]


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
        sparse24.to_sparse(model)
    assert all(now is then for now, then in zip(model, before, strict=True))


def test_converting_twice_changes_nothing_more() -> None:
    _, sparse, _ = converted(mlp())
    layers = list(sparse)
    report = sparse24.to_sparse(sparse)
    assert set(reasons(report).values()) == {"already sparse"}
    assert all(now is then for now, then in zip(sparse, layers, strict=True))


# ---- torch's transformer modules --------------------------------------------------------------------

FAST = [{}, {"activation": "gelu"}, {"norm_first": True}]


@pytest.mark.parametrize("options", FAST, ids=lambda options: "-".join(map(str, options)) or "default")
def test_an_encoder_runs_sparse_where_torch_would_fuse(options: dict[str, Any]) -> None:
    dense, sparse, report = converted(encoder(**options))
    assert not report.left
    assert len(report.done) == 6
    x = torch.randn(3, 9, 32)
    assert count(dense, x)["aten::_transformer_encoder_layer_fwd"] == 2
    calls = count(sparse, x)
    assert calls["sparse24::linear"] == 2 * (4 + 2)
    assert (
        not calls["aten::_transformer_encoder_layer_fwd"]
        + calls["sparse24::decompress"]
        + calls["aten::addmm"]
    )
    with torch.no_grad():
        assert relative_error(sparse(x), copy.deepcopy(dense).double()(x.double())) < 5e-6


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_masks_padding() -> None:
    dense, sparse, _ = converted(encoder())
    x = torch.randn(3, 9, 32)
    padding = torch.arange(9) >= torch.tensor([[9], [6], [4]])
    with torch.no_grad():
        expected = dense(x, src_key_padding_mask=padding)
        output = sparse(x, src_key_padding_mask=padding)
        causal = nn.Transformer.generate_square_subsequent_mask(9)
        expected_causal = dense(x, mask=causal, is_causal=True)
        output_causal = sparse(x, mask=causal, is_causal=True)
    assert relative_error(output[~padding], expected[~padding]) < 5e-6
    assert relative_error(output_causal, expected_causal) < 5e-6
    assert count(sparse, x, src_key_padding_mask=padding)["sparse24::linear"] == 12


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("part", ["layers.0.linear1", "layers.1.self_attn", "layers.1.linear2"])
def test_an_encoder_with_one_sparse_layer_is_right(part: str) -> None:
    dense, sparse, report = converted(encoder(), filter_fn=lambda name, module: name == part)
    assert [row.name for row in report.done] == [part]
    x = torch.randn(3, 9, 32)
    padding = torch.arange(9) >= torch.tensor([[9], [6], [4]])
    calls = count(sparse, x, src_key_padding_mask=padding)
    assert calls["sparse24::linear"] == (4 if "attn" in part else 1)
    assert not calls["sparse24::decompress"]
    with torch.no_grad():
        output = sparse(x, src_key_padding_mask=padding)
        expected = dense(x, src_key_padding_mask=padding)
    assert relative_error(output[~padding], expected[~padding]) < 5e-6


def test_to_dense_gives_torch_its_fused_path_back() -> None:
    dense, sparse, _ = converted(encoder())
    sparse24.to_dense(sparse)
    x = torch.randn(3, 9, 32)
    assert count(sparse, x)["aten::_transformer_encoder_layer_fwd"] == 2
    assert torch.equal(sparse(x), dense(x))
    assert sparse.use_nested_tensor
    assert vars(sparse.layers[0]).keys() == vars(dense.layers[0]).keys()


def test_an_encoder_decoder_is_converted_whole() -> None:
    model = nn.Transformer(32, 4, 1, 2, 48, batch_first=True)
    dense, sparse, report = converted(model)
    assert not report.left
    assert len(report.done) == 3 + 2 * 4
    source, target = torch.randn(2, 7, 32), torch.randn(2, 5, 32)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    with torch.no_grad():
        expected = copy.deepcopy(dense).double()(source.double(), target.double(), tgt_mask=mask.double())
        assert relative_error(sparse(source, target, tgt_mask=mask), expected) < 5e-6


@pytest.mark.parametrize("part", ["in_proj_weight", "out_proj.weight"])
def test_an_attention_is_converted_whole_or_not_at_all(part: str) -> None:
    model = prune_layers(nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)}))
    with torch.no_grad():
        model["attention"].get_parameter(part).fill_(1)
    report = sparse24.to_sparse(model)
    assert [row.name for row in report] == ["attention"]
    assert report[0].reason.startswith(f"not 2:4: {'q_proj' if 'in' in part else 'out_proj'}, row 0")
    assert type(model["attention"]) is nn.MultiheadAttention


def test_an_attention_with_a_parametrized_projection_stays() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)})
    parametrizations.weight_norm(model["attention"].out_proj)
    assert reasons(sparse24.to_sparse(model))["attention"].startswith("parametrized (weight)")


def test_an_attention_keeps_every_option_through_conversion() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, kdim=12, vdim=20, add_bias_kv=True)})
    dense, sparse, report = converted(model)
    assert type(sparse["attention"]) is SparseMultiheadAttention
    assert report[0].bytes_before == sum(4 * p.numel() for p in dense.parameters())
    inputs = (torch.randn(5, 2, 16), torch.randn(7, 2, 12), torch.randn(7, 2, 20))
    assert_matches(sparse["attention"](*inputs)[0], dense["attention"](*inputs)[0])


# ---- transformers -----------------------------------------------------------------------------------


def test_a_bert_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=52
    )
    dense, sparse, report = converted(transformers.BertModel(config))
    assert not report.left
    assert len(report.done) == 2 * 6 + 1
    tokens = torch.randint(0, 120, (3, 11))
    mask = torch.arange(11) < torch.tensor([[11], [8], [5]])
    with torch.no_grad():
        expected = dense(tokens, attention_mask=mask.long())
        output = sparse(tokens, attention_mask=mask.long())
    assert relative_error(output.last_hidden_state, expected.last_hidden_state) < 5e-6
    assert relative_error(output.pooler_output, expected.pooler_output) < 5e-6
    assert count(sparse, tokens)["sparse24::linear"] == 13


def test_a_gpt2_of_transformers_with_transposed_weights() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=24, n_layer=2, n_head=2)
    dense, sparse, report = converted(transformers.GPT2LMHeadModel(config))
    assert {row.kind for row in report.done} == {"Conv1D"}
    assert len(report.done) == 2 * 4
    assert reasons(report) == {
        "lm_head": "weight is shared with transformer.wte.weight: untie it first",
    }
    attention = next(row for row in report if row.name == "transformer.h.0.attn.c_attn")
    assert attention.shape == (24, 72)
    assert sparse.transformer.h[0].attn.c_attn.nf == 72
    tokens = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        assert relative_error(sparse(tokens).logits, dense(tokens).logits) < 5e-6
        sparse24.to_dense(sparse)
        assert relative_error(sparse(tokens).logits, dense(tokens).logits) < 5e-6
    with pytest.raises(ValueError, match="itself a Conv1D"):
        sparse24.to_sparse(dense.transformer.h[0].attn.c_attn)


def test_a_gpt2_that_is_not_pruned_stays() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=24, n_layer=1, n_head=2)
    report = sparse24.to_sparse(transformers.GPT2Model(config))
    assert not report.done
    assert all(row.reason.startswith("not 2:4: row 0, columns 0-3") for row in report)


@pytest.mark.parametrize("problem", ["", "no NVIDIA driver is loaded:\n  install one"])
def test_the_report_says_why_a_gpu_runs_layers_dense(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(convert.cusparselt, "why_unavailable", lambda index: problem)
    told = convert._why_dense(torch.device("cuda"))
    assert told == "; ".join(problem.splitlines())
    assert convert._why_dense(torch.device("cpu")) == ""
