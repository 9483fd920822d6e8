"""The blocks of a network, found from its module tree, and the calls that they get from calibration data.

A block is a child of a ``ModuleList`` or ``Sequential``, the outermost that hold layers to prune (a
transformer layer, a residual block), or a layer outside of all of them. Names play no part.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..pruning.running import run_batch


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
        return any(sum(map(holds, each.children())) > isinstance(each, nn.Sequential) for each in lists)

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


def checked_batches(batches: Iterable[Any]) -> list[Any]:
    """All batches, of the kinds that :func:`run_batch` knows.

    Raises:
        TypeError: something else.
        ValueError: there are none.
    """
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        kind = type(batches).__name__
        raise TypeError(f"batches must be an iterable of batches, not a {kind}: [batch] is a list of one")
    kept = list(batches)
    if not kept:
        raise ValueError("calibration needs at least one batch of inputs, and got none")
    for batch in kept:
        if not isinstance(batch, Tensor | Mapping | tuple | list):
            raise TypeError(
                "a batch is a tensor, a tuple of positional arguments or a mapping of named ones, not "
                f"{type(batch).__name__}"
            )
    return kept


def detached(tree: Any) -> Any:
    """A tree of arguments without their history."""
    return tree_map_only(Tensor, Tensor.detach, tree)


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
    """What runs of the network show of its blocks."""

    times: dict[str, int]  #: how often each was called for the first batch
    follows: dict[
        str, str
    ]  #: block to the one before it, whose output it takes with the same other arguments
    order: list[str]  #: by first call


def reached_blocks(
    model: nn.Module, blocks: Mapping[str, nn.Module], batches: Sequence[Any], layers: Iterable[nn.Module]
) -> tuple[dict[str, nn.Module], Trace]:
    """The blocks that the model calls, and how: one that it never calls gives way to its children.

    Containers whose parts are called one by one, and modules that are entered by other methods than
    ``forward``, are no blocks. What no batch reaches stays, as blocks that are called 0 times.

    Raises:
        ValueError: the model cannot be called with the first batch.
    """
    wanted = {id(layer) for layer in layers}
    parts = dict(blocks)
    while True:
        seen = trace(model, parts, batches)
        uncalled = parts.keys() - set(seen.order)
        opened = {name: _children(name, parts[name], wanted) for name in uncalled}
        if not any(opened.values()):
            return parts, seen
        parts = {
            key: module
            for name, block in parts.items()
            for key, module in (opened.get(name) or {name: block}).items()
        }


def _children(name: str, block: nn.Module, wanted: Set[int]) -> dict[str, nn.Module]:
    """The children of a block that hold layers; none where it is a layer."""
    if id(block) in wanted:
        return {}
    return {
        f"{name}.{own}" if name else own: child
        for own, child in block.named_children()
        if any(id(part) in wanted for part in child.modules())
    }


@torch.no_grad()
def trace(model: nn.Module, blocks: Mapping[str, nn.Module], batches: Sequence[Any]) -> Trace:
    """Run the first batch, and see how the blocks follow each other; then others, until all were called.

    Raises:
        ValueError: the model cannot be called with the first batch.
    """
    times = dict.fromkeys(blocks, 0)
    order: list[str] = []
    given: dict[str, Call] = {}
    gave: dict[str, Any] = {}

    def before(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            times[name] += 1
            if name not in given:
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
        run_first(model, batches[0])
        first, last_gave = dict(times), dict(gave)
        for batch in batches[1:]:
            if len(order) == len(blocks):
                break
            run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    follows = {
        name: last
        for last, name in itertools.pairwise(order)
        if first[name] == first[last] == 1 and _is_chained(last_gave[last], given[last], given[name])
    }
    return Trace(first, follows, order)


def run_first(model: nn.Module, batch: Any) -> None:
    """Run the first batch.

    Raises:
        ValueError: the model cannot be called with it; what was tried, and the model's own error, are told.
    """
    try:
        run_batch(model, batch)
    except (TypeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the model cannot be called with the first batch, {_described(batch)}: {type(error).__name__}: "
            f"{error}. Batches hold what the model takes, without labels"
        ) from error


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"named arguments {', '.join(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"{len(batch)} positional arguments"
    return f"a tensor {tuple(batch.shape)} of {batch.dtype}"


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
