"""What a rule is given, and the table that holds one for every operator that is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..channels import Ints
from ..flow import Flow
from ..views import Value

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """One node of the graph."""

    name: str  #: of the operator, without its overload: "aten::conv2d"
    arguments: dict[str, Any]  #: by the names of its schema, with a :class:`Value` for each tensor
    shapes: list[Shape]  #: of its outputs
    blocked: Ints | None = None  #: elements [groups, in / groups] of a grouped convolution's weight
    by_mask: bool = False  #: one of its tensors is bool

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, *names: str) -> Any:
        """The first of these arguments that the schema has; ``None``: it has none."""
        return next((self.arguments[name] for name in names if name in self.arguments), None)

    @property
    def shape(self) -> Shape:
        """Of its only, or first, output."""
        return self.shapes[0]

    @property
    def tensors(self) -> list[Value]:
        """All its tensors, in order."""
        found: list[Value] = []
        for argument in self.arguments.values():
            if isinstance(argument, Value):
                found.append(argument)
            elif isinstance(argument, list | tuple):
                found += [part for part in argument if isinstance(part, Value)]
        return found


#: The outputs of an operator, one for each of its shapes.
Rule = Callable[[Flow, Call], Sequence[Value]]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operators, of aten where their names say nothing else."""

    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name if "::" in name else f"aten::{name}"] = function
        return function

    return enter


def unknown(flow: Flow, call: Call) -> list[Value]:
    """An operator without a rule: what it is given stays in order."""
    for value in call.tensors:
        flow.fix(value, f"no rule for {call.name}")
    return [Value(shape, order=f"what {call.name} gives, which has no rule") for shape in call.shapes]
