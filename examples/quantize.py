"""From a trained network to an int8 sparse one, without labels: python examples/quantize.py"""

from __future__ import annotations

import torch

import sparse24
from sparse24.commands.bench import tasks

task = tasks.load("fashion", quick=False)  # apt-get install dataset-fashion-mnist; trained here at first
model = task.dense()
batches = task.calibration(seed=0)  # unlabelled images
print("dense", task.score(model))
sparse24.oneshot(model, batches)  # 2:4: masks, then kept weights make up for the others
sparse24.to_sparse(model, example_inputs=[(batches[0],)])  # compressed, where that is faster
print(sparse24.quantize(model, batches, activations="static", method="mse"))  # then int8
print("2:4 and int8", task.score(model))
torch.save(model.state_dict(), "fashion-int8.pt")
