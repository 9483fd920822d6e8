"""Weights that are compressed in their places: every kind of layer, the same outputs, there and back.

Over 300 lines: one network with every kind of layer, which all of the tests share.
"""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparse24
from reference import relative_error
from sparse24.nn.held import HeldWeight, HeldWeights, own_class
from sparse24.nn.weight import CompressedWeight

pytestmark = pytest.mark.usefixtures("seeded")


class SamePadded(nn.Conv2d):
    """As timm's Conv2dSame: what is around the input depends on its size."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, self.stride, 0, self.dilation)


class Casting(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias)


class Scaled(nn.Linear):
    """Holds more than a Linear does."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


def everything() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "conv1d": nn.Conv1d(16, 24, 3, padding=2, dilation=2),
            "same": nn.Conv1d(16, 16, 3, padding="same", groups=2),
            "lstm": nn.LSTM(16, 24, 2, bidirectional=True, batch_first=True),
            "gru": nn.GRU(16, 24),
            "rnn": nn.RNN(16, 24, nonlinearity="relu", bias=False),
            "cell": nn.LSTMCell(16, 24),
            "padded": SamePadded(16, 24, 3),
            "casting": Casting(16, 24),
            "scaled": Scaled(16, 24),
        }
    )


INPUTS = {
    "conv1d": (2, 16, 20), "same": (2, 16, 20), "lstm": (3, 5, 16), "gru": (5, 3, 16), "rnn": (5, 3, 16),
    "cell": (3, 16), "padded": (2, 16, 6, 6), "casting": (3, 16), "scaled": (3, 16),
}  # fmt: skip


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, nn.utils.rnn.PackedSequence):
        return [output.data]
    return [tensor for each in output for tensor in flat(each)]


def assert_same(dense: nn.Module, sparse: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        for a, b in zip(flat(dense(*inputs)), flat(sparse(*inputs)), strict=True):
            assert a.shape == b.shape
            assert relative_error(b, a) < 5e-6


def dense_reads(call: Any, *inputs: Any) -> int:
    """How often a compressed weight is decompressed in a call."""
    plain, reads = CompressedWeight.dense, []

    def dense(self: CompressedWeight) -> Tensor:
        reads.append(1)
        return plain(self)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(CompressedWeight, "dense", dense)
        call(*inputs)
    return len(reads)


def both(model: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    sparse24.Sparsifier(model.eval()).prune()
    dense = copy.deepcopy(model)
    report = sparse24.to_sparse(model, when="always", **options)
    assert not report.left, str(report)
    return dense, model


def test_every_layer_is_pruned_and_converted_where_it_is() -> None:
    dense, sparse = both(everything())
    for name, shape in INPUTS.items():
        layer = sparse.get_submodule(name)
        assert isinstance(layer, type(dense.get_submodule(name)))
        assert any(isinstance(child, HeldWeight) for child in layer.modules())
        x = torch.randn(shape)
        assert_same(dense.get_submodule(name), layer, x)
        assert not dense_reads(layer, x)
    after = sum(p.numel() * p.element_size() for p in (*sparse.parameters(), *sparse.buffers()))
    assert after < 0.65 * sum(p.numel() * p.element_size() for p in dense.parameters())


def test_back_to_dense_is_what_it_was() -> None:
    dense, sparse = both(everything())
    report = sparse24.to_dense(sparse)
    assert len(report.done) == len(INPUTS)
    assert [type(m) for m in sparse.modules()] == [type(m) for m in dense.modules()]
    assert list(sparse.state_dict()) == list(dense.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(sparse.parameters(), dense.parameters(), strict=True))
    assert all(p.requires_grad for p in sparse.parameters())
    for name, shape in INPUTS.items():
        assert_same(dense.get_submodule(name), sparse.get_submodule(name), torch.randn(shape))


RECURRENT = [
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True, "proj_size": 8}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    (nn.RNN, {"bias": False}),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(("kind", "options"), RECURRENT, ids=lambda case: getattr(case, "__name__", ""))
def test_recurrent_layers_take_what_torchs_do(kind: Any, options: dict[str, Any]) -> None:
    dense, sparse = both(nn.ModuleList([kind(16, 24, **options)]))
    one, other = dense[0], sparse[0]
    x = torch.randn(5, 7, 16)
    _, state = one(x)
    for inputs in ((x,), (x, state), (x[0],)):
        assert_same(one, other, *inputs)
    sequences = [torch.randn(length, 16) for length in (3, 6, 2, 6)]
    for packed in (
        nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False),
        nn.utils.rnn.pack_sequence(sorted(sequences, key=len, reverse=True)),
    ):
        _, state = one(packed)
        assert_same(one, other, packed)
        assert_same(one, other, packed, state)
        assert torch.equal(other(packed)[0].batch_sizes, packed.batch_sizes)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        other(torch.randn(5, 7, 12))
    with pytest.raises(ValueError, match="Expected input to be 2D or 3D, got 1D"):
        other(torch.randn(16))
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        other(x, tuple(s[:, :1] for s in state) if kind is nn.LSTM else state[:, :1])


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_take_what_torchs_do(kind: Any) -> None:
    dense, sparse = both(nn.ModuleList([kind(16, 24)]))
    x = torch.randn(3, 16)
    for inputs in ((x,), (x, dense[0](x)), (x[0],)):
        assert_same(dense[0], sparse[0], *inputs)
    with pytest.raises(ValueError, match="Expected input to be 1D or 2D, got 3D"):
        sparse[0](torch.randn(1, 2, 16))


def test_gradients_pass_through_a_recurrent_layer() -> None:
    dense, sparse = both(nn.ModuleList([nn.LSTM(16, 24)]))
    x = torch.randn(4, 2, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(dense[0](x)[0].sum(), x)
    (found,) = torch.autograd.grad(sparse[0](x)[0].sum(), x)
    assert relative_error(found, expected) < 1e-5


def test_copies_pickles_casts_and_files(tmp_path: Path) -> None:
    dense, sparse = both(everything())
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert [type(m) for m in twin.modules()] == [type(m) for m in sparse.modules()]
        for name, shape in INPUTS.items():
            x = torch.randn(shape)
            a, b = flat(twin.get_submodule(name)(x))[0], flat(sparse.get_submodule(name)(x))[0]
            assert torch.equal(a, b)
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()))
    other = everything().eval()
    sparse24.Sparsifier(other).prune()
    sparse24.to_sparse(other, when="always")
    other.load_state_dict(state)
    other.load_state_dict(dense.state_dict())  # a dense checkpoint, too
    assert all(torch.equal(other.state_dict()[name], each) for name, each in state.items())
    sparse24.to_dense(other)
    other.load_state_dict(state)  # and a compressed one into dense layers
    assert all(torch.equal(other.state_dict()[name], each) for name, each in dense.state_dict().items())
    half = copy.deepcopy(sparse).to(torch.float16)
    assert half["lstm"].weight_ih_l0.dtype == torch.float16
    assert half["conv1d"].weight.dtype == torch.float16
    for name in ("m.safetensors", "m.pt"):
        sparse24.save(sparse, tmp_path / name)
        with torch.device("meta"):
            blank = everything()
        for target in (everything(), blank, copy.deepcopy(sparse)):
            assert len(sparse24.load(target, tmp_path / name).done) == len(INPUTS)
            assert target.state_dict().keys() == sparse.state_dict().keys()
            assert all(torch.equal(target.state_dict()[n], t) for n, t in sparse.state_dict().items())


def test_a_file_with_a_weight_that_is_not_2_4_makes_it_dense(tmp_path: Path) -> None:
    dense, sparse = both(everything())
    state = sparse.state_dict()
    for key in ("values", "indices"):
        del state[f"lstm.compressed.weight_hh_l0.{key}"]
    state["lstm.weight_hh_l0"] = torch.randn(96, 24)
    torch.save(state, tmp_path / "m.pt")
    for target in (sparse, everything()):
        sparse24.load(target, tmp_path / "m.pt")
        assert torch.equal(target["lstm"].weight_hh_l0, state["lstm.weight_hh_l0"])
        assert isinstance(target["lstm"].weight_ih_l0, CompressedWeight)
    state["lstm.weight_hh_l0"] = torch.ones(3, 3)
    torch.save(state, tmp_path / "m.pt")
    kinds = [type(module) for module in dense.modules()]
    with pytest.raises(sparse24.files.FileError, match=r"lstm.weight_hh_l0 is \(3, 3\) in it"):
        sparse24.load(dense, tmp_path / "m.pt")
    assert [type(module) for module in dense.modules()] == kinds


def test_a_cast_casts_the_layer() -> None:
    dense, sparse = both(nn.ModuleList([nn.GRU(16, 24), nn.Conv1d(16, 24, 3)]), dtype=torch.bfloat16)
    assert {p.dtype for p in sparse.parameters()} == {torch.bfloat16}
    x = torch.randn(2, 16, 9)
    assert relative_error(sparse[1](x.bfloat16()).float(), dense[1](x)) < 2e-2


def test_a_weight_is_written_and_set_as_a_parameter_is() -> None:
    _, sparse = both(nn.ModuleList([nn.LSTM(16, 24)]))
    lstm = sparse[0]
    other = sparse24.magnitude_mask(torch.randn(96, 16)).float()
    lstm.weight_ih_l0 = nn.Parameter(other)
    assert isinstance(lstm.weight_ih_l0, CompressedWeight)
    assert torch.equal(lstm.weight_ih_l0.dense(), other)
    with pytest.raises(ValueError, match="this write would leave more than two non-zeros"):
        lstm.weight_ih_l0 = nn.Parameter(torch.ones(96, 16))
    assert torch.equal(lstm.weight_ih_l0.dense(), other)


def test_some_weights_of_a_layer_may_stay_dense() -> None:
    model = nn.ModuleList([nn.LSTM(3, 24)])
    sparse24.Sparsifier(model).prune()
    (row,) = sparse24.to_sparse(model, when="always")
    assert row.done
    assert "weight_ih_l0 stays dense: " in row.reason
    assert isinstance(model[0].weight_ih_l0, nn.Parameter)
    reference = nn.LSTM(3, 24)
    reference.load_state_dict(dense_state(model[0]))
    assert_same(reference, model[0], torch.randn(4, 2, 3))


def dense_state(layer: nn.Module) -> dict[str, Tensor]:
    twin = nn.ModuleList([copy.deepcopy(layer)])
    sparse24.to_dense(twin)
    return twin[0].state_dict()


def test_an_interruption_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = everything().eval()
    sparse24.Sparsifier(model).prune()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    plain, calls = HeldWeight.from_dense, []

    def stop(*arguments: Any) -> HeldWeight:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(HeldWeight, "from_dense", stop)
    for options in ({}, {"dtype": torch.bfloat16}):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            sparse24.to_sparse(model, when="always", **options)
        assert [type(m) for m in model.modules()] == kinds
        assert list(model.state_dict()) == list(before)
        assert all(torch.equal(model.state_dict()[name], each) for name, each in before.items())


# ---- how="tensors" -----------------------------------------------------------------------------------


def test_tensors_keep_every_module() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 24, 3), nn.Flatten(2), nn.Linear(16, 40), nn.TransformerEncoderLayer(40, 4, 56)
    )
    dense, sparse = both(model, how="tensors")
    assert [own_class(m) for m in sparse.modules() if not isinstance(m, HeldWeight | HeldWeights)] == [
        type(m) for m in dense.modules()
    ]
    x = torch.randn(2, 16, 6, 6)
    assert_same(dense, sparse, x)
    assert not dense_reads(sparse, x)
    sparse24.to_dense(sparse)
    assert [type(m) for m in sparse.modules()] == [type(m) for m in dense.modules()]


def test_views_of_rows_run_sparse() -> None:
    _, sparse = both(nn.ModuleList([Casting(16, 24)]))
    weight, x = sparse[0].weight, torch.randn(5, 16)
    dense = weight.dense()
    for view in (
        lambda w: w[:8], lambda w: w.chunk(3)[1], lambda w: w.split(8)[2], lambda w: w.narrow(0, 4, 12),
        lambda w: w.view(3, 8, 16)[1], lambda w: w[3:4],
    ):  # fmt: skip
        part = view(weight)
        assert relative_error(F.linear(x, part), F.linear(x, view(dense))) < 5e-6
        assert relative_error(x @ part.t(), x @ view(dense).t()) < 5e-6
        assert not dense_reads(lambda y, p=part: F.linear(y, p), x)
        assert not dense_reads(lambda y, p=part: y @ p.t(), x)
    for view in (lambda w: w[:, :8], lambda w: w[::2], lambda w: w.flip(0), lambda w: w.t()[:16, :16]):
        assert torch.allclose(view(weight) + 0, view(dense))
    assert dense_reads(lambda y: F.linear(y, weight[::2]), x) == 1


# ---- what stays dense --------------------------------------------------------------------------------


class Standardized(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) * 3
        return F.conv2d(input, weight, self.bias)


class TwoInputs(nn.Linear):
    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input + other)


class Ignoring(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input


class OwnLSTM(nn.LSTM):
    def forward(self, *inputs: Any) -> Any:  # type: ignore[override]
        return super().forward(*inputs)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.ConvTranspose1d(16, 16, 3), "no sparse kernel for ConvTranspose1d: its weight lies as [in, out"),
        (Standardized(16, 16, 3), "a subclass of Conv2d with its own forward, which computes something else"),
        (TwoInputs(16, 16), "which does not take an input alone (TypeError: "),
        (Ignoring(16, 16), "which does not multiply by its weight"),
        (OwnLSTM(16, 16), "OwnLSTM is a subclass of LSTM with its own forward"),
        (nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 16, 3)), "parametrized (weight)"),
        (nn.LazyConv1d(16, 3), "has no weight yet: run a batch"),
        (nn.ConvTranspose3d(16, 16, 3), "no sparse kernel for ConvTranspose3d: its weight lies as [in, out"),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, nn.Module) else "",
)
def test_what_stays_dense_says_why(layer: nn.Module, says: str) -> None:
    model = nn.ModuleList([layer])
    (row,) = sparse24.to_sparse(model, when="always")
    assert not row.done
    assert says in row.reason
    assert not [r for r in sparse24.Sparsifier(model).report() if r.done]


def test_faster_has_no_figures_for_them() -> None:
    model = nn.ModuleList([nn.LSTM(16, 24), nn.Linear(16, 16)])
    sparse24.Sparsifier(model).prune()
    row, _ = sparse24.to_sparse(model)
    assert not row.done
    assert 'no figures for layers of this kind: stays dense with when="faster"' in row.reason
    with pytest.raises(ValueError, match="how must be"):
        sparse24.to_sparse(model, how="parameters")  # type: ignore[arg-type]
