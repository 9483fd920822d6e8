"""Which weights of a network are pruned, by which rule, and how they stay pruned while it is trained."""

from .asp import ASP
from .sparsifier import Sparsifier

__all__ = ["ASP", "Sparsifier"]
