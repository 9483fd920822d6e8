"""The second moments of a layer's inputs: H = mean of x x^T, accumulated in float32."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """H [K, K] of all rows that were added."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self._sum = torch.zeros(columns, columns, device=device)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Add rows [n, K], float32."""
        self._sum.addmm_(rows.t(), rows)
        self.rows += len(rows)

    def mean(self, name: str) -> Tensor:
        """H; the identity where no row came, so that magnitudes decide.

        Raises:
            ValueError: a row held NaN or Inf; ``name`` says whose.
        """
        if self.rows == 0:
            return torch.eye(len(self._sum), device=self._sum.device)
        if not bool(self._sum.diagonal().isfinite().all()):
            raise ValueError(f"the inputs of {name} hold NaN or Inf: calibrate on batches without them")
        return self._sum / self.rows
