"""Example inputs: which layers of a network they call, and with what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

#: Positional and named arguments of one call of a model.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def calls_of(example_inputs: Any) -> list[Arguments]:
    """The calls that ``example_inputs`` stand for.

    Args:
        example_inputs: a tensor, a tuple of positional arguments, a mapping of named ones; or a list of
            such calls.

    Raises:
        TypeError: something else.
        ValueError: an empty list.
    """
    given = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    if not given:
        raise ValueError("example_inputs is an empty list: give at least one call, or None to go by rule")
    return [_call_of(each) for each in given]


def _call_of(given: Any) -> Arguments:
    if isinstance(given, Tensor):
        return (given,), {}
    if isinstance(given, tuple):
        return given, {}
    if isinstance(given, Mapping):
        return (), dict(given)
    raise TypeError(
        "a call of example_inputs is a tensor, a tuple of positional arguments or a mapping of named ones "
        f"(several calls: a list of them), not {type(given).__name__}"
    )


class Like(NamedTuple):
    """A floating tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made(self, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers in this shape and memory order, in ``dtype`` if given; NaN-free."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        memory = torch.empty(max(0, last + 1), dtype=dtype or self.dtype).normal_(generator=generator)
        return memory.as_strided(self.shape, self.stride)  # expanded tensors overlap

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}/{'x'.join(map(str, self.stride))} {self.dtype}"


def _is_plain(tensor: Tensor) -> bool:
    """Whether shape and strides tell where its numbers are."""
    return tensor.layout == torch.strided and not tensor.is_nested


class Same(NamedTuple):
    """The tensor that an earlier argument is, too: attention to itself runs one product for three."""

    first: int

    def __str__(self) -> str:
        return f"same as {self.first}"


class LayerCall:
    """How a layer was called: its arguments, floating tensors without numbers. Equal: it costs the same."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, self._tree = pytree.tree_flatten((args, kwargs))
        first: dict[int, int] = {}
        self._leaves: list[Any] = []
        for index, leaf in enumerate(leaves):
            is_floating = isinstance(leaf, Tensor) and leaf.is_floating_point() and _is_plain(leaf)
            if is_floating and first.setdefault(id(leaf), index) != index:
                self._leaves.append(Same(first[id(leaf)]))
            elif is_floating:
                self._leaves.append(Like(tuple(leaf.shape), tuple(leaf.stride()), leaf.dtype))
            else:
                self._leaves.append(leaf)
        #: What autocast made of it, on a CPU, or None.
        self.autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        told = [
            f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) and _is_plain(x) else str(x)
            for x in self._leaves
        ]
        names = f"({', '.join(kwargs)})" if kwargs else ""
        if self.autocast is not None:
            names += f" under autocast to {self.autocast}"
        #: What two equal calls have in common, for a file of figures.
        self.key = " ".join([*told, names]).strip()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first floating tensor: the input, or the query."""
        return next((leaf.shape for leaf in self._leaves if isinstance(leaf, Like)), ())

    def arguments(self, generator: torch.Generator, dtype: torch.dtype | None = None) -> Arguments:
        """Arguments like those of the call; floating ones hold normal numbers, in ``dtype`` if given."""
        leaves: list[Any] = []
        for each in self._leaves:
            if isinstance(each, Same):
                leaves.append(leaves[each.first])
            else:
                leaves.append(each.made(generator, dtype) if isinstance(each, Like) else each)
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return args, kwargs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerCall) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def tokens_told(module: nn.Module, call: LayerCall) -> str:
    """The size of a call as a reader wants it: "128 tokens", of a convolution "8x64x56x56"."""
    shape = call.shape
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return "x".join(map(str, shape))
    tokens = math.prod(shape[:-1])
    return f"{tokens} token{'' if tokens == 1 else 's'}"


def record(
    model: nn.Module, layers: Mapping[str, nn.Module], calls: list[Arguments]
) -> dict[str, Counter[LayerCall]]:
    """Run ``model`` once for each of ``calls``: how often each of ``layers`` was called, and with what.

    The model runs in eval mode, without gradients, uncompiled; flags and the state of random numbers are
    as they were afterwards, also where it raises.
    """
    seen: dict[str, Counter[LayerCall]] = {name: Counter() for name in layers}
    handles = [
        module.register_forward_pre_hook(_listener(seen[name]), with_kwargs=True)
        for name, module in layers.items()
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _in_eval_mode(model), _unfused():
            for args, kwargs in calls:
                _uncompiled(model)(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _uncompiled(model: nn.Module) -> Callable[..., Any]:
    """The call of a model and its hooks, without what ``model.compile()`` has put around it."""
    call: Callable[..., Any] = model._call_impl
    return call


def _listener(seen: Counter[LayerCall]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[LayerCall(args, kwargs)] += 1

    return listen


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _unfused() -> Iterator[None]:
    """Without torch's fused path for transformer layers, which calls no layer inside."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
