"""The emulator of cuSPARSELt (tests/emulator), built once for its sources and opened by the backend.

Passing on it is not validation on a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse24 import masks
from sparse24.ops.cuda.cusparselt import Stream

HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32
_ROOT = Path(__file__).parent
_FLAGS = ("-std=c++20", "-O2", "-fPIC", f"-I{_ROOT.parent / 'csrc'}", f"-I{_ROOT / 'emulator'}")


def build() -> Path:
    """The shared object, compiled unless these very sources have been: about half a minute.

    CXX and CXXFLAGS count, so that it can be built with sanitizers.
    """
    folder = _ROOT / "emulator"
    sources = sorted(
        p for p in folder.glob("*.cpp") if "_test" not in p.name and not p.name.startswith("test_")
    )
    inputs = [*sources, *sorted(folder.glob("*.h")), _ROOT.parent / "csrc" / "cusparselt" / "abi.h"]
    flags = os.environ.get("CXXFLAGS", "")
    digest = hashlib.sha256(b"".join([flags.encode(), *(path.read_bytes() for path in inputs)])).hexdigest()[
        :16
    ]
    library = Path(tempfile.gettempdir()) / f"sparse24-emulator-{os.getuid()}-{digest}" / "libcusparseLt.so.0"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        _compile(sources, library)
    return library


def _compile(sources: list[Path], library: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "c++") + " " + os.environ.get("CXXFLAGS", ""))
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        objects = [Path(scratch) / f"{source.stem}.o" for source in sources]

        def compile_one(source: Path, target: Path) -> None:
            without = {**os.environ, "LD_PRELOAD": ""}  # the compiler needs no sanitizer
            subprocess.run([*compiler, *_FLAGS, "-c", source, "-o", target], check=True, env=without)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compile_one, sources, objects))
        linked = Path(scratch) / library.name
        subprocess.run(
            [*compiler, "-shared", f"-Wl,-soname,{library.name}", "-o", linked, *objects, "-lpthread"],
            check=True,
        )
        linked.rename(library)


class Emulator:
    """The controls of tests/emulator/emulator.h."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._c = ctypes.CDLL(str(library))
        for name in ("emulator_violations", "emulator_last_refusal"):
            getattr(self._c, name).restype = ctypes.c_char_p
        for name in ("calls", "refusals", "live_objects", "synchronizations", "allocations", "launches"):
            getattr(self._c, f"emulator_{name}").restype = ctypes.c_long

    def __getattr__(self, name: str) -> Any:
        return getattr(self._c, f"emulator_{name}")

    def cuda(self, function: str, *arguments: object) -> None:
        """Call a function of the CUDA runtime; anything but success is an error of the test."""
        status = getattr(self._c, f"cuda{function}")(*arguments)
        assert status == 0, f"cuda{function}: {status}"

    def problems(self) -> str:
        """What was done that the contract forbids, or was refused by the library; empty: nothing."""
        refused = self.last_refusal().decode() if self.refusals() else ""
        return self.violations().decode() + refused

    def new_stream(self) -> EmulatedStream:
        handle = ctypes.c_void_p()
        self.cuda("StreamCreate", ctypes.byref(handle))
        return EmulatedStream(handle.value or 0)


class EmulatedStream(Stream):
    """A stream of the emulator's device 0, which works on CPU tensors at once."""

    def __init__(self, handle: int = 0) -> None:
        super().__init__(0, handle)
        self.recorded: list[int] = []  # addresses

    def record(self, tensor: Tensor) -> None:
        self.recorded.append(tensor.data_ptr())

    def microseconds(self, work: Any, launches: int) -> float:
        for _ in range(launches):
            work()
        return 1.0


def sparse_weight(rows: int, cols: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """2:4, or 1:2 in float32, as TF32 wants it."""
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    masks.prune_(weight, pattern="1:2" if dtype is torch.float32 else "2:4")
    return weight.to(dtype)


def compressed(weight: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = torch.ops.sparse24.compress(weight)
    return values, indices


def randn(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def eight_bit(*shape: int, dtype: torch.dtype, seed: int = 0, sparse: bool = False) -> Tensor:
    made = torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).float()
    if sparse:
        masks.prune_(made)
    return made.to(dtype)
