"""One launch of cuSPARSELt: its plan, the blob it reads, and operands of legal sizes and strides."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _C
from ..registry import Error
from . import blobs, cusparselt, denied, memory, route, tuned
from .cusparselt import GPU, Algorithm, Stream
from .weights import Weight


class Epilogue(NamedTuple):
    """What follows the product."""

    bias: Tensor | None = None  #: [m]: out's dtype, float32 for int8 inputs
    scale: Tensor | None = None  #: float32 [m]
    activation: str = "none"
    relu_bounds: tuple[float, float] = route.NO_BOUNDS


def call_of(x: Tensor, m: int, n: int, k: int, out_dtype: torch.dtype, epilogue: Epilogue) -> route.Call:
    return route.Call(
        x.dtype, out_dtype, m, n, k, epilogue.activation, epilogue.bias is not None,
        epilogue.scale is not None, epilogue.relu_bounds,
    )  # fmt: skip


def is_16_byte(tensor: Tensor) -> bool:
    return tensor.data_ptr() % 16 == 0


class Launch(NamedTuple):
    """The parts of one product that do not change from launch to launch."""

    weight: Weight  # from which something may be derived
    rows: tuple[int, int]  # first, count: the part of the weight that belongs to one group
    epilogue: Epilogue
    route: route.Route
    call: route.Call
    stream: Stream

    def prepare(
        self, n: int, x_stride: int, y_stride: int, batches: tuple[int, int, int] = (1, 0, 0)
    ) -> tuple[blobs.Plan, blobs.Blob]:
        """What a launch of ``n`` tokens needs: found, or made now.

        Raises:
            Error: it would have to be made while the stream captures a CUDA graph.
        """
        fused = "none" if self.route.epilogue != "none" else self.call.activation
        call = self.call._replace(m=self.route.m, n=n, k=self.route.k)
        bias = 0 if self.epilogue.bias is None else self.epilogue.bias.data_ptr()
        plan = plan_of(call, fused, self.route.algorithm, x_stride, y_stride, batches, self.stream, bias)
        derived = self.weight.derived()
        assert derived is not None  # else its route is not sparse
        return plan, derived.blob_of(self.weight.source, self.rows, plan, self.stream, bias)

    def run(self, x: Tensor, y: Tensor, batches: tuple[int, int, int] = (1, 0, 0)) -> None:
        """Queue y = x W^T. x [..., n, k] and y [..., n, m]: strides legal, n a legal multiple.

        A tuned algorithm that the library refuses here (it was timed without this epilogue, say) is replaced
        by the default one, with a warning; ``explain`` has it in its notes.
        """
        try:
            self._run(x, y, batches)
        except (Error, ValueError) as error:
            if self.route.algorithm == Algorithm() or self.stream.is_capturing:
                raise
            route.refuse(self.call, ready(self.stream.device), self.route.algorithm, str(error))
            self._replace(route=self.route._replace(algorithm=Algorithm()))._run(x, y, batches)

    def _run(self, x: Tensor, y: Tensor, batches: tuple[int, int, int]) -> None:
        stream = self.stream
        plan, blob = self.prepare(x.shape[-2], x.stride(-2), y.stride(-2), batches)
        scratch = memory.scratch(plan.workspace_bytes, x.device)
        bias, scale = self.epilogue.bias, self.epilogue.scale
        _C.cusparselt_matmul(
            stream.device, plan.product, blob.key, blob.data.data_ptr(), x.data_ptr(), y.data_ptr(),
            0 if bias is None else bias.data_ptr(), 0 if scale is None else scale.data_ptr(), 1.0,
            scratch.data_ptr(), scratch.numel(), stream.handle,
        )  # fmt: skip


_plans: dict[tuple[object, ...], blobs.Plan] = {}
_MOST_PLANS = 4096


def plan_of(
    call: route.Call, activation: str, algorithm: Algorithm, x_stride: int, y_stride: int,
    batches: tuple[int, int, int], stream: Stream, bias: int = 0,
) -> blobs.Plan:  # fmt: skip
    """The product in its C++ form, what its blob is called, and the bytes it needs: asked for once.

    Args:
        bias: where the product's is now, for the plan to be made with.
    """
    name = (stream.device, call, activation, algorithm, x_stride, y_stride, batches)
    found = _plans.get(name)
    if found is None:
        if stream.is_capturing:
            raise Error(
                f"no plan exists yet for {call.n} tokens of a weight [{call.m}, {call.k}], and none can be "
                "made while a CUDA graph is captured: call sparse24.prepare(model, tokens=...), or run the "
                "layer with as many tokens, on this thread and before the capture"
            )
        form = route.product(
            call, activation, algorithm, x_stride=x_stride, y_stride=y_stride, batches=batches
        )
        bytes = _C.cusparselt_sizes(stream.device, form, bias, stream.handle)
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        found = _plans[name] = blobs.Plan(form, _C.cusparselt_blob_key(stream.device, form), *bytes)
    return found


def forget_plans() -> None:
    """Choose again, with the figures as they are now."""
    _plans.clear()
    route.forget()


def forget() -> None:
    """Ask again what was asked once: the library or the device has changed."""
    forget_plans()
    cusparselt.forget()
    ready.cache_clear()


@functools.cache
def ready(device: int) -> GPU:
    """The GPU of a device that can use cuSPARSELt, with the figures that were measured on it before."""
    found = cusparselt.gpu(device)
    denied.load(device, found)
    tuned.load(device, found)
    return found


def legal_input(x: Tensor, columns: int, multiple: int, rows: int | None = None) -> Tensor:
    """``x`` [n, k] as the library can read it: [rows, columns], aligned, a legal stride; copied if need be.

    Args:
        rows: at least n, by default n; what is beyond n is zero.
    """
    n = x.shape[0]
    rows = n if rows is None else rows
    if x.shape[1] != columns or rows != n:
        wide = x.new_empty(rows, columns)
        wide[:n, : x.shape[1]] = x
        wide[:n, x.shape[1] :] = 0
        wide[n:] = 0
        return wide
    if x.stride(1) == 1 and x.stride(0) % multiple == 0 and x.stride(0) >= columns and is_16_byte(x):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def launched_tokens(call: route.Call, chosen: route.Route) -> list[int]:
    """The token counts of the launches that :func:`multiply` makes, for any n."""
    return route.launched_tokens(call, chosen.m, chosen.k, chosen.multiple)


def room_for(call: route.Call, chosen: route.Route) -> int:
    """Tokens that the output of :func:`multiply` has to have room for."""
    return max(call.n, launched_tokens(call, chosen)[0])


class Part(NamedTuple):
    """One launch of those that :func:`multiply` makes without a copy."""

    first: int  #: token
    plan: blobs.Plan
    blob: blobs.Blob


def parts_of(launch: Launch) -> list[Part]:
    """The launches for all tokens of a call that lie as the library reads them; empty: there is more to do.

    More is to do where tokens are padded, or an activation follows in torch.
    """
    chosen, call, n = launch.route, launch.call, launch.call.n
    counts = launched_tokens(call, chosen)
    whole = (chosen.m, chosen.k, chosen.epilogue) == (call.m, call.k, "none") and counts[0] <= n
    if not whole or launch.epilogue.scale is not None:
        return []
    firsts = [0, *(n - count for count in counts[1:])]
    return [
        Part(first, *launch.prepare(count, chosen.k, chosen.m))
        for first, count in zip(firsts, counts, strict=True)
    ]


def multiply(launch: Launch, x: Tensor, y: Tensor) -> None:
    """y [:n] = x W^T for x [n, k] of any n; y [>= room_for, m] may be overwritten beyond n."""
    n = x.shape[0]
    counts = launched_tokens(launch.call._replace(n=n), launch.route)
    if counts[0] > n:
        launch.run(legal_input(x, launch.route.k, 16 // x.element_size(), counts[0]), y[: counts[0]])
        return
    launch.run(x[: counts[0]], y[: counts[0]])
    if len(counts) > 1:
        launch.run(x[n - counts[1] :], y[n - counts[1] : n])


def vector(vector: Tensor | None, size: int) -> Tensor | None:
    """A bias or scale of legal length and alignment: zeros beyond its own."""
    if vector is None:
        return None
    if vector.shape[0] != size:
        return F.pad(vector, (0, size - vector.shape[0]))
    vector = vector.contiguous()
    return vector if is_16_byte(vector) else vector.clone()
