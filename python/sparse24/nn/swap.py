"""Put a layer in another one's place, with what a user has attached to it, and take that back."""

from __future__ import annotations

import weakref
from typing import NamedTuple

from torch import Tensor, nn

from .kinds import SPARSE

#: Hooks that run around ``forward`` and work on any kind of layer.
CARRIED_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip

#: The flag by which each of torch's transformer modules reads the dense weights of the layers inside in
#: one fused call. It is off while one of them is sparse; the user's value waits under the second name.
_FUSED_PATHS: tuple[tuple[type[nn.Module], str, str], ...] = (
    (nn.TransformerEncoder, "use_nested_tensor", "_sparse24_use_nested_tensor"),
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", "_sparse24_activation_relu_or_gelu"),
)

Places = list[tuple[nn.Module, str]]


def places_of(model: nn.Module) -> dict[int, Places]:
    """Where every module is registered, by its identity: parents and names."""
    places: dict[int, Places] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(id(child), []).append((parent, name))
    return places


def put(new: nn.Module, places: Places) -> None:
    """Register ``new`` at every place."""
    for parent, name in places:
        parent._modules[name] = new


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """Hooks (their dictionaries themselves, so that handles still remove them) and public attributes."""
    for hooks in CARRIED_HOOKS:
        object.__setattr__(new, hooks, getattr(old, hooks))
    new._is_full_backward_hook = old._is_full_backward_hook
    for name, value in vars(old).items():
        if not name.startswith("_") and name != "activation" and name not in vars(new):
            setattr(new, name, value)


def set_fused_paths(model: nn.Module) -> None:
    """Close torch's fused paths around sparse layers, and reopen those that hold none any more."""
    for module in model.modules():
        for kind, flag, saved in _FUSED_PATHS:
            if not isinstance(module, kind):
                continue
            sparse_inside = any(isinstance(child, SPARSE) for child in module.modules())
            if sparse_inside and saved not in vars(module):
                setattr(module, saved, getattr(module, flag))
                setattr(module, flag, False)
            elif not sparse_inside and saved in vars(module):
                setattr(module, flag, getattr(module, saved))
                delattr(module, saved)


class _Shell(NamedTuple):
    """A dense module without its numbers, and the parameters that it had, while somebody else holds them."""

    module: nn.Module
    parameters: dict[str, weakref.ref[nn.Parameter]]


def _shell_of(module: nn.Module) -> _Shell:
    parameters = {name: weakref.ref(parameter) for name, parameter in module.named_parameters()}
    return _Shell(_emptied(module), parameters)


def _emptied(module: nn.Module) -> nn.Module:
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin._parameters = {n: None if p is None else _meta_like(p) for n, p in module._parameters.items()}
    twin._modules = {n: None if child is None else _emptied(child) for n, child in module._modules.items()}
    return twin


def _meta_like(parameter: nn.Parameter) -> nn.Parameter:
    blank = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    blank.__dict__.update(parameter.__dict__)
    return blank


class Undo:
    """How a replaced layer comes back: itself if somebody holds it, else rebuilt from what replaced it.

    Compression is lossless but for the sign of zeros; a layer that was cast is held until all is done.
    """

    def __init__(self, old: nn.Module, new: nn.Module, places: Places, is_cast: bool) -> None:
        self._held = old if is_cast else None
        self._old = weakref.ref(old)
        self._shell = _shell_of(old)
        self._new = new
        self._places = places

    def run(self) -> None:
        """Register the dense layer again."""
        old = self._old()
        put(self._rebuilt() if old is None else old, self._places)

    def _rebuilt(self) -> nn.Module:
        assert isinstance(self._new, SPARSE)
        module, known = self._shell
        dense = dict(self._new.to_dense().named_parameters())
        for name, blank in list(module.named_parameters()):
            owner_name, _, attribute = name.rpartition(".")
            alive = known[name]()
            if alive is None:
                numbers: Tensor = dense[name].detach()
                numbers = numbers.t().contiguous() if numbers.shape != blank.shape else numbers
                alive = nn.Parameter(numbers, blank.requires_grad)
                alive.__dict__.update(blank.__dict__)
            module.get_submodule(owner_name)._parameters[attribute] = alive
        return module
