"""The moments of a layer's inputs: their mean, and second moments, accumulated in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Rows whose deviations are formed at once.
_ROWS = 4096


class Moments:
    """Sums over all rows x [K] that were added, as deviations from the mean of the first ones.

    Deviations keep the covariance exact where the mean is large beside it.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self._products = torch.zeros(columns, columns, device=device)
        self._sum = torch.zeros(columns, device=device)
        self._shift = torch.zeros(columns, device=device)
        self.rows = 0

    @property
    def columns(self) -> int:
        """K."""
        return len(self._sum)

    def add(self, rows: Tensor) -> None:
        """Add rows [n, K], float32."""
        if self.rows == 0 and len(rows):
            self._shift = rows.mean(0)
        for begin in range(0, len(rows), _ROWS):
            deviations = rows[begin : begin + _ROWS] - self._shift
            self._products.addmm_(deviations.t(), deviations)
            self._sum += deviations.sum(0)
        self.rows += len(rows)

    def summed_up(self, add: Callable[[Tensor], Tensor]) -> Moments:
        """These rows and those of other processes.

        Args:
            add: the sum of a tensor over all processes, which all call in the same order.
        """
        found = Moments(len(self._sum), self._sum.device)
        counted = add(torch.tensor([self.rows], dtype=torch.int64, device=self._sum.device))
        found.rows = int(counted)
        found._shift = add(self._shift * (self.rows / max(found.rows, 1)))
        moved = self._shift - found._shift
        across = torch.outer(moved, self._sum)
        products = self._products + across + across.t() + self.rows * torch.outer(moved, moved)
        found._products = add(products)
        found._sum = add(self._sum + self.rows * moved)
        return found

    def check(self, name: str) -> None:
        """Refuse what cannot be used.

        Raises:
            ValueError: a row held NaN or Inf; ``name`` says whose.
        """
        if not bool(self._products.diagonal().isfinite().all()):
            raise ValueError(f"the inputs of {name} hold NaN or Inf: calibrate on batches without them")

    @property
    def mean(self) -> Tensor:
        """E[x] [K]; zeros where no row came."""
        return self._shift + self._sum / max(self.rows, 1)

    @property
    def covariance(self) -> Tensor:
        """E[x x^T] - E[x] E[x]^T [K, K]; the identity where no row came, so that magnitudes decide."""
        if self.rows == 0:
            return torch.eye(len(self._sum), device=self._sum.device)
        apart = self._sum / self.rows
        return torch.addr(self._products / self.rows, apart, apart, alpha=-1)

    @property
    def second(self) -> Tensor:
        """H = E[x x^T] [K, K]; the identity where no row came."""
        mean = self.mean
        return torch.addr(self.covariance, mean, mean)
