"""Whether a 16-bit sparse product is expected to beat a dense one, by times that others published.

``bench/routes.py`` fits the table and says where the times are from. What was not measured has no figures
here.
"""

from __future__ import annotations

import math

import torch

#: Sizes within which there are figures; beyond them the nearest count.
TOKENS, SIDES = (64, 65536), (1024, 65536)


def features(tokens: int, m: int, k: int) -> tuple[float, ...]:
    """What the logarithm of dense over sparse is a sum of: quadratic in the sizes' logarithms, with bends
    where weight, input, output and work outgrow something (caches, the number of tiles)."""
    a = math.log2(min(max(tokens, TOKENS[0]), TOKENS[1])) - 9
    b, c = (math.log2(min(max(side, SIDES[0]), SIDES[1])) - 12 for side in (m, k))
    bends = (max(0.0, b + c), max(0.0, a + b), max(0.0, a + c), max(0.0, a + b + c - 3))
    return (1.0, a, b, c, a * a, b * b, c * c, a * b, a * c, b * c, *bends)


def name(sm: int, dtype: torch.dtype) -> tuple[int, str]:
    """What the table is asked by."""
    return sm, str(dtype).removeprefix("torch.")


def gain(sm: int, dtype: torch.dtype, tokens: int, m: int, k: int) -> float | None:
    """Dense over sparse as the model has it, above one where sparse is faster; ``None``: no figures."""
    weights = WEIGHTS.get(name(sm, dtype))
    if weights is None:
        return None
    return math.exp(sum(w * f for w, f in zip(weights, features(tokens, m, k), strict=True)))


#: By architecture and dtype.
# ---- written by bench/routes.py ----
# fmt: off
WEIGHTS: dict[tuple[int, str], tuple[float, ...]] = {
    (80, "bfloat16"): (
        0.4277, 0.0615, 0.1530, 0.1002, 0.0005, -0.0097, 0.0071,
        -0.0152, -0.0070, 0.0174, -0.0977, -0.0519, 0.0118, -0.0176,
    ),
    (80, "float16"): (
        0.4277, 0.0615, 0.1530, 0.1002, 0.0005, -0.0097, 0.0071,
        -0.0152, -0.0070, 0.0174, -0.0977, -0.0519, 0.0118, -0.0176,
    ),
    (89, "bfloat16"): (
        0.5124, 0.1024, 0.0972, 0.0167, 0.0074, -0.0413, 0.0238,
        -0.0103, -0.0052, -0.0270, 0.0574, -0.0738, -0.0231, -0.0252,
    ),
    (89, "float16"): (
        0.5124, 0.1024, 0.0972, 0.0167, 0.0074, -0.0413, 0.0238,
        -0.0103, -0.0052, -0.0270, 0.0574, -0.0738, -0.0231, -0.0252,
    ),
    (90, "bfloat16"): (
        0.0871, 0.1464, 0.1379, 0.0602, 0.0072, -0.0089, -0.0124,
        0.0082, 0.0153, 0.0100, 0.0904, -0.0475, 0.0003, -0.1687,
    ),
    (100, "bfloat16"): (
        0.1396, 0.0080, -0.0184, 0.0249, 0.0037, -0.0050, -0.0149,
        -0.0094, -0.0009, -0.0455, 0.1026, 0.0530, 0.0059, -0.0371,
    ),
    (100, "float16"): (
        0.1396, 0.0080, -0.0184, 0.0249, 0.0037, -0.0050, -0.0149,
        -0.0094, -0.0009, -0.0455, 0.1026, 0.0530, 0.0059, -0.0371,
    ),
    (120, "bfloat16"): (
        0.6414, 0.0935, 0.1424, 0.0485, -0.0056, -0.0315, -0.0008,
        -0.0189, -0.0239, -0.0212, -0.0077, -0.0960, -0.0020, 0.0878,
    ),
    (120, "float16"): (
        0.6414, 0.0935, 0.1424, 0.0485, -0.0056, -0.0315, -0.0008,
        -0.0189, -0.0239, -0.0212, -0.0077, -0.0960, -0.0020, 0.0878,
    ),
    (121, "bfloat16"): (
        0.4398, -0.1355, 0.1497, 0.1529, -0.0037, 0.0444, -0.0030,
        -0.0646, -0.0875, 0.0796, -0.5128, -0.1111, 0.1625, 0.2438,
    ),
    (121, "float16"): (
        0.4398, -0.1355, 0.1497, 0.1529, -0.0037, 0.0444, -0.0030,
        -0.0646, -0.0875, 0.0796, -0.5128, -0.1111, 0.1625, 0.2438,
    ),
}
# fmt: on
# ---- to here ----
