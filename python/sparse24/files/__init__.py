"""state_dicts in files: read, write, look at, prune, without the model that they belong to."""

from .apex import from_apex
from .bitmask import from_bitmask, to_bitmask
from .choice import Choice, vocabularies_beside
from .destination import check
from .errors import FileError
from .folders import check_folder, making, mark_config, prune_folder
from .formats import METADATA_KEY, StateFile, check_is_file, is_safetensors, read, write
from .ggml import from_gguf
from .loading import load, read_all
from .saving import save
from .semi_structured import from_semi_structured, to_semi_structured
from .shards import is_index, shards_of
from .state_dicts import prune, report
from .streaming import prune_safetensors, read_header

__all__ = [
    "METADATA_KEY",
    "Choice",
    "FileError",
    "StateFile",
    "check",
    "check_folder",
    "check_is_file",
    "from_apex",
    "from_bitmask",
    "from_gguf",
    "from_semi_structured",
    "is_index",
    "is_safetensors",
    "load",
    "making",
    "mark_config",
    "prune",
    "prune_folder",
    "prune_safetensors",
    "read",
    "read_all",
    "read_header",
    "report",
    "save",
    "shards_of",
    "to_bitmask",
    "to_semi_structured",
    "vocabularies_beside",
    "write",
]
