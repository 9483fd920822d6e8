"""state_dicts in files: read, write, look at, prune, without the model that they belong to."""

from .choice import Choice, vocabularies_beside
from .destination import check
from .errors import FileError
from .formats import StateFile, check_is_file, is_safetensors, read, write
from .state_dicts import prune, report
from .streaming import prune_safetensors

__all__ = [
    "Choice",
    "FileError",
    "StateFile",
    "check",
    "check_is_file",
    "is_safetensors",
    "prune",
    "prune_safetensors",
    "read",
    "report",
    "vocabularies_beside",
    "write",
]
