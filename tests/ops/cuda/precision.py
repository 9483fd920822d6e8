"""Dtypes and tolerances of what the emulated tensor cores compute."""

from __future__ import annotations

from torch import Tensor

from emulated import FLOAT
from reference import assert_matches, relative_error

#: TF32 keeps 10 bits of each operand's fraction.
TF32_TOLERANCE = 1e-3


def close(actual: Tensor, expected: Tensor) -> None:
    if actual.dtype is FLOAT:
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) <= TF32_TOLERANCE
    else:
        assert_matches(actual, expected)
