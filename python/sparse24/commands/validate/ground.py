"""Where a part runs: on a GPU, or on the emulator with host memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...ops import Error
from ...ops.cuda import cusparselt
from ...ops.cuda import operators as cuda_ops
from ...ops.cuda.cusparselt import GPU, HostStream, Stream

#: Operators that layers call.
PRODUCTS = ("linear", "conv2d", "int8_linear", "int8_conv2d", "float8_linear", "float8_conv2d")


class OnEmulator(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sends the products of layers on the CPU to the emulator, which takes host memory for a GPU's."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "sparse24" and func._opname in PRODUCTS:
            return cuda_ops.KERNELS[func._opname](*args, **(kwargs or {}), stream=HostStream())
        return func(*args, **(kwargs or {}))


class Ground:
    """The device that is validated. Raises ``Error`` where there is none that can use cuSPARSELt.

    Args:
        quick: fewer shapes, networks and algorithms.
        out: where findings are written as they come, so that a part that is killed leaves those it made.
    """

    def __init__(self, out: Path | None = None, quick: bool = False) -> None:
        self._out = out
        self.quick = quick
        self.emulated = not torch.cuda.is_available()
        self.device = torch.device("cpu" if self.emulated else "cuda")
        problem = cusparselt.why_unavailable(0)
        if problem:
            raise Error(problem)
        self.gpu: GPU = cusparselt.gpu(0)
        self._checks: list[dict[str, Any]] = []

    @property
    def stream(self) -> Stream:
        """The current stream."""
        if self.emulated:
            return HostStream()
        return cuda_ops.current_stream(torch.empty(0, device=self.device))

    def operator(self, name: str) -> Callable[..., Any]:
        """``torch.ops.sparse24.<name>``, or its CUDA kernel on the emulator's stream."""
        if not self.emulated:
            return getattr(torch.ops.sparse24, name)  # type: ignore[no-any-return]
        kernel = cuda_ops.KERNELS[name]
        return lambda *operands: kernel(*operands, stream=HostStream())

    def layers_run_here(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, sparse layers run on what is validated."""
        if not self.emulated:
            return contextlib.nullcontext()
        return OnEmulator()  # type: ignore[no-untyped-call]

    def tensor(self, *shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
        """Normal numbers, or whole ones from -9 to 9 for 8-bit types, the same everywhere."""
        own = torch.Generator().manual_seed(seed)
        if dtype.itemsize == 1:
            return torch.randint(-9, 10, shape, generator=own).float().to(dtype).to(self.device)
        return torch.randn(*shape, generator=own).to(dtype).to(self.device)

    # ---- findings -----------------------------------------------------------------------------------

    def check(self, name: str, passed: bool, **facts: Any) -> None:
        """Note one check with what was seen."""
        self._checks.append({"name": name, "passed": bool(passed), **facts})
        if self._out is not None:
            unfinished = {**self.answer(), "status": "unfinished"}
            self._out.write_text(json.dumps(unfinished, default=str), encoding="utf-8")

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Checks of which one may raise: that is a failed check called ``name``, and the next ones go on."""
        try:
            yield
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            self.check(name, False, error=f"{type(error).__name__}: {error}")

    def answer(self) -> dict[str, Any]:
        """What was found."""
        passed = bool(self._checks) and all(check["passed"] for check in self._checks)
        name = "emulator" if self.emulated else torch.cuda.get_device_name(0)
        return {
            "status": "passed" if passed else "failed",
            "emulated": self.emulated,
            "device": name,
            "gpu": self.gpu._asdict(),
            "checks": self._checks,
        }
