"""A pass over a network's graph: every tensor's channels, and which parameters they order."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..layers import not_plain
from ..sharding import is_sharded
from .capture import Captured
from .channels import Channels, Ints
from .flow import Flow
from .rules import RULES, Call, unknown
from .views import Group, Value

#: A batch norm's statistics are permuted with its channels, and all of a frozen one; others are constants.
_STATISTICS = ("running_mean", "running_var")
_CONVOLUTIONS = ("aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::convolution")


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """A dim of a parameter or buffer, for all rows or (a grouped convolution's inputs) for some of them."""

    tensor: Tensor
    dim: int
    elements: Ints  #: one for each place
    rows: slice = dataclasses.field(default_factory=lambda: slice(None))  #: of dim 0


class _Opaque(Value):
    """A tensor whose shape is known only when it is computed."""


class Walk:
    """The channels of a network, from one or more graphs of it.

    Args:
        model: whose parameters and buffers the placeholders name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.channels = Channels()
        self.axes: dict[int, list[Axis]] = {}  #: by the identity of a parameter or buffer
        self.reached: set[int] = set()  #: identities of tensors that an operator takes
        self._flow = Flow(self.channels)
        self._seen: dict[int, Group] = {}
        self._named = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        self._parameters = {id(p) for p in model.parameters()}
        self._norms = _frozen_norms(model)
        self._shared = _sharing(self._named)

    def run(self, captured: Captured) -> None:
        """Follow all operators of a graph."""
        values: dict[fx.Node, Any] = {}
        blocked: dict[fx.Node, Ints] = {}
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                values[node] = self._placeholder(node, captured.held, blocked)
            elif node.op == "output":
                self._output(node, values, captured.written)
            elif node.op == "call_function":
                values[node] = self._called(node, values, blocked)
            else:  # get_attr: a constant, or a module that a higher-order operator calls
                values[node] = self._constant(node)
            self._note(values.get(node))

    # ---- nodes ---------------------------------------------------------------------------------------

    def _placeholder(
        self, node: fx.Node, held: Mapping[str, str], blocked: dict[fx.Node, Ints]
    ) -> Value | None:
        example = node.meta.get("val")
        tensor = self._named.get(held.get(node.name, ""))
        if tensor is None or not node.users:
            known = f"a constant, {held[node.name]}" if node.name in held else f"{node.name}, an input"
            return Value(_shape_of(example), order=known) if isinstance(example, Tensor) else None
        self.reached.add(id(tensor))
        shape = tuple(tensor.shape)
        groups = _groups_of_convolutions(node)
        if id(tensor) not in self.axes:
            self.axes[id(tensor)] = self._axes_of(tensor, node, groups)
        axes = self.axes[id(tensor)]
        parts = [axis for axis in axes if axis.rows != slice(None)]
        if parts:
            if len(parts) == groups:
                blocked[node] = _stacked(parts)
            else:
                for axis in axes:
                    self.channels.fix(axis.elements, "a weight that convolutions use with different groups")
        order = held[node.name] if axes else f"a constant, {held[node.name]}"
        return Value(
            shape, tuple(Group((a.dim,), a.elements) for a in axes if a.rows == slice(None)), order=order
        )

    def _axes_of(self, tensor: Tensor, node: fx.Node, groups: int) -> list[Axis]:
        if id(tensor) not in self._parameters and id(tensor) not in self._norms and not _is_statistic(node):
            return []
        shape = tuple(tensor.shape)
        axes = [Axis(tensor, d, self.channels.fresh(n)) for d, n in enumerate(shape) if n > 1]
        if groups > 1 and len(shape) > 1 and shape[1] > 1 and shape[0] % groups == 0:
            rows = shape[0] // groups
            axes = [axis for axis in axes if axis.dim != 1] + [
                Axis(tensor, 1, self.channels.fresh(shape[1]), slice(g * rows, (g + 1) * rows))
                for g in range(groups)
            ]
        reason = not_plain(tensor) or self._shared.get(id(tensor), "")
        if is_sharded(tensor):
            reason = "its shards are on several devices"
        elif any(n > 1 and step == 0 for n, step in zip(shape, tensor.stride(), strict=True)):
            reason = "several of its numbers are one in memory"
        for axis in axes:
            self.channels.present(axis.elements)
            if reason:
                self.channels.fix(axis.elements, reason)
        return axes

    def _called(self, node: fx.Node, values: Mapping[fx.Node, Any], blocked: Mapping[fx.Node, Ints]) -> Any:
        if node.target is operator.getitem:
            whole = values.get(node.args[0])  # type: ignore[arg-type]
            return whole[node.args[1]] if isinstance(whole, list) else whole  # type: ignore[index]
        outputs: Any = node.meta.get("val")
        several = isinstance(outputs, list | tuple)
        shapes = [_shape_of(each) for each in outputs] if several else [_shape_of(outputs)]
        name, arguments = _bound(node)
        arguments = fx.map_arg(arguments, values.get)
        weight = next((used for used in node.all_input_nodes if used in blocked), None)
        call = Call(
            name, dict(arguments), shapes, None if weight is None else blocked[weight], _has_mask(node)
        )
        self._flow.op = name.removeprefix("aten::")
        vague = any(isinstance(value, _Opaque) for value in call.tensors)
        if None in shapes or vague:
            for value in call.tensors:
                self._flow.fix(value, f"{name} has shapes that are known only when it is computed")
            found: list[Value] = [_Opaque(()) for _ in shapes]
        else:
            rule: Callable[[Flow, Call], Any] = RULES.get(name, unknown)
            try:
                found = list(rule(self._flow, call))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                found = unknown(self._flow, call)  # arguments that the rule does not know, of another torch
            order = _order_of(call, found)
            found = [replace(value, order=value.order or order) for value in found]
        return found if several else found[0]

    def _output(self, node: fx.Node, values: Mapping[fx.Node, Any], written: Mapping[str, str]) -> None:
        for used in node.all_input_nodes:
            whole = values.get(used)
            for value in whole if isinstance(whole, list) else [whole]:
                if not isinstance(value, Value):
                    continue
                buffer = self._named.get(written.get(used.name, ""))
                axes = self.axes.get(id(buffer), [])
                group = value.group_at(0) if value.shape else None
                if len(axes) == 1 and group is not None and group.elements.shape == axes[0].elements.shape:
                    self.channels.unify(
                        group.elements, axes[0].elements
                    )  # statistics that a batch norm updates
                else:
                    self._flow.fix(value, "an output of the network, whose order its reader knows")

    def _constant(self, node: fx.Node) -> Value | None:
        example = node.meta.get("val")
        if isinstance(example, Tensor):
            return Value(_shape_of(example))
        owner: Any = node.graph.owning_module
        found = getattr(owner, str(node.target), None) if owner is not None else None
        return Value(tuple(found.shape)) if isinstance(found, Tensor) else None

    def _note(self, value: Any) -> None:
        if isinstance(value, list):
            for each in value:
                self._note(each)
        elif isinstance(value, Value):
            for group in value.groups:
                if self._seen.get(id(group.elements)) is None:
                    self._seen[id(group.elements)] = group  # kept, so that the identity is not used again
                    self.channels.present(group.elements)


def _order_of(call: Call, outputs: list[Value]) -> str:
    """Where the order of an operator's outputs comes from: what has no rule sooner than an input."""
    known = [value.order for value in call.tensors if value.order]
    told = [[order for order in known if order.startswith(kind)] for kind in ("what", "a constant")]
    if any(value.groups for value in call.tensors) and not any(value.groups for value in outputs):
        told.append([f"what {call.name} gives"])
    return next((order for orders in (*told, known) for order in orders), "")


def _bound(node: fx.Node) -> tuple[str, dict[str, Any]]:
    """The name of an operator, and its arguments by name, defaults filled in."""
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(target), {**{str(i): a for i, a in enumerate(node.args)}, **node.kwargs}
    arguments = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(node.args):
            arguments[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            arguments[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            arguments[argument.name] = argument.default_value
    return schema.name, arguments


def _shape_of(example: Any) -> Any:
    """A shape of integers; ``None``: not known before it is computed; () for what is no tensor."""
    if not isinstance(example, Tensor):
        return ()
    return tuple(example.shape) if all(isinstance(size, int) for size in example.shape) else None


def _has_mask(node: fx.Node) -> bool:
    examples = (used.meta.get("val") for used in node.all_input_nodes)
    return any(isinstance(example, Tensor) and example.dtype == torch.bool for example in examples)


def _groups_of_convolutions(node: fx.Node) -> int:
    """The groups of the convolutions whose weight a placeholder is, and nothing else; 1: not so."""
    found = set()
    for user in node.users:
        name, arguments = _bound(user) if user.op == "call_function" else ("", {})
        plain = name in _CONVOLUTIONS and arguments.get("weight") is node and not arguments.get("transposed")
        found.add(arguments.get("groups", 1) if plain and arguments.get("input") is not node else 1)
    return int(found.pop()) if len(found) == 1 else 1


def _is_statistic(node: fx.Node) -> bool:
    return all(
        user.op == "call_function" and any(_bound(user)[1].get(name) is node for name in _STATISTICS)
        for user in node.users
    )


def _frozen_norms(model: nn.Module) -> set[int]:
    """Identities of the buffers of frozen batch norms: all four under their usual names, and saved."""
    usual = {"weight", "bias", *_STATISTICS}
    return {
        id(module._buffers[name])
        for module in model.modules()
        if usual <= module._buffers.keys() - module._non_persistent_buffers_set
        for name in usual
    }


def _stacked(parts: list[Axis]) -> Ints:
    return np.stack([axis.elements for axis in parts])


def _sharing(named: Mapping[str, Tensor]) -> dict[int, str]:
    """By identity: tensors that overlap another one in memory, and which."""
    spans: dict[int, tuple[int, int, str]] = {}
    for name, tensor in named.items():
        if type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and tensor.numel():
            last = sum(
                (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            )
            if begin := tensor.data_ptr():
                spans.setdefault(id(tensor), (begin, begin + (last + 1) * tensor.element_size(), name))
    found: dict[int, str] = {}
    widest: tuple[int, int, str, int] | None = None  # of those before: which reaches farthest
    for own, (begin, end, name) in sorted(spans.items(), key=lambda item: item[1]):
        if widest is not None and begin < widest[1]:
            found[own] = f"it lies in the memory of {widest[2]}"
            found[widest[3]] = f"it lies in the memory of {name}"
        if widest is None or end > widest[1]:
            widest = (begin, end, name, own)
    return found
