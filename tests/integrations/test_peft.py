"""LoRA on compressed layers: before and after conversion, trained, merged, taken out, saved, never lost."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import sparse24
from reference import relative_error
from sparse24.nn import SparseLinear

from .families import TOKENS, gpt2, llama

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]


def config(*names: str, **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, target_modules=list(names or ("q_proj", "down_proj")), **options)


def pruned() -> Any:
    model, _ = llama()
    sparse24.Sparsifier(model.eval()).prune()
    return model


def sparse() -> Any:
    model = pruned()
    sparse24.to_sparse(model, when="always")
    return model


def adapted_after() -> Any:
    return peft.get_peft_model(sparse(), config())


def adapted_before() -> Any:
    model = peft.get_peft_model(pruned(), config())
    report = sparse24.to_sparse(model, when="always")
    reasons = {row.name: row.reason for row in report.left}
    assert any("an adapter by its name (lora_B)" in reason for reason in reasons.values())
    return model


def adapted_int8() -> Any:
    model = sparse()
    for module in model.modules():
        if isinstance(module, SparseLinear):
            module.to_int8()
    return peft.get_peft_model(model, config())


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def trained(model: Any) -> Any:
    """A few steps, so that adapters are not zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert parameters
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    losses = []
    for _ in range(8):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]
    return model.eval()


WAYS = pytest.mark.parametrize("make", [adapted_after, adapted_before, adapted_int8])


@WAYS
def test_adapters_train_beside_the_sparse_layers(make: Any) -> None:
    model = make()
    layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
    assert len(layers) == 4
    assert all(isinstance(layer, SparseLinear) for layer in layers)
    before = [copy.deepcopy(layer.state_dict()) for layer in layers]
    first = logits(model)
    trained(model)
    assert relative_error(logits(model), first) > 0.01
    for layer, state in zip(layers, before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())


@WAYS
@pytest.mark.parametrize("safe", [False, True])
def test_merging_makes_dense_layers_and_says_so(make: Any, safe: bool) -> None:
    model = trained(make())
    expected = logits(model)
    with pytest.warns(UserWarning, match="merged into a 2:4 weight, which is dense now"):
        merged = model.merge_and_unload(safe_merge=safe)
    assert relative_error(logits(merged), expected) < 1e-5
    layer = merged.model.layers[0]
    assert type(layer.self_attn.q_proj) is nn.Linear
    assert isinstance(layer.self_attn.k_proj, SparseLinear)  # had no adapter


@WAYS
def test_what_was_merged_is_taken_out_bit_for_bit(make: Any) -> None:
    model = trained(make())
    expected = logits(model)
    with model.disable_adapter():
        base = logits(model)
    with pytest.warns(UserWarning, match="which is dense now"):
        model.merge_adapter()
    assert relative_error(logits(model), expected) < 1e-5
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    assert relative_error(base, expected) > 0.01
    unloaded = model.unload()
    assert torch.equal(logits(unloaded), base)
    assert isinstance(unloaded.model.layers[0].self_attn.q_proj, SparseLinear)


def test_adapters_are_saved_and_loaded_on_a_sparse_base(tmp_path: Path) -> None:
    model = trained(adapted_after())
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    base = model.get_base_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unloaded = copy.deepcopy(model).unload()
    unloaded.save_pretrained(tmp_path / "base")
    loaded = type(base).from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    assert torch.equal(logits(again), expected)


def test_conv1d_of_transformers(tmp_path: Path) -> None:
    model, _ = gpt2()
    sparse24.Sparsifier(model.eval()).prune()
    sparse24.to_sparse(model, when="always")
    adapted = trained(peft.get_peft_model(model, config("c_attn", "c_proj", fan_in_fan_out=True)))
    expected = logits(adapted)
    with pytest.warns(UserWarning, match="which is dense now"):
        merged = adapted.merge_and_unload()
    assert relative_error(logits(merged), expected) < 1e-5
    assert type(merged.transformer.h[0].attn.c_attn).__name__ == "Conv1D"
    merged.save_pretrained(tmp_path)
    assert relative_error(logits(type(merged).from_pretrained(tmp_path)), expected) < 1e-5


def test_what_cannot_be_adapted_is_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    sparse24.Sparsifier(model, select=["0.weight"]).prune()
    sparse24.to_sparse(model, when="always", fuse=True)
    assert model[0].activation == "relu"
    with pytest.raises(
        ValueError, match="fuses activation='relu', and an adapter's product belongs before it"
    ):
        peft.get_peft_model(model, config("0"))
    convolution = nn.Sequential(nn.Conv2d(16, 16, 3))
    sparse24.Sparsifier(convolution, select=["0.weight"]).prune()
    sparse24.to_sparse(convolution, when="always")
    with pytest.raises(ValueError, match=r"SparseConv2d.* is not supported"):
        peft.get_peft_model(convolution, config("0"))


def test_weights_in_their_places_refuse_a_merge_and_lose_nothing() -> None:
    model = pruned()
    sparse24.to_sparse(model, when="always", how="tensors")
    adapted = trained(peft.get_peft_model(model, config()))
    expected = logits(adapted)
    with pytest.raises(ValueError, match="this write would leave more than two non-zeros"):
        adapted.merge_adapter()
    assert torch.equal(logits(adapted), expected)


def test_adapters_are_not_pruned() -> None:
    model = peft.get_peft_model(llama()[0], config())
    done = [row.name for row in sparse24.Sparsifier(model).prune().done]
    assert done
    assert not [name for name in done if "lora" in name]
