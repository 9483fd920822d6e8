"""int8 over whole networks: how long calibration takes, and what int8 gains where products are the time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ... import Sparsifier, to_sparse
from ...quant import quantize
from ...timing import interleaved_medians
from .definitions import of_key
from .table import Rows, Setting, Table

#: Sequences of 128 tokens to calibrate BERT-Large on, and in one batch.
SEQUENCES, BATCH = 64, 8


class Speed(NamedTuple):
    """A network whose products are at least 90 % of its time, and the size of its batch."""

    name: str
    build: Callable[[bool], nn.Module]
    inputs: Callable[[nn.Module, int], tuple[Any, ...]]
    batch: int


def tables(setting: Setting) -> list[Table]:
    """Seconds of calibration, then ratios to the sparse floating network."""
    return [calibration(setting), speed(setting)]


def calibration(setting: Setting) -> Table:
    """BERT-Large with random weights, 2:4, static scales by least squared error."""
    definition = of_key("bert-large")
    depth, count = (1 / 24, 2) if setting.quick else (1.0, SEQUENCES // BATCH)
    head = ["network", "sequences", "tokens", "s", "asked"]
    caption = "Calibration of all products for int8, static, by least squared error, of a sparse network."
    with Rows(setting, "int8-calibration", caption, head) as rows:
        model = _sparse(definition.build(depth))
        batches = [definition.inputs(BATCH, model)[0] for _ in range(count)]
        begin = time.perf_counter()
        quantize(model, batches, "mse", activations="static", when="always")
        spent = time.perf_counter() - begin
        rows.add([definition.name, str(count * BATCH), "128", f"{spent:.0f}", "120"])
    return rows.table()


def speed(setting: Setting) -> Table:
    """Networks that are nearly all products, with ``when="faster"``."""
    llama = of_key("llama-decode")
    cases = [
        Speed("MLP 4096-11008-4096, 4 blocks", _mlp, lambda m, n: (torch.randn(n, 4096),), 1),
        Speed("MLP 4096-11008-4096, 4 blocks", _mlp, lambda m, n: (torch.randn(n, 4096),), 8),
        Speed(
            "Llama-shaped, decode, a quarter of its depth",
            lambda quick: llama.build(1 / 64 if quick else 0.25),
            lambda m, n: llama.inputs(n, m),
            1,
        ),
    ]
    head = ["network", "dtype", "batch", "floating ms", "int8 ms", "x floating", "asked", "int8 layers"]
    caption = (
        "int8 against the sparse network in floating point, in turns: weights alone or dynamic, the better, "
        'by quantize(when="faster"). Memory bounds these products.'
    )
    with Rows(setting, "int8-speed", caption, head) as rows:
        for dtype in (torch.float32, torch.bfloat16):
            for case in cases:
                torch.manual_seed(24)
                model = _sparse(case.build(setting.quick).to(dtype))
                given = case.inputs(model, case.batch)
                inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in given)
                rows.add(_ratio(case, model, inputs, setting))
    return rows.table()


def _ratio(case: Speed, model: nn.Module, inputs: tuple[Any, ...], setting: Setting) -> list[str]:
    found = []
    for activations in (None, "dynamic"):
        twin = copy.deepcopy(model)
        report = quantize(twin, [inputs], activations=activations, when="faster")
        layers = [row for row in report if row.kind.startswith("Sparse")]
        with torch.no_grad():
            pair = interleaved_medians([_call(model, inputs), _call(twin, inputs)], setting.seconds)
        done = f"{sum(row.done for row in layers)} of {len(layers)}, {activations or 'weights alone'}"
        found.append((pair[0] / pair[1], pair, done))
    ratio, (floating, int8), done = max(found)
    dtype = str(inputs[0].dtype if inputs[0].is_floating_point() else next(model.parameters()).dtype)
    return [
        case.name, dtype.removeprefix("torch."), str(case.batch), f"{floating * 1e3:.2f}",
        f"{int8 * 1e3:.2f}", f"{ratio:.2f}", "1.30", done,
    ]  # fmt: skip


def _call(model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    return lambda: model(*inputs)


def _mlp(quick: bool) -> nn.Module:
    inner = 64 if quick else 11008
    layers: list[nn.Module] = []
    for _ in range(1 if quick else 4):
        layers += [nn.Linear(4096, inner), nn.ReLU(), nn.Linear(inner, 4096)]
    return nn.Sequential(*layers).eval()


def _sparse(model: nn.Module) -> nn.Module:
    Sparsifier(model, select=["*"]).prune()
    to_sparse(model, when="always")
    return model
