"""``layer.weight``: the dense weight of a compressed layer, as a tensor that holds no dense numbers.

Its shape, dtype and device are the dense weight's, and reading them costs nothing. Products written as
``F.linear``, ``F.conv2d``, ``matmul``, ``mm`` or ``addmm`` with it run sparse; every other operator sees the
dense values, decompressed for it. A write, through the tensor itself or through a view of it, goes back
into the layer if the result is still 2:4, and is refused by name if it is not: none is lost.

A little over 300 lines: one subclass of Tensor, and what its operators need.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from .. import ops
from .forms import Form, NotSparse24Error, compress_weight

_aten = torch.ops.aten
#: Where ``functional_call`` puts stand-ins for a module's tensors, and takes them out again.
_STAND_IN = "torch.nn.utils._named_member_accessor"


class _View(NamedTuple):
    """One step from a weight to a view of it."""

    operator: Any
    args: tuple[Any, ...]  # after the tensor
    kwargs: Mapping[str, Any]
    part: int | None  # which of several results

    def of(self, tensor: Tensor) -> Tensor:
        result = self.operator(tensor, *self.args, **self.kwargs)
        found: Tensor = result if self.part is None else result[self.part]
        return found


class CompressedWeight(Tensor):
    """The weight of a compressed layer, or a view of it: see the module."""

    _kept_values: Tensor
    _kept_indices: Tensor
    _form: Form
    _not_swapped: weakref.ref[CompressedWeight]
    _views: tuple[_View, ...]  # from the whole weight to this tensor
    _offset: int  # of its first number in the whole weight
    _scale: Tensor | None  # of int8 values, one a row: such a weight is only read

    #: Functions of torch, and the operators that they become inside, that run sparse (weight_products.py).
    products: ClassVar[dict[Any, Callable[..., Any]]] = {}
    lowered: ClassVar[dict[Any, Callable[..., Any]]] = {}

    @staticmethod
    def __new__(
        cls,
        values: Tensor,
        indices: Tensor,
        form: Form,
        views: tuple[_View, ...] = (),
        like: Tensor | None = None,
        scale: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> CompressedWeight:
        made: CompressedWeight = Tensor._make_wrapper_subclass(
            cls,
            form.shape if like is None else like.shape,
            strides=None if like is None else like.stride(),
            dtype=values.dtype if dtype is None else dtype,
            device=values.device,
        )
        made._kept_values, made._kept_indices, made._form, made._views = values, indices, form, views
        made._scale = scale
        made._offset = 0 if like is None else int(like.storage_offset())
        made._not_swapped = weakref.ref(made)  # torch.utils.swap_tensors refuses it: a swap would be lost
        return made

    def dense(self) -> Tensor:
        """The dense numbers, in a tensor of their own."""
        if self._scale is None:
            matrix = torch.ops.sparse24.decompress(self._kept_values.detach(), self._kept_indices)
        else:
            matrix = ops.dequantized(self._kept_values, self._kept_indices, self._scale, self.dtype)
        tensor = self._form.to_weight(matrix).contiguous()
        for view in self._views:
            tensor = view.of(tensor)
        return tensor

    # ---- writes --------------------------------------------------------------------------------------

    def _compressed(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """values and indices of the whole weight after a write; nothing is stored yet."""
        if self._scale is not None:
            stored = str(self._kept_values.dtype).removeprefix("torch.")
            raise ValueError(
                f"the weight {tuple(self._form.shape)} is stored as {stored} and is only read, so this write "
                "was not done: call sparse24.to_dense(model), or to_dense() on the layer, before such "
                "a change"
            )
        try:
            return compress_weight(whole, self._form, self._kept_values.dtype)
        except NotSparse24Error as error:
            raise ValueError(
                f"this write would leave more than two non-zeros in {error.place} of a compressed weight "
                f"{tuple(self._form.shape)}, so it was not done: call sparse24.to_dense(model), or "
                "to_dense() on the layer, before such a change, then prune and convert again"
            ) from None

    def assign(self, tensor: Tensor) -> None:
        """``layer.weight = tensor``: its numbers become the layer's, in place.

        Raises:
            TypeError: no tensor.
            ValueError: another shape, not 2:4, or in ``torch.func.functional_call``, which would write it
                for good.
        """
        if sys._getframe(2).f_globals.get("__name__") == _STAND_IN:
            raise ValueError(
                "a compressed weight cannot be replaced for one call: give functional_call the layer's "
                "values (and indices), or call to_dense() first"
            )
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a weight must be a tensor, not {type(tensor).__name__}")
        if tensor.shape != self.shape:
            raise ValueError(
                f"a compressed weight {tuple(self.shape)} cannot become {tuple(tensor.shape)}: "
                "call to_dense() of the layer before such a change"
            )
        if (
            isinstance(tensor, CompressedWeight)
            and tensor._kept_values is self._kept_values
            and not tensor._views
        ):
            return
        source = tensor.dense() if isinstance(tensor, CompressedWeight) else tensor.detach()
        self.copy_(source)

    # ---- what torch does with it ---------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        product = cls.products.get(func)
        if product is not None:
            output = product(*args, **kwargs)
            if output is not NotImplemented:
                return output
        with (
            torch._C.DisableTorchFunctionSubclass()
        ):  # what comes out is what it is: no result is cast to cls
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SAME:
            return _again(args[0], args[0]._views, _meta(args[0]))
        product = cls.lowered.get(func)
        if product is not None:
            output = product(*args, **kwargs)
            if output is not NotImplemented:
                return output
        written = _written(func, args, kwargs)
        if written:
            return _run_writing(func, args, kwargs, written)
        if isinstance(args[0] if args else None, CompressedWeight) and _is_view_of_first(func):
            return _view(func, args[0], tuple(args[1:]), kwargs)
        return func(*_dense(tuple(args)), **_dense(dict(kwargs)))

    # Attributes of a tensor that reach its memory past every operator.

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, tensor: Tensor) -> None:
        self.assign(tensor)

    @property
    def requires_grad(self) -> bool:
        return self._kept_values.requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self._kept_values.requires_grad_(wanted)

    def requires_grad_(self, requires_grad: bool = True) -> CompressedWeight:
        self._kept_values.requires_grad_(requires_grad)
        return self

    @property
    def grad(self) -> Tensor | None:
        """None: gradients are those of the layer's ``values``."""
        return None

    @grad.setter
    def grad(self, tensor: Tensor | None) -> None:
        if tensor is not None:
            raise ValueError(
                "a compressed weight keeps no gradient: set that of the layer's values, or call "
                "to_dense() first"
            )

    @property
    def _is_hf_initialized(self) -> bool:
        """By which transformers knows what was loaded and gets no random numbers: that of ``values``."""
        return getattr(self._kept_values, "_is_hf_initialized", False)

    def apply_(self, function: Callable[[Any], Any]) -> Tensor:
        return self.copy_(self.dense().apply_(function))

    def map_(self, other: Tensor, function: Callable[[Any, Any], Any]) -> Tensor:
        return self.copy_(self.dense().map_(other, function))

    def share_memory_(self) -> NoReturn:
        raise RuntimeError(
            "a compressed weight has no dense memory to share: call share_memory() of its layer"
        )

    def numpy(self, *, force: bool = False) -> Any:
        """The dense numbers in an array that cannot be written to: a write would not reach the layer."""
        array = self.dense().numpy(force=force)
        array.flags.writeable = False
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)
        return np.array(array) if copy else array

    def tolist(self) -> Any:
        return self.dense().tolist()

    def data_ptr(self) -> NoReturn:
        raise RuntimeError(
            "a compressed weight has no dense memory to point at: read layer.weight.dense(), or the layer's "
            "values and indices; to write to it, call to_dense() first"
        )

    def __dlpack__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise BufferError(
            "a compressed weight has no dense memory to share: share layer.weight.dense(), or call "
            "to_dense() first"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.dense().clone()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        if self._kept_values.is_meta:
            return f"CompressedWeight(..., device='meta', size={tuple(self.shape)})"
        return f"CompressedWeight({self.dense()!r})"


def _again(weight: CompressedWeight, views: tuple[_View, ...], like: Tensor | None) -> CompressedWeight:
    return CompressedWeight(
        weight._kept_values, weight._kept_indices, weight._form, views, like, weight._scale, weight.dtype
    )


def _meta(weight: CompressedWeight) -> Tensor:
    whole = torch.empty(math.prod(weight._form.shape), dtype=weight.dtype, device="meta")
    return whole.as_strided(weight.shape, weight.stride(), weight._offset)


def _dense(tree: Any) -> Any:
    return tree_map_only(CompressedWeight, CompressedWeight.dense, tree)


#: Operators that give the same tensor again.
_SAME = (_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default)


def _is_view_of_first(func: Any) -> bool:
    """Whether the results of an operator share the memory of its first argument."""
    arguments = func._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and not arguments[0].alias_info.is_write


def _view(func: Any, source: CompressedWeight, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    result = func(_meta(source), *args, **kwargs)

    def wrap(like: Tensor, part: int | None) -> CompressedWeight:
        step = _View(func, args, kwargs, part)
        return _again(source, (*source._views, step), like)

    if isinstance(result, Tensor):
        return wrap(result, None)
    return type(result)(wrap(each, part) for part, each in enumerate(result))


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[CompressedWeight]:
    """The weights among the arguments that an operator writes to."""
    if func.namespace == "c10d":  # collectives write to what they are given, and their schemas do not say so
        leaves, _ = tree_flatten((args, kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, CompressedWeight)]
    found: list[CompressedWeight] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        found += [leaf for leaf in tree_flatten(given)[0] if isinstance(leaf, CompressedWeight)]
    return found


def _run_writing(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], written: Sequence[CompressedWeight]
) -> Any:
    """Run an operator on dense copies of the weights that it writes to, and compress them again.

    All of them are checked before the first is stored: a refusal leaves every weight as it was.
    """
    leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
    wholes: dict[int, Tensor] = {}  # by id of values: several views may be written to at once
    parts: dict[int, Tensor] = {}
    for weight in written:
        key = id(weight._kept_values)
        if key not in wholes:
            wholes[key] = _again(weight, (), None).dense()
        part = wholes[key]
        for view in weight._views:
            part = view.of(part)
        parts[id(weight)] = part
    dense_args, dense_kwargs = tree_unflatten(
        [parts[id(leaf)] if id(leaf) in parts else _dense(leaf) for leaf in leaves], spec
    )
    result = func(*dense_args, **dense_kwargs)
    owners = {id(weight._kept_values): weight for weight in written}
    compressed = {key: weight._compressed(wholes[key]) for key, weight in owners.items()}
    for key, weight in owners.items():
        for own, new in zip(
            (weight._kept_values.detach(), weight._kept_indices), compressed[key], strict=True
        ):
            own.copy_(new)
    back = {id(parts[id(weight)]): weight for weight in written}
    return tree_map_only(Tensor, lambda tensor: back.get(id(tensor), tensor), result)
