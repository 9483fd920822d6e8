"""What was measured on this machine's GPUs, kept in a file between processes.

``$SPARSE24_CACHE/tuned.json``, by default in ``~/.cache/sparse24``: figures by GPU name, driver, cuSPARSELt
version and product, for algorithm ids mean nothing elsewhere. Read when a device is first used, written by
``sparse24.tune`` after each product, so that an interrupted run is gone on with.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import figures
from . import cusparselt, route
from .cusparselt import GPU, Algorithm
from .route import Measured

_FILE, _FORMAT = "tuned.json", 1


def identity(device: int, gpu: GPU) -> str:
    """What figures are valid for."""
    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no device of torch's"
    driver = cusparselt.driver().driver_version
    return f"{name}, sm_{gpu.sm}, driver {driver}, cuSPARSELt {cusparselt.version_text(gpu.version)}"


def _read() -> dict[str, Any]:
    return figures.read(_FILE, _FORMAT, "gpus", "delete it and tune again")


def _name(key: tuple[Any, ...]) -> str:
    _, dtype, out_dtype, m, k, tokens, window = key
    return " ".join(map(str, (dtype, out_dtype, m, k, tokens, *window))).replace("torch.", "")


def _key(name: str, gpu: GPU) -> tuple[Any, ...]:
    dtype, out_dtype, *numbers = name.split()
    m, k, tokens, *window = map(int, numbers)
    return (gpu, getattr(torch, dtype), getattr(torch, out_dtype), m, k, tokens, tuple(window))


def numbers_of(algorithm: Algorithm) -> list[int]:
    """An algorithm for a file: id, split_k, its mode and buffers."""
    return [algorithm.id, algorithm.split_k, algorithm.split_k_mode, algorithm.split_k_buffers]


def load(device: int, gpu: GPU) -> int:
    """Use the file's figures for this device from now on; how many there are."""
    found = _read().get(identity(device, gpu), {})
    for name, entry in found.items():
        algorithm = Algorithm(*entry["algorithm"])
        others = tuple((Algorithm(*numbers), time) for numbers, time in entry.get("others", []))
        route.measured[_key(name, gpu)] = Measured(algorithm, *entry["microseconds"])._replace(others=others)
    route.forget()
    return len(found)


def save(device: int, gpu: GPU) -> None:
    """Write this device's figures, beside those of other devices, in one step."""
    own = {
        _name(key): {
            "algorithm": numbers_of(found.algorithm),
            "microseconds": [found.sparse, found.dense, found.expanded],
            "others": [[numbers_of(algorithm), time] for algorithm, time in found.others],
        }
        for key, found in route.measured.items()
        if key[0] == gpu
    }
    figures.write(_FILE, _FORMAT, "gpus", {**_read(), identity(device, gpu): own})
