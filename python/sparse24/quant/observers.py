"""What a layer's inputs range over, and the int8 scale that follows.

Scales are symmetric: int8 is round(x / scale), from -127 to 127. An observer keeps a histogram of |x| whose
range doubles as it has to, so batches are looked at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: int8 levels above zero.
LEVELS = 127
_BINS = 2048
#: Candidates for a threshold, as numbers of bins: int8 needs at least its levels.
_STEP = 16


class Observer:
    """The absolute values of all tensors that were added."""

    def __init__(self) -> None:
        self.absmax = 0.0
        self.count = 0
        self._range = 0.0  #: of the histogram
        self._bins = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Look at a tensor of any shape.

        Raises:
            ValueError: it holds NaN or Inf.
        """
        if x.numel() == 0:
            return
        size = x.detach().abs().float().flatten()
        largest = float(size.max())
        if not math.isfinite(largest):
            raise ValueError("holds NaN or Inf")
        self.count += x.numel()
        self.absmax = max(self.absmax, largest)
        if largest > self._range:
            self._widen(largest)
        if self._range > 0:
            self._bins += torch.histc(size, _BINS, 0.0, self._range).double().cpu()
        else:  # zeros, before there is a range
            self._bins[0] += x.numel()

    def _widen(self, largest: float) -> None:
        """Let the range reach ``largest``: neighbouring bins are merged for each doubling."""
        if self._range == 0:
            zeros = float(self._bins[0])
            self._range = largest
            self._bins.zero_()
            self._bins[0] = zeros
        while self._range < largest:
            self._range *= 2
            merged = self._bins.view(-1, 2).sum(1)
            self._bins = torch.cat([merged, torch.zeros(_BINS // 2, dtype=torch.float64)])

    @property
    def _centres(self) -> Tensor:
        return (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (self._range / _BINS)

    def at_percentile(self, percentile: float) -> float:
        """The value that so many percent of magnitudes do not exceed, to a bin's width."""
        if percentile >= 100 or self._range == 0:
            return self.absmax
        shares = self._bins.cumsum(0) / self._bins.sum()
        index = int(torch.searchsorted(shares, percentile / 100))
        return min((index + 1) * self._range / _BINS, self.absmax)

    def of_least_error(self) -> float:
        """The threshold of the least mean squared error, rounding and clipping together."""
        centres = self._centres

        def error(threshold: float) -> float:
            step = threshold / LEVELS
            rounded = (centres / step).round().clamp(max=LEVELS) * step
            return float(((centres - rounded).square() * self._bins).sum())

        return self._best(error)

    def of_least_divergence(self) -> float:
        """The threshold whose int8 histogram diverges least from the true one (Kullback, Leibler).

        As published for TensorRT (S. Migacz, "8-bit inference with TensorRT", 2017): what is clipped counts
        in the last bin of the reference, and is missing from the quantized histogram. Zeros, of which ReLU
        makes many, are exact under any scale: their bin counts as the next one.
        """

        bins = self._bins.clone()
        bins[0] = bins[1]

        def divergence(threshold: float) -> float:
            count = max(round(threshold / self._range * _BINS), LEVELS + 1)
            inside = bins[:count]
            reference = inside.clone()
            reference[-1] += bins[count:].sum()
            level = (torch.arange(count, dtype=torch.float64) * ((LEVELS + 1) / count)).long()
            held = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add(0, level, inside)
            filled = torch.zeros(LEVELS + 1, dtype=torch.float64).index_add(0, level, (inside > 0).double())
            spread = torch.where(inside > 0, (held / filled.clamp_min(1))[level], 0.0)
            p, q = reference / reference.sum(), spread / spread.sum().clamp_min(1e-30)
            seen = p > 0
            return float((p[seen] * (p[seen] / q[seen].clamp_min(1e-12)).log()).sum())

        return self._best(divergence)

    def _best(self, cost: Callable[[float], float]) -> float:
        if self._range == 0:
            return 0.0
        counts = range(LEVELS + 1, _BINS + 1, _STEP)
        candidates = [min(count * self._range / _BINS, self.absmax) for count in counts]
        candidates = [c for c in dict.fromkeys(candidates) if c > 0] or [self.absmax]
        return min(candidates, key=cost)


def threshold(observer: Observer, method: str, percentile: float) -> float:
    """The magnitude that becomes 127, by one of :data:`METHODS`; 0 where only zeros were seen."""
    if method == "max":
        return observer.absmax
    if method == "percentile":
        return observer.at_percentile(percentile)
    return observer.of_least_error() if method == "mse" else observer.of_least_divergence()


METHODS = ("max", "percentile", "mse", "entropy")
