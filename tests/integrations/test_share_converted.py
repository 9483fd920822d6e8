"""At least 95 % of the weights that are multiplied by run sparse, in networks of every kind."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import sparse24
from reference import relative_error
from sparse24.__main__ import main
from sparse24.nn.held import HeldWeight
from sparse24.nn.weight import CompressedWeight

from .families import FAMILIES, TOKENS

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]


class CRNN(nn.Module):
    """Convolutions, a bidirectional LSTM, classes at every step: reads text in images."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 32, 64, 64]
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.lstm = nn.LSTM(64 * 2, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(96, 37)

    def forward(self, image: Tensor) -> Tensor:
        columns = self.convolutions(image).flatten(1, 2).transpose(1, 2)
        return self.head(self.lstm(columns)[0])


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates, skips and 1x1 convolutions."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv1d(16, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(4))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(width, width, 1), nn.ReLU(), nn.Conv1d(width, 20, 1))

    def forward(self, sound: Tensor) -> Tensor:
        x = self.first(sound)
        total = torch.zeros_like(x)
        for i, (gated, skip) in enumerate(zip(self.gated, self.skips, strict=True)):
            a, b = gated(F.pad(x, (2**i, 0))).chunk(2, 1)
            residual, out = skip(a.tanh() * b.sigmoid()).chunk(2, 1)
            x, total = x + residual, total + out
        found: Tensor = self.last(total)
        return found


def granite() -> Any:
    config = hf.GraniteMoeConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, vocab_size=120, num_local_experts=4,
    )  # fmt: skip
    return hf.GraniteMoeForCausalLM(config), {"input_ids": TOKENS}


def qwen3_moe() -> Any:
    config = hf.Qwen3MoeConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=128, moe_intermediate_size=64, vocab_size=120, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return hf.Qwen3MoeForCausalLM(config), {"input_ids": TOKENS}


NETWORKS: dict[str, Any] = {
    **{
        name: FAMILIES[name]
        for name in ("bert", "gpt2", "llama", "t5", "whisper", "mixtral", "bart", "qwen2")
    },
    "granite": granite,
    "qwen3_moe": qwen3_moe,
    "crnn": lambda: (CRNN(), {"image": torch.randn(2, 1, 16, 64)}),
    "wavenet": lambda: (WaveNet(), {"sound": torch.randn(2, 16, 50)}),
}


def multiplied(model: nn.Module) -> dict[str, int]:
    """The numbers of every weight that inputs are multiplied by: no embeddings, heads and routers."""
    heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        head = get() if callable(get) else None
        heads |= {id(head.weight)} if head is not None else set()
    return {
        name: p.numel()
        for name, p in model.named_parameters()
        if p.dim() >= 2
        and id(p) not in heads
        and not any(part in name for part in ("head", "classifier", "last.3", "position", "gate.weight"))
    }


def last(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output.logits_per_text if "logits_per_text" in output else output.logits


@pytest.mark.parametrize("name", NETWORKS)
def test_nearly_all_weights_run_sparse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = NETWORKS[name]()
    model.eval()
    sizes = multiplied(model)
    sparse24.Sparsifier(model).prune()
    dense = copy.deepcopy(model)
    report = sparse24.to_sparse(model, when="always")
    left = {n: size for n, size in sizes.items() if n in dict(model.named_parameters())}
    assert sum(left.values()) <= 0.05 * sum(sizes.values()), f"{left}\n{report}"
    reads: list[int] = []
    plain = CompressedWeight.dense

    def counted(self: CompressedWeight) -> Tensor:
        reads.append(1)
        return plain(self)

    monkeypatch.setattr(CompressedWeight, "dense", counted)
    with torch.no_grad():
        assert relative_error(last(model(**inputs)), last(dense(**inputs))) < 2e-5
    assert not reads  # no weight was expanded for it


@pytest.mark.parametrize("name", ["mixtral", "granite", "qwen3_moe", "whisper"])
def test_weights_in_their_places_come_back_from_a_folder(name: str, tmp_path: Path) -> None:
    model, inputs = NETWORKS[name]()
    sparse24.Sparsifier(model.eval()).prune()
    sparse24.to_sparse(model, when="always")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert any(isinstance(module, HeldWeight) for module in loaded.modules())
    a, b = model.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[key]) for key, tensor in a.items())
    with torch.no_grad():
        assert torch.equal(last(model(**inputs)), last(loaded(**inputs)))


def test_a_folder_with_single_experts_is_compressed_by_the_command(tmp_path: Path) -> None:
    """transformers stacks them while it loads: they are pruned, and dense in the file."""
    model, inputs = FAMILIES["mixtral"]()
    model.save_pretrained(tmp_path / "dense", max_shard_size="100KB")
    assert main(["prune", str(tmp_path / "dense"), str(tmp_path / "out"), "--compress"]) == 0
    loaded = type(model).from_pretrained(tmp_path / "out").eval()
    first = loaded.model.layers[0]
    assert isinstance(first.self_attn.q_proj, sparse24.SparseLinear)
    assert sparse24.is_sparse24(first.mlp.experts.gate_up_proj.detach(), dim=2)
    before = last(loaded(**inputs)).detach()
    assert len(sparse24.to_sparse(loaded, when="always").done) == 2
    assert relative_error(last(loaded(**inputs)).detach(), before) < 2e-5


def test_experts_run_sparse_however_they_are_called() -> None:
    model, inputs = FAMILIES["mixtral"]()
    sparse24.Sparsifier(model.eval()).prune()
    dense = copy.deepcopy(model)
    sparse24.to_sparse(model, when="always")
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        for each in (model, dense):
            each.set_experts_implementation(implementation)
        with torch.no_grad():
            assert relative_error(model(**inputs).logits, dense(**inputs).logits) < 2e-5
