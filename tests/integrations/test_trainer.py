"""The callbacks in the real training loops: enforced, logged, saved, and gone on with bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse24 import Sparsifier
from sparse24.integrations.enforced import Enforced
from sparse24.pruning import recipes

transformers = pytest.importorskip("transformers", reason="the extra dev brings it")
pytest.importorskip("accelerate", reason="the extra dev brings it")
from sparse24.integrations.trainer import FILE, SparsifierCallback  # noqa: E402

MAKES: dict[str, Callable[[nn.Module], Any]] = {
    "sparsifier": Sparsifier,
    "recipe": lambda model: recipes.DynamicSparsity(Sparsifier(model), begin=2, refresh=2, freeze=6),
}


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {
            "input_ids": torch.randint(50, (8,), generator=generator),
            "labels": torch.tensor(index % 2),
        }


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def trainer(model: nn.Module, folder: Path, callback: SparsifierCallback, steps: int = 8) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=4, logging_steps=2,
        learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], use_cpu=True, seed=3,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=arguments, train_dataset=Sentences(), callbacks=[callback])


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("make", MAKES)
def test_a_trainer_that_resumes_ends_in_the_same_bits(make: str, tmp_path: Path) -> None:
    whole = bert()
    callback = SparsifierCallback(MAKES[make])
    run = trainer(whole, tmp_path / "a", callback)
    run.train()
    assert callback.sparsifier is not None
    callback.sparsifier.verify()
    kept = [row["sparse24/kept"] for row in run.state.log_history if "sparse24/kept" in row]
    assert kept[-1] == pytest.approx(0.5)
    assert ("sparse24/flips" in run.state.log_history[-2]) == (make == "recipe")

    shutil.rmtree(tmp_path / "a" / "checkpoint-8")
    again = bert()
    callback = SparsifierCallback(MAKES[make])
    trainer(again, tmp_path / "a", callback).train(resume_from_checkpoint=True)
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_checkpoint_elsewhere_is_named_and_one_without_masks_is_refused(tmp_path: Path) -> None:
    trainer(bert(), tmp_path / "a", SparsifierCallback(), steps=4).train()
    kept = tmp_path / "kept" / "checkpoint-4"
    shutil.move(tmp_path / "a" / "checkpoint-4", kept)
    with pytest.raises(FileNotFoundError, match=r"goes on at step 4.*resume_from=FOLDER"):
        trainer(bert(), tmp_path / "b", SparsifierCallback()).train(resume_from_checkpoint=str(kept))
    callback = SparsifierCallback(resume_from=kept)
    trainer(bert(), tmp_path / "b", callback).train(resume_from_checkpoint=str(kept))
    saved = torch.load(kept / FILE, weights_only=True)["masks"]
    assert callback.sparsifier is not None
    assert all(torch.equal(mask, saved[name]) for name, mask in callback.sparsifier.masks.items())
    assert (
        json.loads((tmp_path / "b" / "checkpoint-8" / "trainer_state.json").read_text())["global_step"] == 8
    )


def test_what_is_no_sparsifier_is_refused() -> None:
    with pytest.raises(TypeError, match="not int"):
        SparsifierCallback(3)
    enforced = Enforced(lambda model: model)
    with pytest.raises(TypeError, match="returned Linear"):
        enforced.begin(nn.Linear(4, 4), [])
    assert enforced.metrics() == {}
    assert enforced.state_dict() == {}
