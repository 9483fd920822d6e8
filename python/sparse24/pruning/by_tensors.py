"""Layers that run sparse with a compressed weight in the place of their own, by their own ``forward``.

They are no layers that ``layers`` swaps: one-dimensional convolutions, recurrent layers and their cells,
stacks of experts [E, out, in], and subclasses of ``Linear`` and of convolutions whose ``forward`` pads or
casts and then multiplies by the weight as it is, which a call with a spy in the weight's place shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_ONE_WEIGHT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Methods that decide what a layer computes.
_METHODS = ("__call__", "forward", "_conv_forward")


def weights_by_tensors(module: nn.Module) -> dict[str, int]:
    """The parameters that may be compressed in their places, and the dims of their input channels."""
    if any(isinstance(module, kind) for kind in _RECURRENT):
        return {n: 1 for n, p in module._parameters.items() if p is not None and n.startswith("weight_")}
    if isinstance(module, nn.Conv1d):
        return {"weight": 1}
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        return {"weight": 1} if module._parameters.get("weight") is not None else {}
    if _is_stack_of_experts(module):
        return {name: 2 for name, p in module._parameters.items() if p is not None and p.dim() == 3}
    return {}


def _is_stack_of_experts(module: nn.Module) -> bool:
    """Whether parameters of three dimensions are matrices [out, in], one for each expert."""
    kind = type(module)
    if not kind.__module__.startswith("transformers.") or "Experts" not in kind.__name__:
        return False
    says = getattr(module, "is_transposed", None)
    return says is False or (says is None and kind.__name__.endswith("ParallelExperts"))


def why_not_by_tensors(module: nn.Module) -> str:
    """Why none of a layer's weights can be compressed in its place, whatever they hold; empty: they can."""
    kind = type(module).__name__
    if not weights_by_tensors(module):
        is_transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        how = ": its weight lies as [in, out, ...], and groups along the input channels run down its columns"
        return f"no sparse kernel for {kind}{how if is_transposed else ''}"
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"parametrized ({names}): call torch.nn.utils.parametrize.remove_parametrizations first"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{kind} has no weight yet: run a batch through the model first"
    base = next((c for c in type(module).__mro__ if c in (*_RECURRENT, *_ONE_WEIGHT)), None)
    return "" if base is None else _why_its_forward(module, base)


def _why_its_forward(module: nn.Module, base: type[nn.Module]) -> str:
    """Why the methods of a subclass keep a compressed weight out; empty: they do not."""
    kind = type(module).__name__
    own = [name for name in _METHODS if name in vars(module)]
    if own:
        return f"its {own[0]} was replaced by hand"
    own = [name for name in _METHODS if getattr(type(module), name, None) is not getattr(base, name, None)]
    if not own:
        return ""
    what = f"{kind} is a subclass of {base.__name__} with its own {own[0]}"
    if base in _RECURRENT:
        return what
    reason = _why_forward_is_foreign(module)
    return f"{what}, {reason}" if reason else ""


def _why_forward_is_foreign(module: Any) -> str:
    """Why a ``forward`` does not multiply its input by the weight as it is; empty: it does."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "whose weight is no parameter"
    spy: Any = Tensor._make_subclass(_Spy, weight.detach())
    spy.seen = []
    twin: Any = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    twin.__dict__["_parameters"] = {**module._parameters, "weight": spy}
    twin.__dict__["_buffers"] = {n: None if b is None else b.clone() for n, b in module._buffers.items()}
    twin.__dict__["training"] = False
    try:
        with torch.no_grad():
            type(module).forward(twin, weight.new_zeros(_input_shape(module)))
    except Exception as error:  # noqa: BLE001  whatever somebody's forward raises
        first = (str(error).splitlines() or [""])[0]
        return f"which does not take an input alone ({type(error).__name__}: {first})"
    others = [name for name in spy.seen if name]
    if others:
        return f"which computes something else from its weight ({others[0]})"
    return "" if spy.seen else "which does not multiply by its weight"


def _input_shape(module: Any) -> Sequence[int]:
    if isinstance(module, nn.Linear):
        return 1, module.in_features
    sizes: Mapping[str, Sequence[int]] = vars(module)
    pairs = zip(sizes["kernel_size"], sizes["dilation"], sizes["stride"], strict=True)
    return 1, module.in_channels, *(d * (k - 1) + 1 + s for k, d, s in pairs)


_PRODUCTS = (
    F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul,
    Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm,
)  # fmt: skip
#: What gives the weight again, or turned, or says something of it.
_SAME = (
    Tensor.t,
    Tensor.to,
    Tensor.type_as,
    Tensor.contiguous,
    Tensor.detach,
    Tensor.size,
    Tensor.dim,
    Tensor.type,
)


class _Spy(Tensor):
    """A weight that writes down what is done with it: "" for a product, the function's name for the rest."""

    seen: list[str]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        spy = next(each for each in (*args, *kwargs.values()) if isinstance(each, _Spy))
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunctionSubclass():
            if func in _PRODUCTS:
                weight = args[1] if len(args) > 1 else kwargs.get("weight")
                spy.seen.append("" if weight is spy else name)
                return func(*args, **kwargs)
            result = func(*args, **kwargs)
        if func in _SAME or name == "__get__":  # an attribute
            if isinstance(result, Tensor) and not isinstance(result, _Spy):
                result = Tensor._make_subclass(_Spy, result)
            if isinstance(result, _Spy):
                result.seen = spy.seen
            return result
        spy.seen.append(name)
        return result
