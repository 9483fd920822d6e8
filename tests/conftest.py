"""What tests of several rooms ask for: a seed, and the emulator of cuSPARSELt for the CUDA operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emulated import EmulatedStream, Emulator, build
from sparse24.nn import on_device
from sparse24.ops.cuda import blobs, cusparselt, launch, repeats, route


@pytest.fixture
def seeded() -> None:
    """The same random numbers for every test of a file that asks for it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def library() -> Iterator[Emulator]:
    """The emulator, opened by the backend for the rest of the process."""
    found = Emulator(build())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSE24_CUSPARSELT", str(found.library))
        patch.setenv("SPARSE24_CUDART", str(found.library))
        patch.setenv("SPARSE24_EMULATOR_DEFERRED", "0")  # for processes that tests begin
        cusparselt.library()
        yield found
        launch.forget()


@pytest.fixture
def emulator(library: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The emulator as new: an sm_86 with 0.8.1. What a test does must break no rule of the library's."""
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "cache"))
    for figures in ("measured", "denied", "refused"):
        monkeypatch.setattr(route, figures, {})
    launch.forget()
    library.reset()
    library.set_deferred(0)
    yield library
    assert library.problems() == ""
    library.set_driver(1)
    launch.forget()
    assert library.live_objects() == 0


@pytest.fixture
def stream(emulator: Emulator) -> EmulatedStream:
    return EmulatedStream()


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The rows of every blob that is made, as it is made."""
    made: list[tuple[int, int]] = []
    compress = blobs.compress

    def counted(values: Tensor, indices: Tensor, rows: tuple[int, int], *rest: Any) -> blobs.Blob:
        made.append(rows)
        return compress(values, indices, rows, *rest)

    monkeypatch.setattr(blobs, "compress", counted)
    return made


@pytest.fixture
def patches_gain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions of any window run sparse untuned, for tests of that path."""
    monkeypatch.setattr(route, "PATCHES_GAIN", True)
    route.forget()
    yield
    route.forget()


@pytest.fixture
def on_emulator(emulator: Emulator, stream: EmulatedStream, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are on the GPU, whose stream this is."""
    monkeypatch.setattr(on_device, "current_stream", lambda tensor: stream)
    monkeypatch.setattr(repeats, "ask_stream", lambda index: on_device.current_stream(torch.empty(0)).handle)
