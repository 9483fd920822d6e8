"""What cuSPARSELt's documents leave open, or what was only seen on one GPU: asked of this one.

Every check says what sparse24 assumes; a failed one names an assumption to give up here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.cuda import blobs, cusparselt, route, search
from ...ops.cuda.cusparselt import Algorithm
from ...ops.cuda.launch import Epilogue, Launch, plan_of
from ...ops.cuda.trials import Trials
from ...ops.cuda.weights import Canonical
from ..doctor import relative_error
from .ground import Ground
from .products import TOLERANCE, name_of, sparse_weight

HALF = torch.float16
#: m and k whose blob sizes others have measured.
SIZES = ((16, 32), (64, 32), (64, 64), (96, 160), (128, 128), (256, 64), (288, 64), (1024, 1024))


def run(ground: Ground) -> None:
    """Ask everything."""
    for question in (
        _tokens_share_a_blob,
        _blobs_of_other_algorithms,
        _plans_can_be_dropped_while_they_run,
        _results_repeat,
        _nothing_is_written_beside_the_output,
        _a_bias_can_be_changed,
        _a_broadcast_input,
        _sizes,
        _gelu,
    ):
        with ground.attempt(question.__name__.strip("_")):
            question(ground)
    for dtype in (HALF, torch.bfloat16, torch.float8_e4m3fn):
        name = name_of("scale per row", dtype)
        with ground.attempt(name):
            _scale_per_row(ground, dtype, name)


class Product:
    """One product whose every choice is in hand."""

    def __init__(
        self, ground: Ground, m: int, n: int, k: int, *, dtype: torch.dtype = HALF, out: torch.dtype = HALF
    ) -> None:
        self.ground = ground
        self.weight = sparse_weight(ground, m, k, dtype=dtype)
        self.values, self.indices = torch.ops.sparse24.compress(self.weight)
        self.x = ground.tensor(n, k, dtype=dtype)
        self.call = route.Call(dtype, out, m, n, k)
        multiple = route.legal_sizes(self.call)[2]
        self.route = route.Route(True, "", m, k, multiple, "none", Algorithm(), ())

    def launch(
        self,
        epilogue: Epilogue | None = None,
        algorithm: Algorithm | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """y of this product, as a launch of its own."""
        x = self.x if x is None else x
        y = torch.empty(x.shape[0], self.call.m, dtype=self.call.out_dtype, device=x.device)
        self.into(y, epilogue or Epilogue(), algorithm or Algorithm(), x)
        return y

    def into(self, y: Tensor, epilogue: Epilogue, algorithm: Algorithm, x: Tensor) -> None:
        """The same into ``y``, which may have rows apart."""
        call = self.call._replace(
            n=x.shape[0],
            activation=epilogue.activation,
            has_bias=epilogue.bias is not None,
            scale_per_row=epilogue.scale is not None,
        )
        chosen = self.route._replace(algorithm=algorithm)
        rows = (0, self.call.m)
        launch = Launch(
            Canonical(self.values, self.indices), rows, epilogue, chosen, call, self.ground.stream
        )
        launch.run(x, y)

    def expected(self, x: Tensor | None = None) -> Tensor:
        """x W^T in float64."""
        return F.linear((self.x if x is None else x).double(), self.weight.double())

    def blob(self, algorithm: Algorithm, n: int | None = None) -> Tensor:
        """A fresh blob, by the plan of an algorithm and a token count."""
        plan = plan_of(
            self.call._replace(n=n or self.call.n), "none", algorithm, self.call.k, self.call.m, (1, 0, 0),
            self.ground.stream,
        )  # fmt: skip
        fresh = blobs.compress(self.values, self.indices, (0, self.call.m), plan, self.ground.stream)
        return fresh.data.cpu()


def _tokens_share_a_blob(ground: Ground) -> None:
    product = Product(ground, 512, 64, 256)
    first = product.blob(Algorithm())
    for n in (8, 16, 256, 4096)[: 2 if ground.emulated else 4]:
        same = torch.equal(product.blob(Algorithm(), n), first)
        x = ground.tensor(n, 256, dtype=HALF, seed=n)
        error = relative_error(product.launch(x=x), product.expected(x))
        ground.check(
            f"a blob made for 64 tokens serves {n}", error <= TOLERANCE[HALF], error=error, equal=same
        )


def _blobs_of_other_algorithms(ground: Ground) -> None:
    """Whether blobs differ (pytorch#155333): either way each algorithm must be right with its own."""
    with Trials(ground.device, ground.gpu) as trials:
        for m in (128, 256, 512):
            call = route.Call(HALF, HALF, m, 64, 128)
            refused, errors = {}, []
            for algorithm in trials.algorithms(call):  # in a process of its own: one try each
                trial = trials.try_out(algorithm, 1)
                if trial.refused:
                    label = f"{algorithm.id}/{algorithm.split_k}/{algorithm.split_k_mode}"
                    refused[label] = trial.refused
                errors.append(trial.error)
            wrong = [label for label, reason in refused.items() if reason == "wrong results"]
            ground.check(
                f"every algorithm is right with its own blob, {m} rows",
                not wrong,
                wrong=wrong,
                refused=refused,
                error=max(errors),
            )


def _plans_can_be_dropped_while_they_run(ground: Ground) -> None:
    product = Product(ground, 256, 256, 256)
    cusparselt.set_plan_capacity(1)
    try:
        outputs = [product.launch(x=product.x[: 64 * (1 + i % 4)]) for i in range(16)]
    finally:
        cusparselt.set_plan_capacity(256)
    worst = max(relative_error(y, product.expected(product.x[: y.shape[0]])) for y in outputs)
    ground.check("a plan may be destroyed while its launch is queued", worst <= TOLERANCE[HALF], error=worst)


def _results_repeat(ground: Ground) -> None:
    product = Product(ground, 256, 128, 512)
    first = product.launch()
    same = all(torch.equal(product.launch(), first) for _ in range(5))
    ground.check("the same call gives the same bits", same)


def _nothing_is_written_beside_the_output(ground: Ground) -> None:
    product = Product(ground, 64, 40, 128)
    canvas = torch.full((42, 96), 24.0, dtype=HALF, device=ground.device)
    product.into(canvas[1:41, 16:80], Epilogue(), Algorithm(), product.x)
    error = relative_error(canvas[1:41, 16:80], product.expected())
    canvas[1:41, 16:80] = 24.0
    intact = bool((canvas == 24.0).all())
    ground.check("nothing is written beside the output", intact and error <= TOLERANCE[HALF], error=error)


def _a_bias_can_be_changed(ground: Ground) -> None:
    product = Product(ground, 64, 64, 128)
    worst = 0.0
    for seed in range(3):
        bias = ground.tensor(64, dtype=HALF, seed=seed)
        output = product.launch(Epilogue(bias))
        worst = max(worst, relative_error(output, product.expected() + bias.double()))
    ground.check(
        "the bias address is that of the call, not of the plan", worst <= TOLERANCE[HALF], error=worst
    )


def _a_broadcast_input(ground: Ground) -> None:
    weight, x = sparse_weight(ground, 64, 128, dtype=HALF), ground.tensor(16, 128, dtype=HALF)
    values, indices = torch.ops.sparse24.compress(weight)
    wide = x.expand(3, 16, 128)
    output = ground.operator("linear")(wide, values, indices, None, "none")
    error = relative_error(output, F.linear(wide.double(), weight.double()))
    ground.check("an input repeated over batches", error <= TOLERANCE[HALF], error=error)


def _sizes(ground: Ground) -> None:
    """Recorded, for tables of others to be compared with."""
    found = {}
    for dtype in (HALF, torch.int8, torch.float32):
        for m, k in SIZES:
            call = route.Call(dtype, dtype, m, 32, k)
            if m % route.legal_sizes(call)[0] or route.legal_sizes(call)[:2] != (m, k):
                continue
            plan = plan_of(call, "none", Algorithm(), k, m, (1, 0, 0), ground.stream)
            sizes = (plan.blob_bytes, plan.buffer_bytes, plan.workspace_bytes)
            found[name_of(dtype, m, "x", k)] = sizes
    ground.check("sizes of blobs, buffers and workspaces", all(s[0] > 0 for s in found.values()), sizes=found)
    counts = {}
    for dtype in (HALF, torch.bfloat16, torch.float32, torch.int8):
        call = route.Call(dtype, dtype, 256, 256, 256)
        counts[name_of(dtype)] = len(search.algorithms(call, ground.stream))
    ground.check("algorithms of a product", all(counts.values()), counts=counts)


def _gelu(ground: Ground) -> None:
    for dtype, out in ((torch.int8, torch.int8), (torch.float8_e4m3fn, HALF)):
        call = route.Call(dtype, out, 64, 64, 128, "gelu_tanh")
        reason = route.why_illegal(call, ground.gpu)
        fused = route.fused_activation(call, ground.gpu) == "gelu_tanh"
        if reason or not fused:
            ground.check(name_of("gelu_tanh fused", dtype, out), True, skipped=reason or "not fused here")
            continue
        product = Product(ground, 64, 64, 128, dtype=dtype, out=out)
        output = product.launch(Epilogue(activation="gelu_tanh"))
        expected = F.gelu(product.expected(), approximate="tanh")
        if out is torch.int8:
            expected = expected.round().clamp(-128, 127)
            error = float((output.double() - expected).abs().max())
            ground.check(name_of("gelu_tanh fused", dtype, out), error <= 1, error=error)
        else:
            error = relative_error(output, expected)
            ground.check(name_of("gelu_tanh fused", dtype, out), error <= TOLERANCE[out], error=error)


def _scale_per_row(ground: Ground, dtype: torch.dtype, name: str) -> None:
    """Documented for int8 only; sparse24 does not use it elsewhere until this has been seen to hold."""
    out = HALF if dtype.itemsize == 1 else dtype
    reason = route.why_illegal(route.Call(dtype, out, 64, 64, 128), ground.gpu)
    if reason:
        ground.check(name, True, skipped=reason)
        return
    product = Product(ground, 64, 64, 128, dtype=dtype, out=out)
    scale = ground.tensor(64, dtype=torch.float32, seed=7)
    error = relative_error(product.launch(Epilogue(None, scale)), product.expected() * scale.double())
    ground.check(name, error <= TOLERANCE[out], error=error)
