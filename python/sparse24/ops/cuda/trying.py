"""The child of :mod:`.trials`: ``python -m`` this module, with DEVICE JOURNAL IDENTITY.

Questions come as lines of JSON on the standard input, answers go as such lines to the standard output. Before
anything of the library's is tried it is written down in the journal, and on the disk when it begins.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _C
from ..conv2d import conv2d_dense, conv_out_size
from ..layout import conv_matrix_to_weight
from ..mask import nm_mask_torch
from ..registry import Error, round_up
from . import device_kernels, route
from .cusparselt import Algorithm, HostStream, Stream, gpu
from .denied import dtypes_of
from .launch import Epilogue
from .patches import Window
from .products import conv2d_call, conv2d_sparse, linear_sparse
from .tuned import numbers_of
from .weights import Canonical

#: Written before a timed launch where the size of the L2 cache is not known; the largest of today is 128 MB.
FLUSH_BYTES = 256 << 20


class Product:
    """Operands of one call, and the library's search on them."""

    def __init__(self, call: route.Call, device: torch.device, stream: Stream) -> None:
        self.call, self.stream, self.device = call, stream, device
        m, k, multiple = route.legal_sizes(call)
        n = round_up(call.n, multiple)
        own = torch.Generator(device=device).manual_seed(24)

        def random(rows: int, cols: int) -> Tensor:
            if call.dtype.itemsize == 1:
                return torch.randint(-9, 10, (rows, cols), device=device, generator=own).float()
            return torch.randn(rows, cols, device=device, generator=own)

        weight = random(m, k)
        kept = 1 if call.dtype is torch.float32 else 2
        weight *= nm_mask_torch(weight, kept, 2 * kept, 1)
        weight[call.m :] = 0
        weight[:, call.k :] = 0
        self.dense = weight.to(call.dtype)
        self.x = random(n, k).to(call.dtype)
        self.values, self.indices = torch.ops.sparse24.compress(self.dense[: call.m, : call.k].contiguous())
        self.form = route.product(
            call._replace(m=m, n=n, k=k, activation="none", has_bias=False), "none", Algorithm()
        )
        sizes = _C.cusparselt_search_sizes(stream.device, self.form, stream.handle)
        self.flush = torch.empty(_flush_bytes(device), dtype=torch.uint8, device=device)
        self._y = torch.empty(n, m, dtype=call.out_dtype, device=device)
        self._scratch = [torch.empty(bytes, dtype=torch.uint8, device=device) for bytes in sizes]
        self.buffers = [t.data_ptr() for t in (self.dense, self.x, self._y)] + [0, 0]
        self.buffers += [t.data_ptr() for t in (*self._scratch, self.flush)] + [self.flush.numel()]
        self.search = _C.Search(stream.device, self.form, self.buffers, stream.handle)
        self._has_default = False

    def algorithms(self) -> list[list[int]]:
        """All of the library's, the default first."""
        found = _C.cusparselt_algorithms(self.stream.device, self.form, self.stream.handle)
        return [numbers_of(algorithm) for algorithm in found]

    def try_out(self, algorithm: Algorithm, launches: int) -> dict[str, Any]:
        """One algorithm, compared with the default one."""
        if not self._has_default and algorithm != Algorithm():
            self.search.try_out(Algorithm(), 1)
        self._has_default = True
        trial = self.search.try_out(algorithm, launches)
        return {"microseconds": trial.microseconds, "error": min(trial.error, 1e30), "refused": trial.refused}

    def choice_of_library(self, launches: int) -> dict[str, Any]:
        """The library's own search."""
        found = _C.cusparselt_library_search(
            self.stream.device, self.form, self.buffers, launches, self.stream.handle
        )
        return {"algorithm": numbers_of(found)}

    def figures(self, algorithm: Algorithm, launches: int) -> dict[str, Any]:
        """Sparse, dense, and dense through an expanded weight: whole calls, in turns."""
        call, weight = self.call, Canonical(self.values, self.indices)
        m, k, multiple = route.legal_sizes(call)
        chosen = route.Route(True, "", m, k, multiple, "none", algorithm, ())
        x, dense = self.x[: call.n, : call.k], self.dense[: call.m, : call.k].contiguous()

        def sparse() -> Tensor:
            return linear_sparse(x, weight, Epilogue(), call.out_dtype, chosen, call, self.stream)

        def expanded() -> Tensor:
            if device_kernels.usable(x) and device_kernels.takes_few(call.n, call.dtype, call.dtype):
                return device_kernels.few_tokens(
                    x, self.values, self.indices, None, None, "none", self.stream.handle
                )
            whole = device_kernels.expand(self.values, self.indices, call.m, k, self.stream.handle)
            return F.linear(x, whole[:, : call.k])

        works: dict[str, Callable[[], Tensor]] = {
            "sparse": sparse,
            "dense": lambda: F.linear(x, dense),
            "expanded": expanded,
        }
        if call.window:
            works = self._convolutions(chosen)
        if call.dtype.itemsize == 1:  # nothing dense in torch takes such operands everywhere
            works = {"sparse": sparse}
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(3):
            for name, work in works.items():
                times[name].append(self.stream.microseconds(work, launches, self.flush))
        return {name: min(times[name]) if name in times else 0.0 for name in ("sparse", "dense", "expanded")}

    def _convolutions(self, chosen: route.Route) -> dict[str, Callable[[], Tensor]]:
        """The rivals of a convolution that copies its patches: images of about 14 x 14 outputs."""
        numbers = self.call.window
        window = Window(numbers[:2], numbers[2:4], numbers[4:6], numbers[6:8], numbers[8])
        channels = self.call.k // (
            numbers[0] * numbers[1]
        )  # of a group, rounded up to 4 as the weight has them
        side = max(1, min(14, math.isqrt(self.call.n)))
        size = [
            max((side - 1) * numbers[2 + i] + numbers[6 + i] * (numbers[i] - 1) + 1 - 2 * numbers[4 + i], 1)
            for i in range(2)
        ]
        images = max(1, self.call.n // (side * side))
        own = torch.Generator(device=self.device).manual_seed(24)
        image = torch.randn(images, numbers[8] * channels, *size, device=self.device, generator=own)
        image = image.to(self.call.dtype).contiguous(memory_format=torch.channels_last)
        values, indices = (each.repeat(numbers[8], 1) for each in (self.values, self.indices))
        operands, stream = Canonical(values, indices), self.stream
        rows, columns = values.shape[0], 2 * values.shape[1]

        def dense_from(matrix: Tensor) -> Tensor:
            weight = conv_matrix_to_weight(matrix, channels, window.kernel_size)
            return conv2d_dense(image, weight, None, *numbers_of_conv)

        numbers_of_conv = (window.stride, window.padding, window.dilation, window.groups)
        kept = device_kernels.expand(values, indices, rows, columns, stream.handle)
        out_size = conv_out_size(image, window.kernel_size, window.stride, window.padding, window.dilation)
        call = conv2d_call(image, rows, window, out_size, self.call.out_dtype, Epilogue())
        return {
            "sparse": lambda: conv2d_sparse(
                image, operands, window, Epilogue(), self.call.out_dtype, chosen, call, stream
            ),
            "dense": lambda: dense_from(kept),
            "expanded": lambda: dense_from(
                device_kernels.expand(values, indices, rows, columns, stream.handle)
            ),
        }


def _flush_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return 2 * int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", FLUSH_BYTES // 2))


class Child:
    """Answers one question after the other."""

    def __init__(self, device: torch.device, journal: TextIO, identity: str) -> None:
        self._journal, self._identity = journal, identity
        self._device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
            self._stream = Stream(device.index or 0, torch.cuda.current_stream(device).cuda_stream)
        else:
            self._stream = HostStream()
        gpu(self._stream.device)
        self._product: Product | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What is asked for; "failed" where it cannot be done, "dead" where nothing can be done any more."""
        product = self._product
        try:
            if question["do"] == "open":
                dtype, out_dtype, *sizes = question["call"]
                window = tuple(question["window"])
                call = route.Call(getattr(torch, dtype), getattr(torch, out_dtype), *sizes)._replace(
                    window=window
                )
                self._product = None  # its memory first
                product = self._product = Product(call, self._device, self._stream)
                return {"algorithms": product.algorithms()}
            assert product is not None
            self._note({"begin": question["in_flight"], "dtypes": dtypes_of(product.call)})
            found = self._do(product, question)
        except (RuntimeError, ValueError) as error:
            found = {"failed": str(error)}
        if "failed" in found or found.get("refused"):
            try:
                _C.cusparselt_synchronize(self._stream.handle)
            except Error as error:
                return {"dead": str(error)}
        self._note({"end": True})
        return found

    def _do(self, product: Product, question: dict[str, Any]) -> dict[str, Any]:
        if question["do"] == "library":
            return product.choice_of_library(question["launches"])
        algorithm = Algorithm(*question["algorithm"])
        work = {"try": product.try_out, "figures": product.figures}[question["do"]]
        return work(algorithm, question["launches"])

    def _note(self, note: dict[str, Any]) -> None:
        self._journal.write(json.dumps({"identity": self._identity, **note}) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())


def main(device: str, journal: Path, identity: str) -> int:
    """Answer until the questions end. What libraries print goes to the standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, journal.open("w", encoding="utf-8") as notes:
        os.dup2(2, 1)
        child: Child | None = None
        for line in sys.stdin:
            try:
                child = child or Child(torch.device(device), notes, identity)
                found = child.answer(json.loads(line))
            except Error as error:  # no library, or no device
                found = {"failed": str(error)}
            answers.write(json.dumps(found) + "\n")
            answers.flush()
            if "dead" in found:
                os._exit(1)  # what is left of the context may hang at its end
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
