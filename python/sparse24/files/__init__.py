"""state_dicts in files: read, write, look at, prune, without the model that they belong to."""

from .formats import FileError, StateFile, is_safetensors, read, write
from .state_dicts import prune, report

__all__ = ["FileError", "StateFile", "is_safetensors", "prune", "read", "report", "write"]
