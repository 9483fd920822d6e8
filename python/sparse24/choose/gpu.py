"""What a user decides about GPUs: why a layer runs as it does, dense copies, the search for algorithms."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from ..nn.conv3d import SparseConv3d
from ..nn.convolution import CompressedConvolution, conv_arguments
from ..nn.kinds import ProductLayer
from ..nn.linear import SparseLinear
from ..nn.on_device import Glance
from ..ops import Error
from ..ops.cuda import cusparselt, device_kernels, route, search, tuned, ways, weights
from ..ops.cuda import products as cuda
from ..ops.cuda.launch import forget_plans
from ..ops.cuda.operators import current_stream
from ..ops.cuda.trials import Trials
from . import cpu, narrow
from .tuning import Tuned, Tuning

Progress = Callable[[str], None]


def _layers(model: nn.Module) -> Iterator[tuple[str, ProductLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, ProductLayer):
            yield name, module


def keep_dense(model: nn.Module, keep: bool = True) -> int:
    """Keep a dense copy of every compressed weight of ``model`` on its GPU, or drop it again.

    A sparse product loses to a dense one where there are few tokens (decoding). Without a copy the weight is
    expanded for such a call, which costs time; with one it costs memory. The copy is made at the first call
    that wants it, is never saved, and is made again after the weight has changed. On a CPU it has no effect.

    Returns:
        How many layers it concerns.
    """
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        layer._keeps_dense = keep
        layer._forget_launches()
        glance = Glance(layer)
        if glance.device.type == "cuda" and not glance.is_away:
            weights.keep_dense(*glance.source(), keep)  # for programs that call the operators with them
        if not keep:
            glance.drop_dense()
    return len(layers)


def explain(layer: ProductLayer, input_shape: Sequence[int], channels_last: bool = True) -> str:
    """How ``layer`` runs an input of ``input_shape`` on the device where it is, and why.

    Raises:
        TypeError: another kind of layer.
        ValueError: an input that the layer would refuse.
    """
    if not isinstance(layer, ProductLayer):
        wanted = "a SparseLinear, SparseConv2d or SparseConv3d"
        raise TypeError(f"explain needs {wanted}, not {type(layer).__name__}")
    on = Glance(layer).device
    if on.type == "cpu":
        return cpu.explain(layer, _call_of(layer, input_shape).n)
    if on.type != "cuda":
        return f"dense: {on.type} has no sparse kernels"
    device = on.index
    problem = cusparselt.why_unavailable(device)
    if problem:
        return f"dense: {problem}"
    return describe_route(layer, input_shape, cusparselt.gpu(device), channels_last)


def describe_route(
    layer: ProductLayer, input_shape: Sequence[int], on: cusparselt.GPU, channels_last: bool
) -> str:
    """:func:`explain` for a GPU that is given: nothing runs."""
    call = _call_of(layer, input_shape)
    reason = narrow.why_no_product(layer)
    if reason:
        few = on.kernels and isinstance(layer, SparseLinear) and call.n <= device_kernels.FEW_TOKENS
        return "on the compressed weight: a kernel reads it as it lies" if few else f"dense: {reason}"
    weight = Glance(layer)
    if isinstance(layer, CompressedConvolution):
        chosen = cuda.conv2d_route(call, weight, layer._geometry(), on)
    else:
        chosen = ways.route_of(call, weight, on)
    if chosen.few:
        return f"on the compressed weight: {chosen.reason}"
    if not chosen.sparse:
        is_kept = weight.keeps_dense and weight.derived() is not None
        kept = "a kept copy" if is_kept else "a weight expanded for the call"
        return f"dense, through {kept}: {chosen.reason}"
    notes = list(chosen.notes)
    if isinstance(layer, CompressedConvolution) and not channels_last:
        last = "channels_last_3d" if isinstance(layer, SparseConv3d) else "channels_last"
        notes.append(f"input and output are copied: give a {last} input")
    if isinstance(layer, SparseConv3d) and not layer._is_flat:
        notes.append(f"the planes under {layer.kernel_size[0]} taps are stacked in a copy")
    version = cusparselt.version_text(on.version)
    return "; ".join([f"sparse: cuSPARSELt {version}, algorithm {chosen.algorithm.id}", *notes])


def _product_sizes(layer: ProductLayer) -> tuple[int, int]:
    """m and k of the product behind a layer (of one group)."""
    if isinstance(layer, SparseLinear):
        return layer.out_features, layer.in_features
    return cuda.conv2d_sizes(layer._plane_channels, layer.out_channels, layer._geometry())


def _window_of(layer: ProductLayer) -> tuple[int, ...]:
    return layer._geometry().copies if isinstance(layer, CompressedConvolution) else ()


def _call_of(layer: ProductLayer, input_shape: Sequence[int]) -> route.Call:
    input = torch.empty(tuple(input_shape), device="meta", dtype=torch.float32)
    if isinstance(layer, SparseLinear):
        like: nn.Module = nn.Linear(layer.in_features, 1, device="meta", dtype=torch.float32)
        refusal = f"input must be [..., {layer.in_features}], not {tuple(input_shape)}"
    else:
        kind, sizes = (nn.Conv3d, "D, H, W") if isinstance(layer, SparseConv3d) else (nn.Conv2d, "H, W")
        one = {**conv_arguments(layer), "groups": 1, "out_channels": 1}
        like = kind(**one, device="meta", dtype=torch.float32)
        refusal = f"input must be [N, {layer.in_channels}, {sizes}], not {tuple(input_shape)}"
    try:
        tokens = like(input).numel()
    except RuntimeError as error:
        raise ValueError(f"{refusal}: {error}") from None
    m, k = _product_sizes(layer)
    call = route.Call(*narrow.product_dtypes(layer), m, tokens, k, window=_window_of(layer))
    if narrow.is_bare(layer):
        return call
    return call._replace(activation=layer.activation, has_bias=layer.bias is not None)


# ---- search -----------------------------------------------------------------------------------------


def tune(
    model: nn.Module,
    tokens: Sequence[int] = (1, 16, 64, 256, 1024, 4096),
    *,
    budget_seconds: float = 60.0,
    launches: int = 20,
    by_library: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> Tuning:
    """Find the fastest algorithm, and whether dense is faster, for every weight of ``model`` where it is.

    On a CPU each weight is timed, dense and sparse, in turns: ``explain`` tells the figures, and without
    example inputs ``to_sparse`` decides by them from then on.

    On a GPU every algorithm id that the library has, its own choice, and splits of K for the fastest compress
    a weight of that size, are compared with the default one, and are timed with a cold L2 cache; then whole
    calls, sparse and dense, in turns, their host cost included. That runs in a process of its own, for an
    algorithm may kill it: such a one is never run again here (``denied.json`` beside the figures). A weight
    has one algorithm for all counts of tokens. The figures choose how layers run from then on, also in other
    processes: they are kept in ``$SPARSE24_CACHE`` (``~/.cache/sparse24``) by GPU, driver and cuSPARSELt
    version. They are written after each product, so an interrupted run is gone on with.

    Args:
        tokens: token counts (batch times sequence; of a convolution batch times pixels); each stands for
            those above the next lower power of two.
        budget_seconds: for all of it; what is left over runs by the default rules.
        launches: of each algorithm; the median counts. For GPUs.
        by_library: try the default and the choice of cuSPARSELt's own search only. For GPUs.
        again: measure also what has been measured before.
        progress: told of every product, default: a line on stderr.

    Raises:
        Error: the model is on a device without sparse products, with the reason.
        ValueError: no compressed layers, or a count that is not positive.
    """
    layers = [layer for _, layer in _layers(model)]
    if not layers:
        raise ValueError("the model has no compressed layer: convert it with to_sparse first")
    if launches < 1 or any(count < 1 for count in tokens) or not tokens:
        raise ValueError(f"tokens and launches must be positive, not {tuple(tokens)} and {launches}")
    device = Glance(layers[0]).device
    if device.type == "cpu":
        return cpu.tune(layers, tokens, budget_seconds, again=again, progress=progress or _say)
    if device.type != "cuda":
        raise Error(f"tune measures on a CPU or a GPU, and the model is on {device}")
    with torch.cuda.device(device):
        stream = current_stream(torch.empty(0, device=device))
        problem = cusparselt.why_unavailable(stream.device)
        if problem:
            raise Error(problem)
        run = TuningRun(stream, launches=launches, by_library=by_library, again=again)
        return run.run(layers, tokens, budget_seconds, progress or _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class TuningRun:
    """One run of :func:`tune` on a stream."""

    def __init__(self, stream: cusparselt.Stream, *, launches: int, by_library: bool, again: bool) -> None:
        self._stream = stream
        self._gpu = cusparselt.gpu(stream.device)
        self._launches = launches
        self._by_library = by_library
        self._again = again

    def run(
        self,
        layers: Sequence[ProductLayer],
        tokens: Sequence[int],
        budget_seconds: float,
        progress: Progress,
    ) -> Tuning:
        """Every distinct product of ``layers``, until the budget is spent."""
        end = time.monotonic() + budget_seconds
        products = {
            (narrow.product_dtypes(layer), *_product_sizes(layer), _window_of(layer)): layer
            for layer in layers
        }
        rows = []
        with Trials(Glance(layers[0]).device, self._gpu) as trials:
            for (dtypes, m, k, window), layer in products.items():
                for count in tokens:
                    call = route.Call(*dtypes, m, count, k, window=window)
                    row = self._row(call, layer, trials, end - time.monotonic())
                    rows.append(row)
                    line = str(Tuning([row])).splitlines()[-1]
                    progress(f"{len(rows)}/{len(products) * len(tokens)} {line}")
        return Tuning(rows)

    def _row(self, call: route.Call, layer: ProductLayer, trials: Trials, seconds_left: float) -> Tuned:
        def left(remark: str) -> Tuned:
            found = route.measured.get(route.measured_key(call, self._gpu))
            return Tuned(call.dtype, call.m, call.k, call.n, found, 0, 0, remark)

        if not self._again and route.measured_key(call, self._gpu) in route.measured:
            return left("measured before")
        if seconds_left <= 0:
            return left("the budget is spent")
        weight = Glance(layer)
        reason = narrow.why_no_product(layer) or ways.why_not_legal(call, weight, self._gpu)
        if reason:
            return left(reason)
        try:
            found, tried = search.measure(
                call, trials, launches=self._launches, by_library=self._by_library, seconds=seconds_left
            )
        except Error as error:
            return left(str(error))
        route.measured[route.measured_key(call, self._gpu)] = found
        forget_plans()
        tuned.save(self._stream.device, self._gpu)
        refused = [trial for trial in tried if trial.refused]
        remark = "; ".join(
            f"algorithm {trial.algorithm.id} {trial.refused}"
            for trial in refused
            if "denied" in trial.refused
        )
        return Tuned(call.dtype, call.m, call.k, call.n, found, len(tried), len(refused), remark)
