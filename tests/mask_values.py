"""Values that masks are computed for."""

from __future__ import annotations

import math

import torch

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAN, INF = math.nan, math.inf
