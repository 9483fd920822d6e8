"""The callback in Lightning's loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse24 import Sparsifier
from sparse24.pruning import recipes

pl = pytest.importorskip("lightning.pytorch", reason="the extra dev brings it")
from sparse24.integrations.lightning import SparsifierCallback  # noqa: E402

MAKES: dict[str, Any] = {
    "sparsifier": lambda model: Sparsifier(model, select=["net.0", "net.2"]),
    "recipe": lambda model: recipes.DynamicSparsity(
        Sparsifier(model, select=["net.0", "net.2"]), begin=3, refresh=2, freeze=10
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def train_dataloader(self) -> Any:
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), batch_size=4
        )


def fit(folder: Path, callback: SparsifierCallback | None, epochs: int, resume: Path | None = None) -> Any:
    model = Classifier()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder), enable_checkpointing=False,
        callbacks=[] if callback is None else [callback],
    )  # fmt: skip
    trainer.fit(model, ckpt_path=resume, weights_only=False)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return model, trainer


@pytest.mark.parametrize("make", MAKES)
def test_fit_that_resumes_ends_in_the_same_bits(make: str, tmp_path: Path) -> None:
    callback = SparsifierCallback(MAKES[make])
    whole, trainer = fit(tmp_path, callback, 4)
    assert callback.sparsifier is not None
    callback.sparsifier.verify()
    assert float(trainer.callback_metrics["sparse24/kept"]) == pytest.approx(0.5)
    fit(tmp_path, SparsifierCallback(MAKES[make]), 2)
    again, _ = fit(tmp_path, SparsifierCallback(MAKES[make]), 4, tmp_path / "2.ckpt")
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, None, 1)
    with pytest.raises(ValueError, match="its checkpoint has no masks"):
        fit(tmp_path, SparsifierCallback(MAKES["sparsifier"]), 2, tmp_path / "1.ckpt")
