"""How a dense weight lies in the matrix that is compressed, and the compression of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops


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


Form = LinearForm | Conv2dForm


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
