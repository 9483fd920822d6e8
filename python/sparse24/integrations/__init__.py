"""sparse24 in other libraries: what is registered with them when they are imported, before or after sparse24.

Importing sparse24 imports none of them. A finder that stands first on ``sys.meta_path`` waits for the modules
that it has something for, lets the other finders find them, and imports ours once they have run.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

#: A module of another library, and the one here that registers, by being imported, when that has run.
_WAITED_FOR = {
    "transformers.quantizers.auto": ".transformers",
    "transformers.modeling_utils": ".saving",
    "peft.tuners.lora.model": ".peft",
}


def register() -> None:
    """Register with what is imported already, and wait for the rest."""
    waiting = dict(_WAITED_FOR)
    for name in list(waiting):
        if name in sys.modules:
            _import(waiting.pop(name), name)
    for finder in sys.meta_path:
        if isinstance(finder, _Waiting):
            finder.wait_for(waiting)
            return
    if waiting:
        sys.meta_path.insert(0, _Waiting(waiting))


def _import(ours: str, theirs: str) -> None:
    """Import what registers; a library that lacks what it needs works on, as if sparse24 were not there."""
    try:
        importlib.import_module(ours, __package__)
    except (ImportError, AttributeError) as error:
        library = theirs.partition(".")[0]
        warnings.warn(
            f"sparse24 is not registered with {library}, which is of another version than those it knows "
            f"({error}): sparse networks are not saved, loaded or adapted by it",
            UserWarning,
            stacklevel=2,
        )


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds nothing itself: what others find for some names has ours imported after it has run."""

    def __init__(self, waiting: dict[str, str]) -> None:
        self._waiting = waiting
        self._asking: set[str] = set()

    def wait_for(self, others: dict[str, str]) -> None:
        """Wait for more modules."""
        self._waiting |= others

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._waiting or name in self._asking:
            return None
        self._asking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._waiting.pop(name))  # type: ignore[assignment]
            if not self._waiting:
                sys.meta_path.remove(self)
        return spec


class _Loader:
    """Another loader, that imports what is ours after the module has run."""

    def __init__(self, loader: Any, ours: str) -> None:
        self._loader = loader
        self._ours = ours

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _import(self._ours, module.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
