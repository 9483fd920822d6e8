"""Output heads and adapters, told by their names and by their place in the network that they belong to.

Names are read as a tree, so that the same rule serves a model and a file. A model may be wrapped (a
LightningModule, an AveragedModel, a Task) or be several networks in one module (a GAN, a student and its
teacher): "fc" is a head where it stands at the top of a network, wherever that is, and none in a block.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

#: Parts that are heads wherever they stand.
_ANYWHERE = {
    "lm_head", "classifier", "output_projection", "embed_out", "visual_projection", "text_projection",
    "class_embed", "bbox_embed", "bbox_predictor", "bbox_pred", "cls_score", "cls_logits", "qa_outputs",
    "logits", "to_logits",
}  # fmt: skip
#: The same by their ending, but for MobileNets' last features and the heads of an attention.
_ANYWHERE_ENDING = re.compile(r"(?!conv_head|multi_head|.*att(n|ention)_head).+_(head|classifier|logits)")
#: Parts that are heads at the top of a network.
_AT_TOP = {
    "head", "heads", "head_dist", "fc", "out", "output", "score", "final", "final_layer", "unembed",
    "conv_out", "proj_out",
}  # fmt: skip
#: Lists of which every entry is a head (DETR's copies for each decoder layer).
_LISTS = {"class_embed", "bbox_embed"}
_ADAPTER = re.compile(r"(lora|loha|lokr|hada|dora|adapters?)(_.+)?|.+_(lora|adapter)")
#: Weights that a layer with children of its own holds.
_OF_ATTENTION = {"in_proj_weight", "q_proj_weight"}

Shape = Sequence[int]


def adapter_part(name: str) -> str:
    """The part of a name by which a weight belongs to an adapter ("lora_A"); empty if none does."""
    return next((part for part in name.split(".") if _ADAPTER.fullmatch(part)), "")


@dataclasses.dataclass
class _Node:
    """A part of a network: what it holds itself, and its parts."""

    path: str = ""
    own: list[str] = dataclasses.field(default_factory=list)
    parts: dict[str, _Node] = dataclasses.field(default_factory=dict)

    @property
    def is_layer(self) -> bool:
        return not self.parts or not _OF_ATTENTION.isdisjoint(self.own)

    @property
    def is_list(self) -> bool:
        """A ModuleList or Sequential: its parts are blocks, not networks."""
        return bool(self.parts) and all(part.isdecimal() for part in self.parts)


def _tree(names: Sequence[str]) -> _Node:
    root = _Node()
    for name in names:
        node = root
        *path, attribute = name.split(".")
        for part in path:
            node = node.parts.setdefault(part, _Node(f"{node.path}.{part}" if node.path else part))
        node.own.append(attribute)
    return root


def _networks(node: _Node, is_first: bool = True) -> Iterator[_Node]:
    """The networks in a model: itself without what only wraps it, and networks that are parts of it."""
    while not node.own and len(node.parts) == 1:
        (only,) = node.parts.values()
        if only.is_layer or only.is_list:
            break
        node = only
    yield node
    if node.is_list:
        return
    only_holds_others = not node.own and not any(part.is_layer for part in node.parts.values())
    for part in node.parts.values():
        if part.is_layer or part.is_list:
            continue
        holds_blocks = any(not inner.is_layer for inner in part.parts.values())
        if holds_blocks or (is_first and only_holds_others):
            yield from _networks(part, is_first=False)


def output_heads(
    weights: Mapping[str, Shape], others: Sequence[str] = (), tables: Sequence[Shape] = ()
) -> dict[str, str]:
    """Why weights count as output heads, by name.

    A head is the last weight of a part that is called like one ("lm_head" anywhere, "fc" at the top of a
    network), and the last weight of a network that scores classes: as large as the largest of ``tables``,
    or narrowing to a width that is not a multiple of 8.

    Args:
        weights: shapes [out, in, ...] of the weights that can be pruned, by name, in the model's order.
        others: names of further weights, which show where parts are.
        tables: shapes of the embeddings.
    """
    if len(weights) + len(others) < 2:
        return {}
    networks = list(_networks(_tree([*weights, *others])))
    heads: dict[str, str] = {}
    for part in _head_parts(weights, {"", *(network.path for network in networks)}):
        heads[_weights_in(part, weights)[-1]] = f"an output head by its name ({part})"
    for network in networks:
        inside = _weights_in(network.path, weights)
        if len(inside) > 1 and (reason := _scores_classes(weights[inside[-1]], tables)):
            heads.setdefault(inside[-1], reason)
    return heads


def _head_parts(weights: Mapping[str, Shape], networks: set[str]) -> list[str]:
    """The parts that are called like heads, by their paths."""
    found: dict[str, None] = {}
    for name in weights:
        parts = name.split(".")[:-1]
        for i, part in enumerate(parts):
            at_top = part in _AT_TOP and ".".join(parts[:i]) in networks
            if not at_top and part not in _ANYWHERE and not _ANYWHERE_ENDING.fullmatch(part):
                continue
            is_listed = part in _LISTS and len(parts) > i + 1 and parts[i + 1].isdecimal()
            found[".".join(parts[: i + 2 if is_listed else i + 1])] = None
            break
    return list(found)


def _weights_in(part: str, weights: Mapping[str, Shape]) -> list[str]:
    return [name for name in weights if not part or name.startswith(f"{part}.")]


def _scores_classes(shape: Shape, tables: Sequence[Shape]) -> str:
    """Why a network's last weight is a head, by its shape [out, in]; empty if it is none."""
    if len(shape) != 2:
        return ""
    if tuple(shape) == max(map(tuple, tables), default=(0, 0)):  # the vocabulary has the most rows
        return f"an output head: the last layer, with one output for each of {shape[0]} embeddings"
    if shape[0] < shape[1] and shape[0] % 8:
        return f"an output head: the last layer, with {shape[0]} outputs"
    return ""
