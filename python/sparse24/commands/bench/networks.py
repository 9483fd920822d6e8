"""Whole networks, dense and converted: eager and compiled, by dtype and batch.

Beside each ratio stands what Amdahl's law gives from the share of the converted layers in the dense pass and
from the times of those layers alone, so that a shortfall can be told from a limit.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ... import Sparsifier, to_sparse
from ...choose.example import Arguments, LayerCall, record
from ...choose.measured import Chooser
from ...nn.compressed import CompressedModule
from ...ops import machine
from ...timing import Pair, interleaved_times
from . import keeping, memory, rivals
from .definitions import DEFINITIONS, Definition, of_key
from .table import Interrupted, Setting, Table

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
#: A batch above the second is left out where a dense pass takes longer.
LONG_PASS_SECONDS = 5.0
#: A network of this share of its depth, for a quick look.
QUICK_DEPTH = 0.1
COMPILED_BATCH = 8
HEADER = [
    "network", "dtype", "mode", "batch", "torch ms", "best dense ms", "2:4 ms", "x torch", "x best dense",
    "sparse layers", "in products", "in sparse ones", "Amdahl", "of Amdahl", "dense MB", "2:4 MB",
]  # fmt: skip


class Case(NamedTuple):
    """A row."""

    network: Definition
    dtype: str
    mode: str  #: "eager" or "compiled"
    batch: int

    @property
    def key(self) -> str:
        return f"{self.network.key} {self.dtype} {self.mode} {self.batch}"

    @property
    def cells(self) -> list[str]:
        """What the row is about."""
        return [f"{self.network.name}, {self.network.what}", self.dtype, self.mode, str(self.batch)]


def tables(setting: Setting) -> list[Table]:
    """One row a network, dtype, mode and batch, until the time is up.

    Raises:
        ValueError: a network that there is not.
        Interrupted: with the rows so far, which are also kept for ``resume``.
    """
    end = time.monotonic() + 60 * setting.minutes
    store = keeping.Rows("networks", setting)
    rows: list[list[str]] = [HEADER]
    left: list[str] = []
    last: tuple[Case, float] | None = None  # what was measured before, and the seconds of its dense pass
    try:
        for case in cases(setting):
            known = store.get(case.key)
            if known is not None:
                rows.append(known)
                last = (case, float(known[HEADER.index("torch ms")]) / 1e3)
                continue
            reason = _why_not(case, _grown(case, last), end - time.monotonic())
            if reason:
                left.append(f"{case.key}: {reason}")
                setting.progress(f"  {left[-1]}")
                continue
            setting.progress(f"  {case.key} ...")
            cells, pass_seconds = measure(case, setting)
            last = (case, pass_seconds)
            rows.append(store.put(case.key, cells))
            setting.progress("  " + " | ".join(cells))
    except KeyboardInterrupt:
        raise Interrupted([_table(rows, [*left, "interrupted"], setting)]) from None
    return [_table(rows, left, setting)]


def cases(setting: Setting) -> Iterator[Case]:
    """The rows that are asked for, in order."""
    networks = [of_key(key) for key in setting.networks] or DEFINITIONS
    for network, dtype in itertools.product(networks, DTYPES):
        batches = setting.batches or network.batches
        for batch in batches[:1] if setting.quick else batches:
            yield Case(network, dtype, "eager", batch)
            if batch == COMPILED_BATCH and dtype != "int8":
                yield Case(network, dtype, "compiled", batch)


def _grown(case: Case, last: tuple[Case, float] | None) -> float:
    """Seconds that a dense pass would take, by what another batch took; 0: unknown."""
    if last is None or last[0][:2] != case[:2]:
        return 0.0
    return last[1] * case.batch / last[0].batch


def _why_not(case: Case, grown: float, seconds_left: float) -> str:
    """Why a row is left out; ``grown``: seconds that a dense pass would take, 0: unknown."""
    if seconds_left <= 0:
        return "the time was up"
    if case.batch > COMPILED_BATCH and grown > LONG_PASS_SECONDS:
        return f"a pass would take {grown:.0f} s"
    return ""


def _table(rows: list[list[str]], left: list[str], setting: Setting) -> Table:
    caption = (
        "Whole networks with random weights, 2:4 by magnitude, converted where that is faster (int8: all of "
        "it, weights with a scale a channel, tokens and images with one each, dynamic). Torch: the same "
        "network dense in the same dtype (int8: linear layers by quantize_dynamic). "
        "Best dense: the fastest of torch, oneDNN with prepacked weights"
        + (", and OpenVINO" if rivals.has_openvino() else "; OpenVINO is not installed here")
        + ". In products: share of torch's pass, eager, in all linear layers and convolutions, and in those "
        "that are sparse. Amdahl: the ratio to torch that follows from the latter share and from its layers "
        "timed alone. MB: weights, and the growth of the resident set in a pass."
    )
    if setting.quick:
        caption = f"QUICK, {QUICK_DEPTH:.0%} of the depth: figures of no network. " + caption
    if left:
        caption += " Left out: " + "; ".join(left) + "."
    return Table("batches" if setting.batches else "networks", caption, rows)


@dataclasses.dataclass(frozen=True)
class Network:
    """A dense network, its converted self, and what the conversion measured."""

    dense: nn.Module
    sparse: nn.Module
    reference: nn.Module  #: what torch is measured by: the dense network, in int8 its quantized self
    inputs: Arguments
    layers: dict[str, nn.Module]  #: dense layers that are sparse in the other


def measure(case: Case, setting: Setting) -> tuple[list[str], float]:
    """The cells of a row, and the seconds of a dense pass."""
    if case.mode == "compiled":  # programs of rows before count as recompilations, and hold their networks
        torch.compiler.reset()
    with torch.no_grad():
        network = built(case, QUICK_DEPTH if setting.quick else 1.0)
        inside, share, predicted = amdahl(network, case)
        memories = [memory_of(model, network.inputs) for model in (network.dense, network.sparse)]
        turns = _turns(case, network, setting.threads)
        names, calls = list(turns), list(turns.values())
        times = {
            name: statistics.median(each)
            for name, each in zip(names, interleaved_times(calls, setting.seconds, 3), strict=True)
        }
    sparse = times.pop("2:4")
    best = min(times, key=lambda name: times[name])
    ratio = times["torch"] / sparse
    layers = sum(isinstance(m, CompressedModule) for m in network.sparse.modules())
    every = sum(isinstance(m, nn.Linear | nn.Conv2d) for m in network.dense.modules())
    torch_ms, best_ms, sparse_ms = (f"{each * 1e3:.1f}" for each in (times["torch"], times[best], sparse))
    cells = [
        *case.cells, torch_ms, f"{best_ms} ({best})", sparse_ms,
        f"{ratio:.2f}", f"{times[best] / sparse:.2f}", f"{layers} of {every}", f"{inside:.0%}",
        f"{share:.0%}", f"{predicted:.2f}", f"{ratio / predicted:.2f}",
        *(f"{each / 1e6:.0f}" for each in memories),
    ]  # fmt: skip
    return cells, times["torch"]


def built(case: Case, depth: float) -> Network:
    """The networks of a row; the same random numbers for every row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(24)
        dense = case.network.build(depth).to(DTYPES[case.dtype])
        inputs: Arguments = (case.network.inputs(case.batch, dense), {})
    Sparsifier(dense).prune()
    for parameter in dense.parameters():
        parameter.requires_grad_(False)
    sparse = copy.deepcopy(dense)
    if case.dtype == "int8":
        to_sparse(sparse, when="always")
        for module in sparse.modules():
            if isinstance(module, CompressedModule):
                module.to_int8(None if case.network.key == "llama-decode" else "dynamic")
    else:
        model: Any = torch.compile(sparse, dynamic=False) if case.mode == "compiled" else sparse
        to_sparse(model, example_inputs=[inputs[0]])
    converted = {n for n, module in sparse.named_modules() if isinstance(module, CompressedModule)}
    layers = {n: module for n, module in dense.named_modules() if n in converted}
    reference = rivals.int8_dense(dense) if case.dtype == "int8" else dense
    return Network(dense, sparse, reference, inputs, layers)


def amdahl(network: Network, case: Case) -> tuple[float, float, float]:
    """Shares of torch's eager pass in products and in those that are sparse; the ratio that follows."""
    inside = seconds_inside(network)
    whole = inside.pop("")
    products = sum(inside.values()) / whole
    inside = {name: seconds for name, seconds in inside.items() if name in network.layers}
    share = sum(inside.values()) / whole
    timed = _layer_timer(network, case)
    seen = record(network.dense, network.layers, [network.inputs])
    after = whole - sum(inside.values())
    for name in network.layers:
        pairs = [(times, timed(name, call)) for call, times in seen[name].items()]
        dense = sum(times * pair.dense for times, pair in pairs)
        after += inside[name] * sum(times * pair.sparse for times, pair in pairs) / dense
    return products, share, whole / after


def _layer_timer(network: Network, case: Case) -> Callable[[str, LayerCall], Pair]:
    """Seconds of a layer alone, as torch has it and sparse; those of the conversion where it has measured."""
    chooser = Chooser(sum(p.nbytes for p in network.dense.parameters()), case.mode == "compiled")
    if case.dtype != "int8":
        return lambda name, call: chooser.time(network.layers[name], call)
    known: dict[str, Pair] = {}

    def timed(name: str, call: LayerCall) -> Pair:
        key = chooser.key(network.layers[name], call)
        if key not in known:
            both = (network.reference.get_submodule(name), network.sparse.get_submodule(name))
            known[key] = chooser.measure(*both, call)
        return known[key]

    return timed


def seconds_inside(network: Network) -> dict[str, float]:
    """Median seconds in each linear layer and convolution, and under "" in the whole pass."""
    names = [n for n, m in network.dense.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    products = {name: network.reference.get_submodule(name) for name in names}
    starts: dict[str, float] = {}
    spent: dict[str, list[float]] = {name: [] for name in ("", *products)}

    def begin(name: str) -> Callable[..., None]:
        return lambda *given: starts.__setitem__(name, time.perf_counter())

    def end(name: str) -> Callable[..., None]:
        return lambda *given: spent[name].append(time.perf_counter() - starts[name])

    handles = []
    for name, module in (("", network.reference), *products.items()):
        handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end(name))]
    try:
        for _ in range(4):
            network.reference(*network.inputs[0])
    finally:
        for handle in handles:
            handle.remove()
    return {name: statistics.median(each[1:]) for name, each in spent.items()}


def memory_of(model: nn.Module, inputs: Arguments) -> int:
    """Bytes of the network's tensors, and by how much the resident set grows in a pass, at its peak."""
    tensors = [*model.parameters(), *model.buffers()]
    machine.give_memory_back()
    memory.forget_peak()
    before = memory.resident()
    model(*inputs[0])
    return sum(t.nbytes for t in tensors) + max(0, memory.peak() - before)


def _turns(case: Case, network: Network, threads: int) -> dict[str, Callable[[], object]]:
    """What takes turns, by the name that the table has for it."""
    dense, sparse, (inputs, _) = network.dense, network.sparse, network.inputs
    if case.mode == "compiled":
        programs = {"torch": _compiled(dense), "2:4": _compiled(sparse), "frozen": rivals.frozen(dense)}
    elif case.dtype == "int8":
        programs = {"torch": network.reference, "2:4": sparse, "fp32": dense}
    else:
        programs = {"torch": dense, "2:4": sparse, "prepacked": rivals.prepacked(dense, network.inputs)}
    turns: dict[str, Callable[[], object]] = {
        name: functools.partial(program, *inputs) for name, program in programs.items()
    }
    if case.dtype != "int8" and rivals.has_openvino():
        try:
            turns["OpenVINO"] = rivals.openvino_call(dense, inputs, threads, DTYPES[case.dtype])
        except RuntimeError:  # it does not know an operator of the network: no rival
            return turns
    return turns


def _compiled(model: nn.Module) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(model, dynamic=False)
    return compiled
