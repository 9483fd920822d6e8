"""A layer against its compressed self, on this machine, in turns: what ``when="faster"`` decides by."""

from __future__ import annotations

import copy
import functools
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nn.convert import Verdict, build
from ..nn.swap import CARRIED_HOOKS
from ..ops import machine
from ..ops.precision import precision
from ..timing import Pair, in_units, interleaved_times
from . import kept
from .example import LayerCall, tokens_told

#: A compressed layer that takes up to this much longer is still taken: it is as fast, and half the size.
TIE = 1.03
#: For each distinct call of a layer; the fastest of at least so many rounds.
_SECONDS, _ROUNDS = 0.3, 7
#: No more is read between two calls: virtual machines report the cache of a whole socket, or of several.
_MOST_COLD = 128 << 20
#: Calls that a row of the report names one by one; the rest are summed up.
_NAMED = 3


class Timed(NamedTuple):
    """A call of a layer in the examples, and what it takes."""

    what: str  #: "128 tokens"
    times: int  #: how often the examples call it so
    pair: Pair


class Chooser:
    """Times layers, and decides; figures are kept as they come, so that an interruption loses none.

    Args:
        cold_bytes: weights of the whole network. So much memory is read before every timed call, up to twice
            the last cache, as the rest of the network would between two calls of one layer.
        compiled: compare layers that torch.compile has taken, by Inductor's defaults.
        dtype: what the layers will be cast to, or None.
    """

    def __init__(self, cold_bytes: int, compiled: bool = False, dtype: torch.dtype | None = None) -> None:
        found = machine.machine()
        last_cache = found["l3_bytes"] or found["l2_bytes"] or _MOST_COLD
        self._cold = _round_up_to_power(min(cold_bytes, 2 * last_cache, _MOST_COLD))
        self._compiled = compiled
        self._dtype = dtype
        self._known = kept.load()

    def decide(self, module: nn.Module, calls: Counter[LayerCall]) -> Verdict:
        """Sparse or dense, by the sum over ``calls``: ties within 3 % are sparse."""
        timed = [
            Timed(tokens_told(module, call), times, self.time(module, call)) for call, times in calls.items()
        ]
        return verdict_of(timed)

    def time(self, module: nn.Module, call: LayerCall) -> Pair:
        """Seconds of one call of a dense layer and of its compressed self; measured once a machine."""
        key = self.key(module, call)
        if key not in self._known:
            dense = _bare(module, self._dtype)
            self._known[key] = self.measure(dense, build(dense, None), call)
            kept.keep({key: self._known[key]})  # or not: the next process measures again
        return self._known[key]

    def key(self, module: nn.Module, call: LayerCall) -> str:
        """What a time depends on besides the machine: the layer, the call, compiled or not, the caches."""
        weight = next(module.parameters())
        kind, shape = described(module)
        dtype = self._dtype or weight.dtype
        mode = "compiled" if self._compiled else "eager"
        family = "conv" if kind in ("conv2d", "conv3d") else "matmul"
        lowered = precision(family) if dtype is torch.float32 else 0
        mode += f", precision {lowered}" if lowered else ""  # torch multiplies less exactly then, and faster
        order = " channels_last" if _is_channels_last(module) else ""
        order += " transposed" if type(module).__name__ == "Conv1D" else ""
        parts = f"{mode}; {kind} {shape}{order}; {dtype}; {call.key}; cold {self._cold >> 20} MB"
        return parts.replace("torch.", "")

    @torch.no_grad()
    def measure(self, dense: Callable[..., Any], sparse: Callable[..., Any], call: LayerCall) -> Pair:
        """Seconds of one call of each, in turns: the fastest, for what else runs here only ever adds time.

        A median is no better than a coin here where neighbours take a core in every second call.
        """
        args, kwargs = call.arguments(torch.Generator().manual_seed(24), self._dtype)
        layers = [_compiled(layer) if self._compiled else layer for layer in (dense, sparse)]
        turns = [functools.partial(_called, layer, args, kwargs, call.autocast) for layer in layers]
        passing = torch.ones(self._cold // 4, dtype=torch.int32)

        def before() -> None:
            for each in (passing, *args):  # the layer before has just written the arguments
                if isinstance(each, Tensor) and each.numel():
                    each.amax()

        return Pair(*(min(times) for times in interleaved_times(turns, _SECONDS, _ROUNDS, before)))


def _called(
    layer: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], autocast: torch.dtype | None
) -> object:
    """One call, as the network makes it: what autocast has cast is not kept for the next."""
    if autocast is None:
        return layer(*args, **kwargs)
    with torch.autocast("cpu", autocast):
        return layer(*args, **kwargs)


def verdict_of(timed: list[Timed]) -> Verdict:
    """Sparse or dense, by the sum over all calls, and the figures."""
    dense, sparse = (sum(t.times * getattr(t.pair, side) for t in timed) for side in ("dense", "sparse"))
    told = _told(timed, dense, sparse)
    if sparse > TIE * dense:
        return Verdict(False, f"{told}: stays dense")
    return Verdict(True, f"{told}: a tie" if sparse > dense else told)


def _told(timed: list[Timed], dense: float, sparse: float) -> str:
    named = [
        f"dense {in_units(t.pair.dense)}, sparse {in_units(t.pair.sparse)} at {t.what}"
        + (f", {t.times} times" if t.times > 1 else "")
        for t in timed[:_NAMED]
    ]
    if len(timed) > _NAMED:
        calls = sum(t.times for t in timed)
        all_of_them = f"in all dense {in_units(dense)}, sparse {in_units(sparse)} over {calls} calls"
        named[_NAMED - 1 :] = [all_of_them]
    return "; ".join(named)


def _round_up_to_power(size: int) -> int:
    """The next power of two; 0 below 1 MB, which the caches hold beside everything else."""
    return 0 if size < 1 << 20 else 1 << (size - 1).bit_length()


def described(module: nn.Module) -> tuple[str, str]:
    """Kind and sizes of a dense layer, as keys of figures have them."""
    if isinstance(module, nn.MultiheadAttention):
        masks = f"{module.embed_dim}, {module.num_heads}, {module.kdim}, {module.vdim}, {module.batch_first}"
        return "attention", masks
    if isinstance(module, nn.Conv2d):
        return "conv2d", repr(module).removeprefix(f"{type(module).__name__}")
    if isinstance(module, nn.Conv3d):
        return "conv3d", repr(module).removeprefix(f"{type(module).__name__}")
    weight: Any = module.weight
    rows, columns = weight.shape if isinstance(module, nn.Linear) else reversed(weight.shape)
    return "linear", f"{rows}x{columns}{'' if module.bias is None else ' + bias'}"


def _is_channels_last(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    return (
        isinstance(weight, Tensor)
        and weight.dim() in layouts
        and not weight.is_contiguous()
        and weight.is_contiguous(memory_format=layouts[weight.dim()])
    )


def _bare(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A twin in eval mode that shares the parameters (cast ones are its own), without anybody's hooks."""
    twin = copy.copy(module)
    for hooks in CARRIED_HOOKS:
        twin.__dict__[hooks] = OrderedDict()
    twin.__dict__["training"] = False
    twin._parameters = {
        name: parameter
        if parameter is None or dtype in (None, parameter.dtype)
        else nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    twin._modules = {n: None if m is None else _bare(m, dtype) for n, m in module._modules.items()}
    return twin


def _compiled(layer: Callable[..., Any]) -> Callable[..., Any]:
    """The layer as torch.compile runs it, in code of its own: Dynamo counts recompilations by code."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return layer(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"call_{id(layer):x}")
    return torch.compile(call, dynamic=False)


def decide_all(
    chooser: Chooser,
    layers: Mapping[str, nn.Module],
    seen: Mapping[str, Counter[LayerCall]],
    by_rule: Callable[[nn.Module], Verdict],
) -> dict[str, Verdict]:
    """A verdict for each of ``layers``: measured where the examples called it, else by rule."""
    verdicts = {}
    for name, module in layers.items():
        if seen[name]:
            verdicts[name] = chooser.decide(module, seen[name])
        else:
            rule = by_rule(module)
            verdicts[name] = rule._replace(remark=f"not called by example_inputs; {rule.remark}")
    return verdicts
