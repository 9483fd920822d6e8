"""The emulator of cuSPARSELt, as the tests of the CUDA operators use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emulated import EmulatedStream, Emulator, build
from sparse24.ops.cuda import blobs, cusparselt, launch, route


@pytest.fixture(scope="session")
def library() -> Iterator[Emulator]:
    """The emulator, opened by the backend for the rest of the process."""
    found = Emulator(build())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSE24_CUSPARSELT", str(found.library))
        patch.setenv("SPARSE24_CUDART", str(found.library))
        cusparselt.library()
        yield found
        launch.forget()


@pytest.fixture
def emulator(library: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The emulator as new: an sm_86 with 0.8.1. What a test does must break no rule of the library's."""
    monkeypatch.setenv("SPARSE24_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(route, "measured", {})
    launch.forget()
    library.reset()
    library.set_deferred(0)
    yield library
    assert library.problems() == ""
    library.set_driver(1)
    launch.forget()
    blobs.release()
    assert library.live_objects() == 0


@pytest.fixture
def stream(emulator: Emulator) -> EmulatedStream:
    return EmulatedStream()
