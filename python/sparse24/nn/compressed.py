"""The compressed weight that the sparse layers share, and the checks on what is loaded into it.

A little over 300 lines: one class, and what it is in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.cuda.cusparselt import Stream
from ..ops.cuda.weights import Weight, sweep
from . import int8, on_device, onnx
from .forms import Form, with_own_names, with_values
from .guard import is_guard
from .tracing import Unscriptable, is_traced
from .weight import CompressedWeight

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

#: Weight dtypes that the products take.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Two groups of an empty weight in one byte of ``indices``: each keeps columns 0 and 1.
_EMPTY_GROUPS = 0b0100_0100

#: The format of values and indices in a state_dict, kept there as the version of the module (torch's own
#: mechanism). Version 0.1 of the library wrote the same format without a number.
FORMAT = 1


def wants_grad(input: Tensor, values: Tensor, indices: Tensor, bias: Tensor | None) -> bool:
    """Whether autograd has to see the product of these; a trace of TorchScript cannot hold it."""
    wanted = input.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    return wanted and not is_traced()


def _first_disorder(indices: Tensor) -> tuple[int, int] | None:
    """(row, group) of the first group whose two indices do not increase."""
    pairs = torch.stack((indices & 15, indices >> 4), dim=-1).flatten(1)
    first = ((pairs & 3) >= (pairs >> 2)).flatten().nonzero()[:1]
    return divmod(int(first), pairs.shape[1]) if len(first) else None


class CompressedModule(Unscriptable, nn.Module):
    """What the sparse layers share: ``values``, ``indices``, ``bias``, and checkpoints checked on load."""

    values: nn.Parameter
    indices: Tensor
    bias: nn.Parameter | None
    activation: str
    _version = FORMAT
    #: What it is called in ``torch.ops.sparse24``.
    _operator: str
    #: What ``keep_dense`` was told.
    _keeps_dense = False
    #: Of the dense weight, where it is stored in 8 bits.
    _float_dtype = torch.float32

    @torch.inference_mode(False)  # a layer that is built inside it may be called outside
    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        bias: bool,
        activation: str,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in DTYPES:
            how = ": to_int8() makes its storage int8" if dtype == torch.int8 else ""
            raise TypeError(f"{type(self).__name__} computes in {ops.names_of(DTYPES)}, not {dtype}{how}")
        if activation not in ops.ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {ops.ACTIVATIONS}")
        self.activation = activation
        padded = ops.round_up(columns, 8)
        values = torch.empty((rows, padded // 2), device=device, dtype=dtype)
        self.values = nn.Parameter(values, requires_grad=False)
        self.register_buffer("indices", torch.empty((rows, padded // 8), device=device, dtype=torch.uint8))
        bias_or_none = torch.empty(rows, device=device, dtype=dtype) if bias else None
        self.register_parameter(
            "bias", None if bias_or_none is None else nn.Parameter(bias_or_none, requires_grad=False)
        )
        self.reset_parameters()

    def to_int8(self, activations: str | None = None, input_scale: float | None = None) -> Self:
        """Store the weight as int8, in place: ``values`` int8 and a buffer ``weight_scale`` [out], float32.

        A weight is rounded to the nearest multiple of its output channel's scale, the channel's largest
        magnitude over 127; zeros stay exact. Inputs, bias and outputs keep their dtype, whichever it is.

        Args:
            activations: ``None``: the weight alone is int8. "dynamic": the input becomes int8 too, with a
                scale of its own for every token (every image of a convolution), and sums are int32.
                "static": the same with one scale, ``input_scale``; what is beyond 127 of it saturates.
            input_scale: of "static", positive. It is kept in the buffer ``input_scale`` [], and 0 there
                stands for "dynamic".

        Returns:
            The layer itself.

        Raises:
            ValueError: another ``activations``; an ``input_scale`` that is missing, superfluous, or not
                positive and finite; a weight that is not finite; a layer that is int8 already. Nothing
                has changed then.
        """
        self._become(torch.int8, int8.input_scale_of(activations, input_scale))
        return self

    def to_float8(self) -> Self:
        """Store the weight as float8_e4m3fn, in place, and multiply float8 by float8.

        ``values`` become float8 and a buffer ``weight_scale`` [out], float32, holds every output channel's
        largest magnitude over 448. The input becomes float8 at every call, with a scale of its own for every
        token (every image of a convolution). Inputs, bias and outputs keep their dtype, whichever it is.
        Sparse tensor cores that take float8 begin with sm_89 (Ada, Hopper); elsewhere the same numbers are
        multiplied in float32, which is slow. A state_dict of the layer is loaded as float8 by a layer that is
        float8; others widen it.

        Returns:
            The layer itself.

        Raises:
            ValueError: a weight that is not finite, or is stored in 8 bits already. Nothing has changed then.
        """
        self._become(torch.float8_e4m3fn, None)
        return self

    def _become(self, dtype: torch.dtype, input_scale: float | None) -> None:
        if int8.is_narrow(self):
            raise ValueError(
                f"the weight is {self._stored()} already: to_dense() and from_dense() make it floating again"
            )
        values, scale = int8.quantize_rows(self.values, dtype)
        float_dtype, device = self.values.dtype, values.device
        of_input = None if input_scale is None else torch.tensor(input_scale, device=device)
        int8.store(self, values, scale, of_input)
        self._float_dtype = float_dtype

    def _stored(self) -> str:
        return str(self.values.dtype).removeprefix("torch.")

    @property
    def is_int8(self) -> bool:
        """Whether the weight is stored as int8."""
        return int8.is_int8(self)

    @property
    def is_float8(self) -> bool:
        """Whether the weight is stored as float8."""
        return int8.is_float8(self)

    def _dtype(self) -> torch.dtype:
        """Of the dense weight."""
        return self._float_dtype if int8.is_narrow(self) else self.values.dtype

    def reset_parameters(self) -> None:
        """Make the weight and the bias zero: a legal 2:4 weight to load a state_dict into."""
        with torch.no_grad():
            self.values.zero_()
            self.indices.fill_(_EMPTY_GROUPS)
            if self.bias is not None:
                self.bias.zero_()

    @property
    def _form(self) -> Form:
        """Shape of the dense weight, and how it lies in the compressed matrix."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The dense weight, as a tensor whose numbers are the layer's: a :class:`~.weight.CompressedWeight`.

        Its shape, dtype and device cost nothing; ``F.linear``, ``F.conv2d``, ``matmul`` and ``addmm`` with it
        run sparse; anything else sees the dense values. What is written to it is in the layer if it is 2:4,
        and raises ValueError if not; what is stored in 8 bits is only read. While torch compiles or exports
        it is a dense copy.
        """
        if onnx.is_exported():
            return onnx.weight(self)
        if torch.compiler.is_compiling():
            if int8.is_narrow(self):
                return int8.dequantized(self, self._float_dtype)
            matrix: Tensor = torch.ops.sparse24.decompress(self.values, self.indices)
            return self._form.to_weight(matrix)
        return self._view()

    def _view(self) -> CompressedWeight:
        if int8.is_narrow(self):
            scale, _ = int8.scales_of(self)
            return CompressedWeight(
                self.values, self.indices, self._form, scale=scale, dtype=self._float_dtype
            )
        return CompressedWeight(self.values, self.indices, self._form)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._view().assign(value)
            return
        if name in ("values", "indices") and isinstance(value, Tensor):
            own = self._parameters.get(name, self._buffers.get(name))
            if own is not None and value.shape != own.shape:
                raise ValueError(
                    f"{name} of this {type(self).__name__} are {tuple(own.shape)}, not "
                    f"{tuple(value.shape)}: for a weight of another shape make another layer"
                )
        super().__setattr__(name, value)

    @torch.no_grad()
    def _fill(self, values: Tensor, indices: Tensor, bias: Tensor | None) -> None:
        self.values = nn.Parameter(values, requires_grad=False)
        self.indices = indices
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """values, indices, bias."""
        return self.values, self.indices, self.bias

    def _on_device(self, input: Tensor) -> Tensor | None:
        """The product on a GPU by the forms that this layer owns; ``None``: the operators have to do it."""
        return None if torch.compiler.is_compiling() else on_device.product_of(self, input)

    def _forget_launches(self) -> None:
        """Decide anew how products on a GPU run."""
        self.__dict__.pop("_launches", None)

    def _product_by(self, weight: Weight, input: Tensor, bias: Tensor | None, stream: Stream) -> Tensor:
        """The product on a GPU by whatever form ``weight`` has."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompressedModule:
        kept = int8.before_cast(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if kept is not None:
            int8.after_cast(self, kept, fn)
        self._forget_launches()
        forms, values = self.__dict__.get("_forms"), self._parameters.get("values")
        if forms is not None and values is not None:
            forms.be_on(values.device)  # what is left on another device is freed
        sweep()
        return self

    def _padding_columns(self) -> Tensor:
        """bool [K rounded up to 8]: True where a column only pads the layout, and must hold zeros."""
        used = self._form.to_matrix(torch.ones(1, *self._form.shape[1:]))[0] != 0
        padding = torch.ones(2 * self.values.shape[1], dtype=torch.bool)
        padding[: len(used)] = ~used
        return padding

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        version = local_metadata.get("version") or FORMAT
        if version > FORMAT:
            error_msgs.append(
                f"{prefix}values and indices have format {version}, which is newer than this sparse24 knows "
                f"({FORMAT}): install a newer one"
            )
            return
        if prefix + "weight" in state_dict and is_guard(prefix + "weight", state_dict):
            state_dict = {key: each for key, each in state_dict.items() if key != prefix + "weight"}
        state_dict = with_own_names(state_dict, prefix)
        try:
            state_dict = with_values(state_dict, prefix, self._form, self._dtype())
        except ValueError as error:
            error_msgs.append(f"{prefix}weight: {error}")
            return
        given = {key: state_dict.get(prefix + key) for key in ("values", "indices", "bias")}
        scales = [state_dict.get(prefix + key) for key in ("weight_scale", "input_scale")]
        problem = self._problem_with(**given) or int8.problem_with(self, given["values"], *scales)
        if problem is not None:
            error_msgs.append(f"{prefix}{problem}")
            return
        state_dict = int8.fit(self, state_dict, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _problem_with(self, values: Any, indices: Any, bias: Any) -> str | None:
        """Why this checkpoint cannot be loaded, or ``None``: looked at before anything is copied."""
        for key, tensor in (("values", values), ("indices", indices), ("bias", bias)):
            own = getattr(self, key)
            if tensor is not None and own is not None and tensor.shape != own.shape:
                return f"{key} has shape {tuple(tensor.shape)} in the checkpoint, {tuple(own.shape)} here"
        if (values is None) != (indices is None):
            return "values and indices belong together: the checkpoint holds only one of them"
        if indices is None or indices.is_meta or values.is_meta:
            return None
        return self._damage_in(values, indices)

    def _damage_in(self, values: Tensor, indices: Tensor) -> str | None:
        """What is illegal in a compressed weight of the right shape, or ``None``."""
        if indices.dtype != torch.uint8:
            return f"indices must be uint8, not {indices.dtype}"
        where = _first_disorder(indices)
        if where is not None:
            return (
                "indices are damaged: the two indices of a group must increase, but do not in "
                f"row {where[0]}, group {where[1]}"
            )
        columns = ops.kept_columns(indices)
        kept = values.float() != 0 if values.dtype in int8.FLOAT8 else values != 0
        beyond = (self._padding_columns().to(columns.device)[columns] & kept).nonzero()
        if len(beyond):
            row, slot = (int(i) for i in beyond[0])
            return f"values holds a non-zero in row {row}, column {int(columns[row, slot])}, which is padding"
        return None

    def _optional_repr(self) -> str:
        parts = ["" if self.bias is not None else ", bias=False"]
        if self.activation != "none":
            parts.append(f", activation={self.activation!r}")
        dtype = on_device.Glance(self).like[0].dtype
        if dtype != torch.float32:
            parts.append(f", dtype={dtype}")
        parts.append(int8.remark_of(self))
        return "".join(parts)

    def _refuse_activation(self, dense: str) -> None:
        if self.activation != "none":
            raise ValueError(
                f"this {type(self).__name__} fuses activation={self.activation!r}, which {dense} cannot "
                'hold: set module.activation = "none" and apply it after the layer'
            )
