"""Compressed weights in modules that stay what they are: a parameter of any module as a ``CompressedWeight``.

A module that holds one is of a class made for it: a subclass of its own, in which the parameter's name is a
property that gives the weight as a tensor without dense numbers, so that ``F.linear``, ``F.conv1d``,
``addmm``, slices of a stack and so on run sparse wherever the module's own ``forward`` uses it. The numbers
are in a child: ``compressed.NAME.values`` and ``compressed.NAME.indices`` in a state_dict, where the dense
module has ``NAME``. Dense checkpoints load, too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import compiled, recurrent
from .compressed import CompressedModule
from .forms import Form, compress_weight, rows_of
from .guard import CHILD, is_guard

#: What torch's recurrent layers keep beside their parameters: tensors of dense memory, and references.
_FLAT = {"_flat_weights", "_flat_weight_refs"}


class HeldWeight(CompressedModule):
    """The compressed weight that stands for one parameter of a module: a weight, not a layer to call."""

    _operator = "linear"

    def __init__(self, form: Form, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(
            rows_of(form), form.columns, bias=False, activation="none", device=device, dtype=dtype
        )
        self._held_form = form

    @property
    def _form(self) -> Form:
        return self._held_form

    @classmethod
    def from_dense(cls, weight: Tensor, form: Form, dtype: torch.dtype | None = None) -> HeldWeight:
        """Compress a weight of the shape of ``form``; ``dtype`` casts it.

        Raises:
            ValueError: it is not 2:4, with its place, or has no data.
        """
        held = cls(form, weight.device, dtype or weight.dtype)
        held._fill(*compress_weight(weight, form, held.values.dtype), None)
        return held

    def extra_repr(self) -> str:
        return f"{tuple(self._form.shape)}" + self._optional_repr().replace(", bias=False", "")


class HeldWeights(nn.Module):
    """The compressed weights of one module."""


def helds_of(module: Any) -> dict[str, Any]:
    """The compressed weights of a module by the names of its parameters; empty: it has none."""
    child = module._modules.get(CHILD) if isinstance(module, Holding) else None  # type: ignore[attr-defined]
    return {} if child is None else child._modules


class Holding:
    """What the classes have that are made for modules with compressed parameters."""

    _held_names: tuple[str, ...]  #: of those parameters
    _held_base: type[nn.Module]  #: the module's own class

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._held_names:
            helds_of(self)[name].weight = value
        else:
            super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if "weight" in self._held_names and prefix + "indices" in state_dict:  # of a compressed layer
            for key in ("values", "indices", "weight_scale", "input_scale"):
                if prefix + key in state_dict:
                    state_dict[f"{prefix}{CHILD}.weight.{key}"] = state_dict.pop(prefix + key)
        for name in self._held_names:  # a dense checkpoint: the child compresses
            if prefix + name in state_dict and is_guard(prefix + name, state_dict):
                del state_dict[prefix + name]
            if prefix + name in state_dict:
                state_dict[f"{prefix}{CHILD}.{name}.weight"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = vars(self) | dict.fromkeys(_FLAT.intersection(vars(self)), ())
        return _revived, (self._held_base, self._held_names), state


def _revived(base: Any, names: tuple[str, ...]) -> nn.Module:
    made: nn.Module = object.__new__(holding_class(base, names))
    made.__dict__.update(_parameters={}, _buffers={}, _modules={})
    return made


def _property(name: str) -> property:
    def read(module: nn.Module) -> Tensor:
        weight: Tensor = helds_of(module)[name].weight
        return weight

    return property(read)


@functools.cache
def holding_class(base: Any, names: tuple[str, ...]) -> Any:
    """The class of modules of ``base`` whose parameters ``names`` are compressed."""
    forward = recurrent.forward_of(base) or compiled.forward_of(base)
    body: dict[str, Any] = {name: _property(name) for name in names}
    body |= {"_held_names": names, "_held_base": base, "__module__": base.__module__, "__doc__": base.__doc__}
    bases = (Holding, base) if forward is None else (Holding, forward, base)
    return type(base.__name__, bases, body)


def is_holding(module: nn.Module) -> bool:
    """Whether a module has parameters that are compressed."""
    return isinstance(module, Holding)


def own_class(module: nn.Module) -> Any:
    """The class of a module, whatever it holds."""
    return getattr(module, "_held_base", type(module))


def hold(module: nn.Module, helds: dict[str, HeldWeight]) -> None:
    """Let compressed weights stand for parameters of a module, in place; nothing in it can fail half-way."""
    names = (*getattr(module, "_held_names", ()), *helds)
    if "_held_order" not in vars(module):
        module.__dict__["_held_order"] = tuple(module._parameters)
    held_by = module._modules.setdefault(CHILD, HeldWeights())
    assert held_by is not None
    for name, held in helds.items():
        del module._parameters[name]
        held_by._modules[name] = held
    held_by.train(module.training)
    module.__class__ = holding_class(own_class(module), tuple(sorted(names)))
    if isinstance(module, nn.RNNBase):
        module.__dict__.update(dict.fromkeys(_FLAT, ()))  # they would keep the dense ones


def release(module: nn.Module, names: Sequence[str] | None = None) -> None:
    """Make compressed parameters dense again, in place: those called ``names``, or all."""
    held_names: Any = module._held_names
    helds = {name: helds_of(module)[name] for name in (held_names if names is None else names)}
    with torch.inference_mode(False):
        dense = {name: nn.Parameter(held._view().dense()) for name, held in helds.items()}
    put_back(module, dense)


def put_back(module: nn.Module, dense: dict[str, nn.Parameter]) -> None:
    """Put dense parameters in the places of compressed ones, in place."""
    held_names: Any = module._held_names
    left = tuple(name for name in held_names if name not in dense)
    order = module.__dict__["_held_order"]
    known = {**module._parameters, **dense}
    for name in dense:
        del helds_of(module)[name]
    if not left:
        del module._modules[CHILD]
    base = own_class(module)
    module.__class__ = holding_class(base, left) if left else base
    module._parameters.clear()
    module._parameters.update({name: known[name] for name in order if name in known})
    module._parameters.update({name: each for name, each in known.items() if name not in order})
    if not left:
        del module.__dict__["_held_order"]
    if isinstance(module, nn.RNNBase) and not left:
        module._init_flat_weights()
