"""How a dense weight lies in the matrix that is compressed, and the compression of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..pruning.layers import is_transposed_linear
from .guard import CHILD


class NotSparse24Error(ValueError):
    """A weight that was to be compressed has a group with more than two non-zeros, at ``place``."""

    def __init__(self, place: str, shape: Sequence[int]) -> None:
        super().__init__(
            "at most two of every four weights along the input channels may be non-zero, but "
            f"{place} of the weight {tuple(shape)} hold more; "
            "prune it first: sparse24.Sparsifier(model).prune()"
        )
        self.place = place


class LinearForm(NamedTuple):
    """How the weight [out, in] of a linear layer lies in the matrix that is compressed."""

    shape: tuple[int, int]

    @property
    def columns(self) -> int:
        return self.shape[1]

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight

    def to_weight(self, matrix: Tensor) -> Tensor:
        return matrix[:, : self.shape[1]]

    def place(self, row: int, group: int) -> str:
        return f"row {row}, columns {4 * group}-{min(4 * group + 3, self.shape[1] - 1)}"


class Conv2dForm(NamedTuple):
    """How the weight [out, C, R, S] of a convolution does: as [out, R*S*C4], k ordered (r, s, c)."""

    shape: tuple[int, int, int, int]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[2:]) * ops.round_up(self.shape[1], 4)

    def to_matrix(self, weight: Tensor) -> Tensor:
        return ops.conv_weight_to_matrix(weight)

    def to_weight(self, matrix: Tensor) -> Tensor:
        return ops.conv_matrix_to_weight(matrix, self.shape[1], self.shape[2:])

    def place(self, row: int, group: int) -> str:
        _, channels, _, columns = self.shape
        tap, group = divmod(group, ops.round_up(channels, 4) // 4)
        r, s = divmod(tap, columns)
        return f"row {row}, tap ({r}, {s}), channels {4 * group}-{min(4 * group + 3, channels - 1)}"


class Conv1dForm(NamedTuple):
    """How the weight [out, C, K] of a one-dimensional convolution does: as that of a [1, K] one."""

    shape: tuple[int, int, int]

    @property
    def two_dimensional(self) -> Conv2dForm:
        out, channels, size = self.shape
        return Conv2dForm((out, channels, 1, size))

    @property
    def columns(self) -> int:
        return self.two_dimensional.columns

    def to_matrix(self, weight: Tensor) -> Tensor:
        return self.two_dimensional.to_matrix(weight.unsqueeze(2))

    def to_weight(self, matrix: Tensor) -> Tensor:
        return self.two_dimensional.to_weight(matrix).squeeze(2)

    def place(self, row: int, group: int) -> str:
        return self.two_dimensional.place(row, group)


class Conv3dForm(NamedTuple):
    """How the weight [out, C, T, R, S] of a 3-D one does: as [out, R*S*T*C4], k ordered (r, s, t, c)."""

    shape: tuple[int, int, int, int, int]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[2:]) * ops.round_up(self.shape[1], 4)

    def to_matrix(self, weight: Tensor) -> Tensor:
        channels = self.shape[1]
        taps = F.pad(weight.permute(0, 3, 4, 2, 1), (0, ops.round_up(channels, 4) - channels))
        return taps.reshape(len(weight), -1).contiguous()

    def to_weight(self, matrix: Tensor) -> Tensor:
        _, channels, t, r, s = self.shape
        taps = matrix[:, : self.columns].reshape(-1, r, s, t, ops.round_up(channels, 4))[..., :channels]
        return taps.permute(0, 4, 3, 1, 2).contiguous()

    def place(self, row: int, group: int) -> str:
        _, channels, planes, _, columns = self.shape
        tap, group = divmod(group, ops.round_up(channels, 4) // 4)
        tap, t = divmod(tap, planes)
        r, s = divmod(tap, columns)
        return f"row {row}, tap ({t}, {r}, {s}), channels {4 * group}-{min(4 * group + 3, channels - 1)}"


class StackForm(NamedTuple):
    """How weights [E, out, in], one for each expert, do: as [E*out, in]."""

    shape: tuple[int, int, int]

    @property
    def columns(self) -> int:
        return self.shape[2]

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(-1, self.shape[2])

    def to_weight(self, matrix: Tensor) -> Tensor:
        rows = matrix[:, : self.shape[2]]
        return rows.reshape(-1, *self.shape[1:])

    def place(self, row: int, group: int) -> str:
        expert, row = divmod(row, self.shape[1])
        last = min(4 * group + 3, self.shape[2] - 1)
        return f"expert {expert}, row {row}, columns {4 * group}-{last}"


class TurnedForm(NamedTuple):
    """How a weight [in, out] (transformers' ``Conv1D``) does: as its transpose."""

    shape: tuple[int, int]

    @property
    def columns(self) -> int:
        return self.shape[0]

    def to_matrix(self, weight: Tensor) -> Tensor:
        return weight.t().contiguous()

    def to_weight(self, matrix: Tensor) -> Tensor:
        return matrix[:, : self.shape[0]].t()

    def place(self, row: int, group: int) -> str:
        return f"column {row}, rows {4 * group}-{min(4 * group + 3, self.shape[0] - 1)}"


Form = LinearForm | Conv2dForm | Conv1dForm | Conv3dForm | StackForm | TurnedForm


def form_of(module: nn.Module, shape: tuple[int, ...]) -> Form:
    """How a weight of ``module`` lies in the matrix that is compressed."""
    if len(shape) == 2:
        two = (shape[0], shape[1])
        return TurnedForm(two) if is_transposed_linear(module) else LinearForm(two)
    if len(shape) == 3:
        three = (shape[0], shape[1], shape[2])
        return Conv1dForm(three) if isinstance(module, nn.Conv1d) else StackForm(three)
    if len(shape) == 5:
        return Conv3dForm((shape[0], shape[1], shape[2], shape[3], shape[4]))
    return Conv2dForm((shape[0], shape[1], shape[2], shape[3]))


def rows_of(form: Form) -> int:
    """The rows of the matrix that is compressed."""
    if isinstance(form, StackForm):
        return form.shape[0] * form.shape[1]
    return form.shape[1] if isinstance(form, TurnedForm) else form.shape[0]


def check_weight(weight: Tensor, form: Form, dtype: torch.dtype) -> None:
    """Refuse what :func:`compress_weight` would: costs a pass over the weight, and memory only for a cast
    or for another order of its dimensions.

    Raises:
        ValueError: ``weight`` is on the meta device.
        NotSparse24Error: a group of four along the input channels has more than two non-zeros.
    """
    if weight.is_meta:
        raise ValueError("the weight is on the meta device and holds no data to compress: load it first")
    _check_matrix(form.to_matrix(weight.detach().to(dtype)), form, weight)


def _check_matrix(matrix: Tensor, form: Form, weight: Tensor) -> None:
    where = ops.first_crowded(matrix)
    if where is not None:
        raise NotSparse24Error(form.place(*where), weight.shape)


def compress_weight(weight: Tensor, form: Form, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """values and indices of a dense 2:4 weight, cast to ``dtype``.

    Raises:
        ValueError: ``weight`` is on the meta device.
        NotSparse24Error: a group of four along the input channels has more than two non-zeros.
    """
    if weight.is_meta:
        raise ValueError("the weight is on the meta device and holds no data to compress: load it first")
    with torch.inference_mode(False), torch.no_grad():  # tensors that gradients may pass by later
        matrix = form.to_matrix(weight.detach().to(dtype))
        try:
            compressed: tuple[Tensor, Tensor] = torch.ops.sparse24.compress(matrix)
        except ValueError:
            _check_matrix(matrix, form, weight)
            raise
        return compressed


def with_own_names(state_dict: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
    """A checkpoint of the layer with its weight compressed in its place as one of the compressed layer."""
    start = f"{prefix}{CHILD}.weight."
    if f"{start}indices" not in state_dict:
        return state_dict
    return {
        prefix + key.removeprefix(start) if key.startswith(start) else key: each
        for key, each in state_dict.items()
    }


def with_values(
    state_dict: Mapping[str, Any], prefix: str, form: Form, dtype: torch.dtype
) -> Mapping[str, Any]:
    """A checkpoint of the dense layer as one of the compressed layer; others as they are.

    Raises:
        ValueError: the dense weight has another shape, is no floating one, or is not 2:4.
    """
    weight = state_dict.get(prefix + "weight")
    if weight is None or prefix + "values" in state_dict or prefix + "indices" in state_dict:
        return state_dict
    if weight.shape != form.shape:
        raise ValueError(f"has shape {tuple(weight.shape)} in the checkpoint, {form.shape} here")
    if not weight.is_floating_point():
        raise ValueError(f"a dense weight must be floating, not {weight.dtype}")
    values, indices = compress_weight(weight, form, dtype)
    rest = {key: value for key, value in state_dict.items() if key != prefix + "weight"}
    return {**rest, prefix + "values": values, prefix + "indices": indices}
