"""What a Sparsifier is told to prune: by default, by name, or by a function."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable

from torch import nn

from .prunable import Candidate, named_layers

Select = Callable[[str, nn.Module], bool] | Iterable[str] | None


def chosen(model: nn.Module, candidates: Iterable[Candidate], select: Select) -> set[str]:
    """Names of the parameters to prune, shared ones under their first name.

    Raises:
        TypeError: neither names nor a function.
        ValueError: a name or pattern that matches no layer.
    """
    if select is None:
        return {c.alias_of or c.name for c in candidates if not c.skipped and not c.dense}
    if callable(select):
        layers = named_layers(model)
        return {c.alias_of or c.name for c in candidates if select(c.module_name, layers[c.module_name])}
    if not isinstance(select, Iterable):
        raise TypeError(f"select must be names, patterns or a function, not {type(select).__name__}")
    patterns = [select] if isinstance(select, str) else list(select)
    selected: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"select must hold names or fnmatch patterns, not {type(pattern).__name__}")
        matches = [
            c
            for c in candidates
            if any(fnmatch.fnmatchcase(name, pattern) for name in (c.name, c.layer, c.module_name))
        ]
        if not matches:
            known = ", ".join(c.layer for c in candidates)
            raise ValueError(f"select {pattern!r} matches no layer with weights; there are: {known}")
        selected.update(c.alias_of or c.name for c in matches)
    return selected
