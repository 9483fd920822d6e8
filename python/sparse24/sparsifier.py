"""The name of version 0.1 for ``sparse24.pruning.sparsifier``: scripts and pickles find it here."""

from .pruning.sparsifier import Sparsifier

__all__ = ["Sparsifier"]
