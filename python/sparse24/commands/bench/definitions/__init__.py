"""The networks that are measured: their shapes, with random weights. Nothing is fetched.

The studies use the same definitions, so that a name means the same network everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from . import convolutions, transformers

#: Positional arguments of a network's call.
Inputs = tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Definition:
    """A network and the inputs that it is measured with."""

    name: str  #: "BERT-Large", as tables have it
    key: str  #: "bert-large", as the command line has it
    what: str  #: what one input is: "128 tokens"
    build: Callable[[float], nn.Module]  #: of this share of its depth; 1: the whole network, in eval mode
    inputs: Callable[[int, nn.Module], Inputs]  #: for a batch, in the network's dtype
    batches: tuple[int, ...] = (1, 8, 32)


DEFINITIONS = (
    Definition("BERT-Large", "bert-large", "128 tokens", transformers.bert_large, transformers.token_ids),
    Definition("ResNeXt-101 32x16d", "resnext-101", "224x224", convolutions.resnext_101, convolutions.images),
    Definition("ResNet-50", "resnet-50", "224x224", convolutions.resnet_50, convolutions.images),
    Definition("ViT-B/16", "vit-b-16", "224x224", transformers.vit_b_16, convolutions.images),
    Definition("MiniLM-L6", "minilm", "128 tokens", transformers.minilm, transformers.token_ids),
    Definition(
        "Llama-shaped, prefill", "llama-prefill", "128 tokens", transformers.llama, transformers.prefill
    ),
    Definition(
        "Llama-shaped, decode", "llama-decode", "1 token after 128", transformers.llama, transformers.decode
    ),
)


def of_key(key: str) -> Definition:
    """The definition of a key.

    Raises:
        ValueError: there is none; the keys are named.
    """
    for definition in DEFINITIONS:
        if definition.key == key:
            return definition
    raise ValueError(f"there is no network {key!r}; the networks are {', '.join(d.key for d in DEFINITIONS)}")
