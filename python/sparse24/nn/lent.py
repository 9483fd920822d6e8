"""A module's dict of tensors that one tensor can leave, and whether anything outside holds that tensor.

A layer that runs on another form of its weight has no use for ``values`` and ``indices`` on the device. They
are then away from ``_parameters`` and ``_buffers``, and whoever reads these dicts, by whatever way, has them
brought back first: so ``state_dict``, ``.to``, ``deepcopy``, optimizers and hooks see plain tensors.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Lent(dict[str, Any]):
    """A plain dict in all it does, for ``_parameters`` or ``_buffers``; pickled and copied as one.

    Args:
        tensors: what the module's dict holds.
        name: the tensor that can leave.
        bring_back: called when that tensor is away and asked for; it calls :meth:`give`.
    """

    __slots__ = ("__weakref__", "_bring_back", "_name", "_order")

    def __init__(self, tensors: dict[str, Any], name: str, bring_back: Callable[[], None]) -> None:
        super().__init__(tensors)
        self._name = name
        self._bring_back = bring_back
        self._order: tuple[str, ...] = ()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self.items()),)

    def serve(self, bring_back: Callable[[], None]) -> None:
        """Another owner of what is away."""
        self._bring_back = bring_back

    def close(self) -> None:
        """From now on a reader calls ``bring_back`` and waits there."""
        self._order = tuple(dict.keys(self))
        self.__class__ = Absent

    def open(self) -> None:
        """Be a plain dict again."""
        self.__class__ = Lent

    def take(self) -> Tensor:
        """Remove the tensor of a dict that is closed."""
        tensor: Tensor = dict.pop(self, self._name)
        return tensor

    def give(self, tensor: Tensor) -> None:
        """Put the tensor back where it stood, and open."""
        dict.__setitem__(self, self._name, tensor)
        for later in self._order[self._order.index(self._name) + 1 :]:  # for the order of a state_dict
            dict.__setitem__(self, later, dict.pop(self, later))
        self.open()


class Absent(Lent):
    """A :class:`Lent` that is closed. Its own tensor is really not in it: C code that looks finds nothing."""

    __slots__ = ()

    def __missing__(self, key: str) -> Any:
        if key not in self._order:
            raise KeyError(key)
        self._bring_back()  # the key is away, or just being put into its place
        return dict.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self._order or dict.__contains__(self, key)

    def __len__(self) -> int:
        return len({*self._order, *dict.keys(self)})


def _brought_back(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @functools.wraps(method)
    def run(self: Absent, *args: Any, **kwargs: Any) -> Any:
        self._bring_back()
        return method(self, *args, **kwargs)

    return run


# ``dict(module._parameters)`` and ``{**module._parameters}`` copy past every method but where __iter__ is
# another one.
for _name in (
    "__delitem__", "__eq__", "__ior__", "__iter__", "__ne__", "__or__", "__repr__", "__reversed__", "__ror__",
    "__setitem__", "clear", "copy", "get", "items", "keys", "pop", "popitem", "setdefault", "update",
    "values",
):  # fmt: skip
    setattr(Absent, _name, _brought_back(_name))


# ---- who holds a tensor -----------------------------------------------------------------------------

#: References that C++ has to a tensor: an autograd graph that saved it, say.
_uses: Callable[[Tensor], int] = getattr(Tensor, "_use_count", lambda tensor: 1)


def _counts(tensors: dict[str, Any], name: str) -> tuple[int, ...]:
    """References to a tensor in Python and in C++, to its storage, and to its storage's Python object.

    The storage's count sees what shares its memory: ``.data``, views, NumPy arrays, DLPack.
    """
    return (
        sys.getrefcount(tensors[name]),
        _uses(tensors[name]),
        torch._C._storage_Use_Count(tensors[name].untyped_storage()._cdata),
        sys.getrefcount(tensors[name].untyped_storage()),
        weakref.getweakrefcount(tensors[name]),  # whoever has one expects the tensor to live with its module
    )


def _references(holder: dict[str, Any], name: str) -> int:
    return sys.getrefcount(holder[name])


@functools.cache
def _alone() -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The counts of a parameter, a tensor and a dict that nobody else holds, measured as they are below."""
    parameters = {"x": nn.Parameter(torch.zeros(1, device="cpu"), requires_grad=False)}
    return (
        _counts(parameters, "x"),
        _counts({"x": torch.zeros(1, device="cpu")}, "x"),
        _references({"x": {}}, "x"),
    )


def is_held(state: dict[str, Any]) -> bool:
    """Whether anything but the module with the ``__dict__`` ``state`` holds its values or indices.

    Counted, so nothing is missed but an address: a raw ``data_ptr``, or memory shared with another process.
    The dicts count too: an iterator over one, or ``functional_call`` inside it, is about to read.
    """
    parameter, buffer, holder = _alone()
    return (
        _exceed(_counts(state["_parameters"], "values"), parameter)
        or _exceed(_counts(state["_buffers"], "indices"), buffer)
        or _references(state, "_parameters") > holder
        or _references(state, "_buffers") > holder
    )


def _exceed(counts: tuple[int, ...], alone: tuple[int, ...]) -> bool:
    return any(count > limit for count, limit in zip(counts, alone, strict=True))
