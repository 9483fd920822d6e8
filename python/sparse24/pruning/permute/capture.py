"""The graph of a network's operators: by ``torch.export``, or by ``make_fx`` of torch.fx where that refuses.

Both give operators of ATen that write nothing in place, and refuse what depends on numbers
(``if x.sum() > 0``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..running import as_it_was


@dataclasses.dataclass(frozen=True)
class Captured:
    """A graph, and which of its placeholders stand for the network's own tensors."""

    graph: fx.Graph
    held: dict[str, str]  #: name of a placeholder to that of a parameter or buffer
    written: dict[str, str] = dataclasses.field(default_factory=dict)  #: of an output to that of a buffer


class RefusedError(Exception):
    """Why a network has no graph that holds for other inputs, too."""


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a batch: a tensor, a sequence of them, or a mapping of keywords."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def capture(model: nn.Module, example: Any) -> Captured:
    """The graph of ``model`` on an example, in the mode that it is in.

    Raises:
        RefusedError: neither way gives one.
    """
    args, kwargs = arguments_of(example)
    with as_it_was(model), _quiet(), torch.no_grad():
        try:
            return _exported(model, args, kwargs)
        except Exception as first:  # noqa: BLE001  torch.export raises its own, Dynamo's and the network's errors
            refused = first
    with as_it_was(model), _quiet(), torch.no_grad():
        try:
            return _traced(model, args, kwargs)
        except Exception as second:
            raise RefusedError(f"torch.export: {_line(refused)}; torch.fx: {_line(second)}") from second


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    exported = torch.export.export(model, args, kwargs, strict=False).run_decompositions({})
    signature = exported.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return Captured(exported.graph, held, dict(signature.buffers_to_mutate))


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415  slow, and seldom needed

    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    leaves, spec = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def run(tensors: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        filled = list(leaves)
        for place, tensor in zip(places, inputs, strict=True):
            filled[place] = tensor
        args, kwargs = tree_unflatten(filled, spec)
        output = torch.func.functional_call(model, dict(zip(own, tensors, strict=True)), args, kwargs)
        found = tree_flatten(output)[0]
        if odd := next(
            (x for x in found if not isinstance(x, Tensor | bool | int | float | str | None)), None
        ):
            raise TypeError(f"an output of type {type(odd).__name__}, into which it does not look")
        return [leaf for leaf in found if isinstance(leaf, Tensor)]

    pure = torch.func.functionalize(run, remove="mutations")
    written = {id(buffer) for buffer in model.buffers()}  # copies of what a pass writes, buffers and inputs
    tensors = [t.detach().clone() if id(t) in written else t.detach() for t in own.values()]
    module = make_fx(pure)(tensors, [leaves[place].clone() for place in places])
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    return Captured(module.graph, dict(zip(placeholders, own, strict=False)))


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """The model in training mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of a capture, its log lines, and the graph that it prints where it fails."""
    level = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        unread = io.StringIO()
        with (
            contextlib.redirect_stdout(unread),
            contextlib.redirect_stderr(unread),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _line(error: Exception) -> str:
    """The first line of an error, with its kind."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
