"""The optimizers that a Sparsifier is attached to: which of them steps, and which weights it steps.

What is given may only wrap the one that steps (Accelerate's ``AcceleratedOptimizer``, torch's
``PostLocalSGDOptimizer``, sharpness-aware ones around a base). A step touches what its optimizer holds and
nothing else: the graph of another part of the model may still be waiting for its backward pass.
"""

from __future__ import annotations

import functools
import operator
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: Attributes under which wrappers keep the optimizer inside.
_INNER = ("optimizer", "base_optimizer", "optim", "_optimizer", "inner_optimizer")
#: Methods of two-step optimizers that move the weights before ``step`` does, by the gradients as they are.
_FIRST_STEPS = ("first_step", "ascent_step")

#: Places in an optimizer, by the name of the weight that is copied from there.
Masters = dict[str, int]

_PRE_HOOKS, _POST_HOOKS = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"


class Stepped(NamedTuple):
    """A masked weight that an optimizer steps."""

    name: str
    parameter: Tensor  #: of the model
    held: Tensor  #: what the optimizer holds: the parameter, or its master


class Enforcer(Protocol):
    """What an attachment asks of its Sparsifier."""

    @property
    def _masks(self) -> Mapping[str, object]: ...

    def _stepped(self, held: Sequence[Tensor], masters: Masters) -> list[Stepped]: ...
    def _is_current(self, stepped: Sequence[Stepped]) -> bool: ...
    def _mask_gradients(self, stepped: Sequence[Stepped]) -> None: ...
    def _mask_stepped(self, stepped: Sequence[Stepped]) -> None: ...


class Attachment:
    """The hooks on one optimizer: they hold this and the Sparsifier, and nothing holds the optimizer."""

    def __init__(self, sparsifier: Enforcer, optimizer: Optimizer, masters: Masters) -> None:
        self._sparsifier = sparsifier
        _make_hookable(optimizer)
        self._optimizer = weakref.ref(optimizer)
        self.masters = masters
        self._held: list[Tensor] = []
        self._masks: Mapping[str, object] = {}
        self._found: list[Stepped] = []
        self._handles = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )
        self._wrapped = [name for name in _FIRST_STEPS if callable(getattr(optimizer, name, None))]
        for name in self._wrapped:
            setattr(optimizer, name, functools.partial(self._first_step, getattr(type(optimizer), name)))

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer, while it lives."""
        return self._optimizer()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for name in self._wrapped:
            if self.optimizer is not None:
                vars(self.optimizer).pop(name, None)

    def _stepped(self) -> list[Stepped]:
        """Looked up again where the optimizer holds something else, or the masks or parameters changed."""
        optimizer = self.optimizer
        held = [] if optimizer is None else list(parameters_of(optimizer))
        masks = self._sparsifier._masks
        same = len(held) == len(self._held) and all(map(operator.is_, held, self._held))
        if not same or masks is not self._masks or not self._sparsifier._is_current(self._found):
            self._found = self._sparsifier._stepped(held, self.masters)
            self._held, self._masks = held, masks
        return self._found

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._sparsifier._mask_gradients(self._stepped())

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._sparsifier._mask_stepped(self._stepped())

    def _first_step(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """The first of two steps moves what is kept, by the gradients of what is kept."""
        self._sparsifier._mask_gradients(self._stepped())
        return method(self.optimizer, *args, **kwargs)


def stepping(given: object, caller: str) -> list[Optimizer]:
    """The optimizers whose ``step`` moves weights when ``given`` steps, the outermost first.

    Raises:
        TypeError: there is none; where another one than ``given`` would do, it is named.
    """
    found: list[Optimizer] = []
    _collect(given, found, set())
    if found:
        return found
    kind = type(given).__name__
    held = [
        name
        for name in (*getattr(given, "__dict__", ()), *_INNER)
        if isinstance(_attribute(given, name), Optimizer)
    ]
    if held:
        raise TypeError(f"{caller} needs a torch.optim.Optimizer, not {kind}: pass its .{held[0]}")
    if isinstance(given, Optimizer):
        raise TypeError(
            f"{caller} needs the torch.optim.Optimizer that steps, but {kind} never called "
            "Optimizer.__init__, and holds none: pass the one that it wraps"
        )
    raise TypeError(f"{caller} needs a torch.optim.Optimizer, not {kind}")


def _attribute(holder: object, name: str) -> Any:
    own = getattr(holder, "__dict__", {})
    return own[name] if name in own else getattr(holder, name, None)


def _collect(given: object, found: list[Optimizer], seen: set[int]) -> None:
    is_like_one = callable(getattr(given, "step", None)) and callable(getattr(given, "zero_grad", None))
    if id(given) in seen or isinstance(given, type) or not hasattr(given, "__dict__") or not is_like_one:
        return
    if isinstance(given, nn.Module):
        return
    seen.add(id(given))
    hooks = vars(given).get(_POST_HOOKS)
    count = len(found)
    if isinstance(given, Optimizer) and hooks is not None:
        shared = [i for i, known in enumerate(found) if vars(known).get(_POST_HOOKS) is hooks]
        for i in shared:  # Lightning's wrapper shares the dict of what it wraps, and may go before it
            found[i] = given
        if not shared:
            found.append(given)
    for name in dict.fromkeys((*vars(given), *_INNER)):
        inner = _attribute(given, name)
        if isinstance(inner, Optimizer) or name in _INNER:
            _collect(inner, found, seen)
        elif isinstance(inner, list | tuple):
            for each in inner:
                if isinstance(each, Optimizer):
                    _collect(each, found, seen)
    if isinstance(given, Optimizer) and hooks is None and len(found) > count and not _only_steps(given):
        found.insert(count, given)


def _only_steps(wrapper: Optimizer) -> bool:
    """Whether a wrapper moves no weight when the optimizer inside has stepped: Accelerate's, torch's own."""
    return type(wrapper).__module__.partition(".")[0] in {"accelerate", "torch"} or not hasattr(
        wrapper, "param_groups"
    )


def _make_hookable(optimizer: Optimizer) -> None:
    """Let hooks run around ``step`` where ``Optimizer.__init__`` was never called, on this object alone.

    Wrappers that keep slow weights (Lookahead) move weights after the step of the optimizer inside.
    """
    for hooks in (_PRE_HOOKS, _POST_HOOKS):
        vars(optimizer).setdefault(hooks, OrderedDict())
    step: Any = optimizer.step
    if not getattr(type(optimizer).step, "hooked", False) and not getattr(step, "hooked", False):

        def plain(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs)

        hooked: Any = Optimizer.profile_hook_step(plain)
        hooked.hooked = True
        optimizer.step = types.MethodType(hooked, optimizer)  # type: ignore[method-assign]


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """All that an optimizer holds, in its order."""
    for group in optimizer.param_groups:
        yield from group["params"]


def find_masters(model: nn.Module, optimizer: Optimizer, prunable: Mapping[str, Tensor]) -> Masters:
    """The places in ``optimizer`` of copies of the model's weights that it steps in their stead, by name.

    float32 masters of 16-bit weights, say. They are told by shape and order, and by their numbers. Empty
    where the optimizer holds the model's own parameters.

    Args:
        prunable: the weights that may be masked, by name; a master is needed for each.

    Raises:
        ValueError: the optimizer holds nothing of the model, or it cannot be told what is whose copy.
    """
    held = list(parameters_of(optimizer))
    stepped, own = {id(p) for p in held}, {id(p) for p in model.parameters()}
    foreign = [place for place, p in enumerate(held) if id(p) not in own]
    if not foreign:
        return {}
    left = [p for p in model.parameters() if p.requires_grad and id(p) not in stepped]
    copies, originals = _by_shape([held[place] for place in foreign]), _by_shape(left)
    if {shape: len(p) for shape, p in copies.items()} != {shape: len(p) for shape, p in originals.items()}:
        if len(foreign) < len(held):
            return {}  # it steps weights of the model, and others besides
        raise ValueError(
            f"this {type(optimizer).__name__} holds none of the model's parameters, and not a copy of each: "
            f"{len(held)} tensors, the first {tuple(held[0].shape)}; pass the optimizer that steps the model"
        )
    copy_of = {
        id(left[original]): foreign[copied]
        for shape, places in originals.items()
        for original, copied in zip(places, copies[shape], strict=True)
    }
    masters = {name: copy_of[id(weight)] for name, weight in prunable.items() if id(weight) in copy_of}
    for name, place in masters.items():
        if not _is_copy(held[place], prunable[name]):
            raise ValueError(
                f"this {type(optimizer).__name__} holds copies of the parameters, but which is the copy of "
                f"{name} {tuple(prunable[name].shape)} cannot be told: by its order it is tensor {place}, "
                "whose numbers are others; attach before the first step, or to an optimizer of the parameters"
            )
    return masters


def _by_shape(tensors: Sequence[Tensor]) -> dict[torch.Size, list[int]]:
    found: dict[torch.Size, list[int]] = {}
    for place, tensor in enumerate(tensors):
        found.setdefault(tensor.shape, []).append(place)
    return found


def _is_copy(master: Tensor, weight: Tensor) -> bool:
    """Whether a master's numbers are the weight's, where that is not pruned already."""
    mine, theirs = weight.detach(), master.detach().to(device=weight.device, dtype=weight.dtype)
    return bool(torch.where(mine == 0, True, mine == theirs).all())
