"""The blocks of a network, found from its module tree, and the calls that they get from calibration data.

A block is a child of a ``ModuleList`` or ``Sequential``, the outermost that hold layers to prune (a
transformer layer, a residual block), or a layer outside of all of them. Names play no part.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


class Call(NamedTuple):
    """What a block was given in one call, detached."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _StopError(BaseException):  # so that no model's own handler takes it
    """The block that was waited for has been called."""


def find_blocks(model: nn.Module, layers: Iterable[nn.Module]) -> list[str]:
    """Names of the blocks that hold ``layers``, in module order."""
    wanted = {id(layer) for layer in layers}

    def holds(module: nn.Module) -> bool:
        return any(id(part) in wanted for part in module.modules())

    def has_list(module: nn.Module) -> bool:
        lists = (m for m in module.modules() if isinstance(m, nn.ModuleList | nn.Sequential))
        return any(sum(holds(child) for child in each.children()) > 1 for each in lists)

    def collect(name: str, module: nn.Module, *, inside: bool) -> Iterator[str]:
        if id(module) in wanted:
            yield name
            return
        is_list = isinstance(module, nn.ModuleList | nn.Sequential)
        if not is_list and (inside or not has_list(module)):
            yield name
            return
        for child_name, child in module.named_children():
            if holds(child):
                full = f"{name}.{child_name}" if name else child_name
                yield from collect(full, child, inside=is_list)

    return list(dict.fromkeys(collect("", model, inside=False)))


def detached(tree: Any) -> Any:
    """A tree of arguments without their history."""
    return tree_map_only(Tensor, Tensor.detach, tree)


def run_batch(model: nn.Module, batch: Any) -> Any:
    """The model on one batch: a tensor, a mapping of keywords, or a sequence of arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@torch.no_grad()
def calls_of(model: nn.Module, block: nn.Module, batches: Sequence[Any], *, once: bool) -> list[Call]:
    """The calls that a block gets, the network before it being as it is now.

    Args:
        once: it is called once a batch: what follows it is not run.
    """
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(detached(args), detached(kwargs)))
        if once:
            raise _StopError

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for batch in batches:
            with contextlib.suppress(_StopError):
                run_batch(model, batch)
    finally:
        handle.remove()
    return calls


class Trace(NamedTuple):
    """What one run of the network shows of its blocks."""

    times: dict[str, int]  #: how often each was called
    follows: dict[
        str, str
    ]  #: block to the one before it, whose output it takes with the same other arguments
    order: list[str]  #: by first call


@torch.no_grad()
def trace(model: nn.Module, blocks: Mapping[str, nn.Module], batch: Any) -> Trace:
    """Run one batch, and see how the blocks follow each other."""
    times = dict.fromkeys(blocks, 0)
    order: list[str] = []
    given: dict[str, Call] = {}
    gave: dict[str, Any] = {}

    def before(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            times[name] += 1
            if times[name] == 1:
                order.append(name)
                given[name] = Call(args, kwargs)

        return note

    def after(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            gave[name] = output

        return note

    handles = [block.register_forward_pre_hook(before(n), with_kwargs=True) for n, block in blocks.items()]
    handles += [block.register_forward_hook(after(n)) for n, block in blocks.items()]
    try:
        run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    follows = {
        name: last
        for last, name in itertools.pairwise(order)
        if times[name] == times[last] == 1 and _is_chained(gave[last], given[last], given[name])
    }
    return Trace(times, follows, order)


def main_output(output: Any) -> Any:
    """The tensor that a block hands on: its output, or the first of several."""
    return output[0] if isinstance(output, tuple | list) and output else output


def _is_chained(output: Any, last: Call, call: Call) -> bool:
    """Whether a call is the output of the last block with the arguments that this one had."""
    if not call.args or call.args[0] is not main_output(output) or not isinstance(call.args[0], Tensor):
        return False
    if len(call.args) != len(last.args) or call.kwargs.keys() != last.kwargs.keys():
        return False
    rest = [*zip(call.args[1:], last.args[1:], strict=True)]
    rest += [(call.kwargs[key], last.kwargs[key]) for key in call.kwargs]
    return all(_same(a, b) for a, b in rest)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, tuple | list) and type(a) is type(b) and len(a) == len(b):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    plain = bool | int | float | str
    return isinstance(a, plain) and isinstance(b, plain) and a == b


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, without caches of keys and values and fused paths that call no layer."""
    training = {module: module.training for module in model.modules()}
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    cached = [c for c in configs.values() if getattr(c, "use_cache", False) is True]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        for config in cached:
            config.use_cache = False
        yield
    finally:
        for module, was in training.items():
            module.training = was
        torch.backends.mha.set_fastpath_enabled(fused)
        for config in cached:
            config.use_cache = True
