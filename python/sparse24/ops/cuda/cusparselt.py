"""cuSPARSELt from Python: where the library is, whether a device can use it, and what it accepts.

The library is opened at the first question, never at import. What was tried, and why it failed, is in the
error's text; ``sparse24 doctor`` prints it.
"""

from __future__ import annotations

import functools
import site
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _C
from ..registry import DTYPES, Error
from . import device_kernels

Algorithm = _C.Algorithm
Product = _C.Product

#: Codes of what a product can give; int32 is nothing a weight can be.
CODES = {**DTYPES, torch.int32: 6}

_LIBRARY = "libcusparseLt.so.0"
_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")
#: Where the wheels of NVIDIA put them, under site-packages.
_WHEEL_FOLDERS = ("nvidia/cusparselt/lib", "nvidia/cu13/lib", "nvidia/cuda_runtime/lib", "torch/lib")


class Stream:
    """A CUDA stream as the backend needs it: its device, its handle, and how torch's allocator is told."""

    def __init__(self, device: int, handle: int) -> None:
        self.device = device
        self.handle = handle

    @property
    def is_capturing(self) -> bool:
        """Whether it captures a CUDA graph."""
        return _C.cusparselt_is_capturing(self.handle)

    def record(self, tensor: Tensor) -> None:
        """Keep the memory of ``tensor``, made on another stream, until what this one has queued is done."""
        tensor.record_stream(torch.cuda.ExternalStream(self.handle, self.device))

    def microseconds(self, work: Callable[[], object], launches: int, flush: Tensor | None = None) -> float:
        """Median time of a call of ``work`` on this stream, which is the current one, its host cost included.

        Args:
            flush: written before each call, so that the L2 cache holds nothing of it; twice the cache's size.
        """
        times: list[float] = []
        stream = torch.cuda.ExternalStream(self.handle, self.device)
        for _ in range(launches + 1):
            if flush is not None:
                flush.zero_()
            stream.synchronize()  # the GPU waits for the host from here on
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            work()
            stop.record(stream)
            stop.synchronize()
            times.append(1000 * start.elapsed_time(stop))
        return statistics.median(times[1:])


class HostStream(Stream):
    """The default stream of the emulator in tests/, whose work is done when a call returns."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def record(self, tensor: Tensor) -> None:
        """Host memory outlives its use."""

    def microseconds(self, work: Callable[[], object], launches: int, flush: Tensor | None = None) -> float:
        """Median time of a call."""
        times = []
        for _ in range(launches):
            begin = time.perf_counter()
            work()
            times.append(1e6 * (time.perf_counter() - begin))
        return statistics.median(times)


class GPU(NamedTuple):
    """A device that can use cuSPARSELt."""

    sm: int  #: 86 is compute capability 8.6
    multiprocessors: int
    version: int  #: of cuSPARSELt: 801 is 0.8.1
    kernels: bool = False  #: whether the kernels of csrc/cuda run there


def _folders() -> Iterator[Path]:
    roots = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    for root in dict.fromkeys(roots):
        for folder in _WHEEL_FOLDERS:
            yield Path(root) / folder


def _found_by_pathfinder(name: str) -> Iterator[str]:
    """What NVIDIA's own finder says, where it is installed."""
    if find_spec("cuda") is None or find_spec("cuda.pathfinder") is None:
        return
    from cuda import pathfinder  # noqa: PLC0415  optional, and only looked at when CUDA is

    try:
        yield str(pathfinder.load_nvidia_dynamic_lib(name).abs_path)
    except (pathfinder.DynamicLibNotFoundError, RuntimeError):
        return


@functools.cache
def _set_search_paths() -> None:
    found = {
        name: [str(f / name) for f in _folders() if (f / name).exists()] for name in (_LIBRARY, *_RUNTIMES)
    }
    libraries = [*_found_by_pathfinder("cusparseLt"), *found[_LIBRARY]]
    runtimes = [path for name in _RUNTIMES for path in found[name]]
    _C.cusparselt_set_search_paths(libraries, runtimes)


class Library(NamedTuple):
    """What was opened."""

    version: int
    path: str
    cudart_path: str
    caveat: str  #: empty, or why another version would be better


def library() -> Library:
    """The libraries, opened at the first call.

    Raises:
        Error: one cannot be found or used; the text lists what was tried.
    """
    _set_search_paths()
    return Library(*_C.cusparselt_library())


def version_text(version: int) -> str:
    """801 as "0.8.1"."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


@functools.cache
def gpu(device: int) -> GPU:
    """The device, whichever is the current one.

    Raises:
        Error: no driver, no library, an architecture before sm_80, no such version.
        ValueError: there is no such device.
    """
    version = library().version
    opened = _C.cusparselt_open_device(device)
    return GPU(*opened, version, torch.cuda.is_available() and not device_kernels.why_unusable(device))


#: By device, what keeps this process from ever using it.
_lasting: dict[int, str] = {}
_warned: set[str] = set()


def why_unavailable(device: int) -> str:
    """Why sparse products cannot run on this device; empty: they can.

    That they can, and that a library, a driver or sparse tensor cores are missing, is found out once a
    process. Another failure (memory that is full, say) is told by a warning, once, and asked again at the
    next call.
    """
    found = _lasting.get(device)
    if found is not None:
        return found
    try:
        gpu(device)
    except (Error, ValueError) as error:
        return _noted(device, str(error))
    _lasting[device] = ""
    return ""


def _noted(device: int, problem: str) -> str:
    try:
        library()
        lasting = _C.cusparselt_why_unusable(device)
    except ValueError:
        return problem  # no such device: nothing to remember
    except Error as error:
        lasting = problem if _is_missing(str(error)) else ""
    if lasting:
        _lasting[device] = problem
    elif problem not in _warned:
        _warned.add(problem)
        text = f"products on device {device} run dense until it can be opened for sparse ones: {problem}"
        warnings.warn(text, stacklevel=2)
    return problem


def _is_missing(problem: str) -> bool:
    return any(
        text in problem for text in ("was not found", "cannot be opened", "cannot be used", "has no func")
    )


def forget() -> None:
    """Ask again at the next call whether devices can be used: after a library was installed or changed."""
    _set_search_paths.cache_clear()
    gpu.cache_clear()
    _lasting.clear()
    _warned.clear()
    _C.cusparselt_release_thread()


class Driver(NamedTuple):
    """The CUDA driver and runtime: 13000 is CUDA 13.0, driver 0: none is loaded."""

    driver_version: int
    runtime_version: int
    devices: int
    problem: str  #: CUDA's text where it cannot count devices


def driver() -> Driver:
    """Ask the CUDA runtime, without creating a context.

    Raises:
        Error: no CUDA runtime can be opened.
    """
    _set_search_paths()
    return Driver(*_C.cusparselt_driver())


@functools.lru_cache(maxsize=256)
def multiples(dtype: torch.dtype, out_dtype: torch.dtype) -> tuple[int, int, int, int, int]:
    """Elements that m, n, k, the stride of x and the stride of y have to be multiples of."""
    return _C.cusparselt_multiples(CODES[dtype], CODES[out_dtype])


def set_plan_capacity(plans: int) -> None:
    """Plans that each thread keeps for each device; 256 at first.

    Raises:
        ValueError: fewer than one.
    """
    _C.cusparselt_set_plan_capacity(plans)
