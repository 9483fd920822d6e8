"""The name of version 0.1 for ``sparse24.pruning.asp``: scripts and pickles find it here."""

from .pruning.asp import ASP

__all__ = ["ASP"]
