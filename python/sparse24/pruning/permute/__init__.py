"""Channel permutation: an order of channels in which 2:4 keeps more of a network with the same outputs."""

from __future__ import annotations

from .network import permute_network
from .reordered import Reordered
from .report import PermutationReport, PermutedRow
from .scores import Score

__all__ = ["PermutationReport", "PermutedRow", "Reordered", "Score", "permute_network"]
