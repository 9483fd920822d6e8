"""Memory that a network holds after a forward, dense and converted, every layer sparse.

Each figure comes from a process of its own, in two ways that check each other: the bytes of all tensors that
the network and whatever was derived from its weights keep alive, and the growth of the resident set.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ... import Error, masks, to_sparse
from .table import Rows, Setting, Table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Network(NamedTuple):
    """Layers in a row, and an input for them."""

    name: str
    layers: int
    layer: Callable[[], nn.Module]
    input: tuple[int, ...]
    bytes: int  #: of one layer in fp32


NETWORKS = {
    "bert": Network(
        "BERT-Large encoder",
        24,
        lambda: nn.TransformerEncoderLayer(1024, 16, 4096, activation="gelu", batch_first=True),
        (1, 128, 1024),
        4 * (4 * 1024 * 1024 + 2 * 1024 * 4096),
    ),
    "linear": Network("Linear(2048, 2048)", 12, lambda: nn.Linear(2048, 2048), (128, 2048), 4 * 2048 * 2048),
}


class Held(NamedTuple):
    """Bytes that a network holds."""

    counted: int
    resident: int


def tables(setting: Setting) -> list[Table]:
    head = ["network", "dtype", "dense MB", "2:4 MB", "ratio", "dense RSS MB", "2:4 RSS MB", "RSS ratio"]
    caption = (
        "Memory held after a forward, every layer 2:4. MB: the tensors that are alive, whoever "
        "holds them; RSS: growth of the resident set of a process of its own."
    )
    with Rows(setting, "memory", caption, head) as rows:
        _fill(rows, setting)
    return [rows.table()]


def _fill(rows: Rows, setting: Setting) -> None:
    for name, network in NETWORKS.items():
        layers = _layers_that_fit(network)
        fewer = "" if layers == network.layers else f" (of {network.layers}: more do not fit here)"
        for dtype in DTYPES:
            dense, sparse = (_measure_apart(name, layers, dtype, how, setting) for how in ("dense", "sparse"))
            cells = [f"{layers} x {network.name}{fewer}", dtype]
            for before, after in zip(dense, sparse, strict=True):
                cells += [f"{before / 1e6:.0f}", f"{after / 1e6:.0f}", f"{after / before:.2f}"]
            rows.add(cells)


def _layers_that_fit(network: Network) -> int:
    """As many as leave half of the memory that is free here."""
    available = _kilobytes("/proc/meminfo", "MemAvailable") * 1024
    return max(1, min(network.layers, available // (2 * network.bytes)))


def _measure_apart(name: str, layers: int, dtype: str, how: str, setting: Setting) -> Held:
    command = [sys.executable, "-m", __name__, name, str(layers), dtype, how, str(setting.threads)]
    # With its threshold fixed, glibc gives every freed weight back to the system at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Held(*json.loads(ran.stdout))


def measure(network: Network, layers: int, dtype: torch.dtype, *, sparse: bool) -> Held:
    """What a network of this process holds once a forward has run.

    Raises:
        Error: a layer was left dense; the reason is named.
    """
    _forward(_built(network, 1, dtype, sparse=sparse), network, dtype)  # loads what a first call loads
    gc.collect()
    others, before = live_storages(), resident()
    model = _built(network, layers, dtype, sparse=sparse)
    _forward(model, network, dtype)
    gc.collect()
    grown = resident() - before
    held = {address: size for address, size in live_storages().items() if address not in others}
    return Held(sum(held.values()), grown)


def _built(network: Network, layers: int, dtype: torch.dtype, *, sparse: bool) -> nn.Sequential:
    """One layer after the other, so that no more than one is dense at a time."""
    model = nn.Sequential()
    for _ in range(layers):
        layer = nn.Sequential(network.layer()).to(dtype).eval()
        if sparse:
            for parameter in layer.parameters():
                if parameter.dim() == 2:
                    masks.prune_(parameter)
            report = to_sparse(layer, when="always")
            if report.left:
                raise Error(f"{report.left[0].name} was left dense: {report.left[0].reason}")
        model.append(layer[0])
    return model


def _forward(model: nn.Sequential, network: Network, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        model(torch.randn(*network.input).to(dtype))


def live_storages() -> dict[int, int]:
    """Bytes by address of all memory of this process that a tensor owns or shares."""
    # Tensors of other classes wrap plain ones or, like fake and lazy ones, have no memory.
    plain = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter) and each.is_cpu]
    storages = [tensor.untyped_storage() for tensor in plain]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return _kilobytes("/proc/self/status", "VmRSS") * 1024


def peak() -> int:
    """The most bytes that were in memory at once, since the process began or :func:`forget_peak`."""
    return _kilobytes("/proc/self/status", "VmHWM") * 1024


def forget_peak() -> None:
    """Let :func:`peak` begin with what is in memory now; where the system does not allow it, nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _kilobytes(path: str, name: str) -> int:
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main(arguments: list[str]) -> None:
    """What ``_measure_apart`` runs: prints [counted, resident] in bytes."""
    name, layers, dtype, how, threads = arguments
    torch.set_num_threads(int(threads))
    print(json.dumps(measure(NETWORKS[name], int(layers), DTYPES[dtype], sparse=how == "sparse")))


if __name__ == "__main__":
    main(sys.argv[1:])
