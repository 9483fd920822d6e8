"""Whole networks on a GPU over batch sizes, as the talk's slide has them: fp16, bf16, int8."""

from __future__ import annotations

import copy
import functools
import itertools
import time

import torch
from torch import nn

from .... import Sparsifier, to_sparse
from ....nn.compressed import CompressedModule
from ...validate.ground import Ground
from .. import keeping
from ..definitions import DEFINITIONS, Definition, Inputs, of_key
from ..table import Rows, Setting, Table
from . import medians, note

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16}
BATCHES = (1, 4, 16, 64, 256)
EMULATED_DEPTH = 0.01


def tables(setting: Setting) -> list[Table]:
    """A row a network, dtype and batch, until the time is up; rows are kept for ``resume``."""
    ground = Ground(quick=setting.quick)
    end, store = time.monotonic() + 60 * setting.minutes, keeping.Rows("gpu-networks", setting)
    head = ["network", "dtype", "batch", "torch ms", "2:4 ms", "x dense", "inputs a second", "sparse layers"]
    caption = (
        "Whole networks with random weights, 2:4 by magnitude, every layer that can be (grouped convolutions "
        "stay dense: a launch a group). int8: weights with a scale a row, tokens with one each; against "
        f"torch in fp16.{note(ground)}"
    )
    left: list[str] = []
    with Rows(setting, "gpu-networks", caption, head) as rows:
        for definition, kind in itertools.product(
            [of_key(k) for k in setting.networks] or DEFINITIONS, KINDS
        ):
            models: tuple[nn.Module, nn.Module] | None = None
            for batch in setting.batches or (BATCHES[:1] if setting.quick else BATCHES):
                key = f"{definition.key} {kind} {batch}"
                cells = store.get(key)
                if cells is None and time.monotonic() > end:
                    left.append(f"{key}: the time was up")
                    continue
                if cells is None:
                    models = models or _built(ground, definition, kind)
                    try:
                        figures = _figures(
                            ground, models, definition.inputs(batch, models[0]), setting.seconds
                        )
                    except torch.OutOfMemoryError:
                        left.append(f"{key}: out of memory")
                        continue
                    name = [f"{definition.name}, {definition.what}", kind, str(batch)]
                    cells = store.put(key, [*name, *figures])
                rows.add(cells)
    return [rows.table(f" Left out: {'; '.join(left)}." if left else "")]


def _ungrouped(name: str, module: nn.Module) -> bool:
    return not isinstance(module, nn.Conv2d) or module.groups == 1


def _built(ground: Ground, definition: Definition, kind: str) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(24)
        dense = definition.build(EMULATED_DEPTH if ground.emulated else 1.0).to(KINDS[kind])
    Sparsifier(dense).prune()
    dense.requires_grad_(False)
    sparse = copy.deepcopy(dense)
    to_sparse(sparse, when="always", filter_fn=_ungrouped)
    if kind == "int8":
        for module in sparse.modules():
            if isinstance(module, CompressedModule):
                module.to_int8("dynamic")
    return dense.to(ground.device), sparse.to(ground.device)


@torch.no_grad()
def _figures(
    ground: Ground, models: tuple[nn.Module, nn.Module], inputs: Inputs, seconds: float
) -> list[str]:
    here = tuple(x.to(ground.device) for x in inputs)
    with ground.layers_run_here():
        before, after = medians(ground, [functools.partial(model, *here) for model in models], seconds)
    layers = sum(isinstance(module, CompressedModule) for module in models[1].modules())
    every = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in models[0].modules())
    times = [f"{before * 1e3:.2f}", f"{after * 1e3:.2f}", f"{before / after:.2f}"]
    return [*times, f"{len(inputs[0]) / after:.0f}", f"{layers} of {every}"]
