"""Which tensors of a file are pruned: without the model, names and shapes tell what a tensor is.

They decide conservatively: what may be a table, a head, an adapter, or lie as [in, out], is left alone.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..masks import Pattern
from ..pruning.heads import adapter_part, output_heads
from ..pruning.layers import compressed_bytes
from ..pruning.rules import ByMagnitude
from .errors import FileError

RULE = ByMagnitude(Pattern(2, 4))

#: Parts of names of layers that look rows up; their weights are not multiplied.
_TABLE = re.compile(
    r".*embed.*|(.+_)?embs?(_.+)?|wte|wpe|shared|relative_attention_bias|codebooks?|lookup.*|.*_table|"
    r"prototypes?|centers"
)
_NORM = re.compile(r".*norm.*|(.+_)?(ln|bn)(_.+)?\d*")
#: Convolutions that are stored as [in, out, ...].
_TRANSPOSED = re.compile(
    r"(.+_)?(de_?conv|conv_?trans(posed?)?|conv_?t|transp(osed?)?|t_?conv|up_?conv|ups?)(_.+)?\d*[a-z]?"
)
#: Names under which transformers' Conv1D stores weights as [in, out], and others as [out, in].
_EITHER_WAY = {"c_attn", "c_proj", "c_fc", "q_attn"}
#: From here on a matrix has more rows for its columns than layers have: a vocabulary.
_TABLE_ROWS, _TABLE_RATIO = 1000, 10


class Shown(NamedTuple):
    """What a file says of a tensor before its numbers are read."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str  #: the file's own word where torch has no such dtype
    place: Hashable = None  #: equal for two views of the same memory in the same order
    layout: torch.layout = torch.strided

    @property
    def has_row(self) -> bool:
        """Whether a report tells of it: what has rows and columns, and is no index or mask."""
        return len(self.shape) >= 2 and (isinstance(self.dtype, str) or self.dtype.is_floating_point)


class Plan(NamedTuple):
    """What becomes of the tensors of a state_dict, whatever files they are in."""

    reasons: dict[str, str]  #: why a tensor is left alone; empty for one to prune
    compressed: frozenset[str] | set[str] = frozenset()  #: written as what compressed layers hold
    guard: str = ""  #: one of those, beside which a guard is written


class Choice(NamedTuple):
    """What the user and the files beside say."""

    select: Sequence[str] = ()  #: names or fnmatch patterns; these alone, whatever their names say
    skip: Sequence[str] = ()  #: never these
    vocabularies: frozenset[int] = frozenset()  #: rows of embeddings and of heads, by config.json


def vocabularies_beside(path: Path) -> frozenset[int]:
    """The vocabulary sizes in the config.json of transformers in the folder of ``path``; none: empty."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return frozenset()
    parts = [config, *config.values()] if isinstance(config, dict) else []
    sizes = [part.get("vocab_size") for part in parts if isinstance(part, dict)]
    return frozenset(size for size in sizes if isinstance(size, int))


def check_patterns(names: Sequence[str], choice: Choice) -> None:
    """Refuse a pattern that matches nothing.

    Raises:
        FileError: it and the names are in the text.
    """
    for option, patterns in (("--select", choice.select), ("--skip", choice.skip)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise FileError(f"{option} {pattern} matches no tensor; there are: {', '.join(names)}")


def reasons_not_to(tensors: Mapping[str, Shown], choice: Choice, prefix: str = "") -> dict[str, str]:
    """Why each tensor of two or more dimensions is left alone; empty for one to prune.

    Args:
        tensors: of one state_dict, in the file's order; vectors too, for a bias tells how a weight lies.
        choice: see there.
        prefix: where the state_dict stands in its file ("state_dict."), for patterns.
    """
    rows = {name: shown for name, shown in tensors.items() if shown.has_row}
    reasons = {name: _why_not(name, tensors, choice, prefix) for name in rows}
    if not choice.select:
        _skip_heads(reasons, rows)
        _skip_tied(reasons, rows)
    return reasons


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _why_not(name: str, tensors: Mapping[str, Shown], choice: Choice, prefix: str) -> str:
    """Why a tensor is not pruned, by itself; empty if it may be."""
    shown = tensors[name]
    if obstacle := _obstacle(shown):
        return obstacle
    if _matches(prefix + name, choice.skip):
        return "--skip"
    if choice.select:
        return "" if _matches(prefix + name, choice.select) else "not selected"
    by_name = _why_not_by_name(name) or _why_not_by_shape(name, tensors, choice)
    return f"{by_name}; --select it to prune it" if by_name else ""


def _obstacle(shown: Shown) -> str:
    """Why no tensor of this kind can be pruned; empty if it can."""
    if shown.layout != torch.strided:
        return f"layout {shown.layout}"
    if isinstance(shown.dtype, str):
        return f"dtype {shown.dtype}: only floating weights of 16 bits or more"
    stand_in = torch.empty((), dtype=shown.dtype).expand(shown.shape)  # no memory
    return RULE.obstacle(stand_in, 1)


def _why_not_by_name(name: str) -> str:
    *layer, attribute = name.split(".")
    if not attribute.endswith("weight"):
        return "not named *weight"
    if any(_TABLE.fullmatch(part.lower()) for part in layer[-2:]) and layer[-2:-1] != ["shared"]:
        return "an embedding by its name"
    if part := adapter_part(name):
        return f"an adapter by its name ({part})"
    if layer and _NORM.fullmatch(layer[-1].lower()):
        return "a norm by its name"
    return ""


def _why_not_by_shape(name: str, tensors: Mapping[str, Shown], choice: Choice) -> str:
    shape, layer = tensors[name].shape, name.split(".")[:-1]
    if len(shape) not in (2, 4):
        return f"{len(shape)} dimensions (a Conv1d, a Conv3d, a stack of experts): prune the model"
    if shape[0] in choice.vocabularies:
        return f"an embedding or an output head: config.json has a vocabulary of {shape[0]}"
    if len(shape) == 2 and shape[0] >= max(_TABLE_ROWS, _TABLE_RATIO * shape[1]):
        return f"an embedding or an output head by its shape ({shape[0]} rows of {shape[1]})"
    if lies := _not_out_first(name, tensors, layer):
        return lies
    size = compressed_bytes(shape, 2)
    if size >= 2 * torch.Size(shape).numel():
        return "would stay dense: it is no smaller when compressed"
    return ""


def _not_out_first(name: str, tensors: Mapping[str, Shown], layer: Sequence[str]) -> str:
    """Why a weight may not lie as [out, in, ...]: a bias has one number for each output."""
    shape = tensors[name].shape
    bias = tensors.get(f"{name.removesuffix('weight')}bias")
    outs = None if bias is None or len(bias.shape) != 1 else bias.shape[0]
    if outs is not None and outs != shape[0]:
        return f"its bias has {outs} numbers, so it does not lie as [out, in, ...]"
    is_proven = outs is not None and outs != shape[1]
    if is_proven:
        return ""
    if len(shape) == 4 and any(_TRANSPOSED.fullmatch(part.lower()) for part in layer[-2:]):
        return "may be a ConvTranspose, stored as [in, out, ...], by its name"
    if layer and layer[-1] in _EITHER_WAY:
        return "may be stored as [in, out]: prune the model with Sparsifier"
    return ""


def _skip_heads(reasons: dict[str, str], tensors: Mapping[str, Shown]) -> None:
    """Mark the last weight of every part named like an output head, and what is shaped like one."""
    candidates = [name for name, reason in reasons.items() if not reason]
    if len(reasons) < 2:
        return
    for name in candidates:
        shape = tensors[name].shape
        if len(shape) == 2 and shape[0] < shape[1] and shape[0] % 8:
            reasons[name] = f"an output head by its shape ({shape[0]} outputs); --select it to prune it"
    others = [name for name in reasons if name not in candidates]
    tables = [tensors[n].shape for n, reason in reasons.items() if reason.startswith("an embedding")]
    for name, reason in output_heads({n: tensors[n].shape for n in candidates}, others, tables).items():
        if not reasons[name] or "by its name" in reason:
            reasons[name] = f"{reason}; --select it to prune it"


def _skip_tied(reasons: dict[str, str], tensors: Mapping[str, Shown]) -> None:
    tables = {tensors[n].place: n for n, reason in reasons.items() if reason.startswith("an embedding")}
    for name, reason in reasons.items():
        place = tensors[name].place
        if not reason and place is not None and (table := tables.get(place)):
            reasons[name] = f"tied to the embedding {table}; --select it to prune it"
