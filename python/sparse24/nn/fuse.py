"""Activations that follow a compressed layer, folded into its product where the graph is plain."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..report import Report
from .conv2d import SparseConv2d
from .conv3d import SparseConv3d
from .linear import SparseLinear
from .swap import places_of

#: Blocks that apply an activation to the output of one layer and nothing else to it, by module and class:
#: the names of the layer and of the activation. Subclasses may do something else, and are not known.
BLOCKS = {
    ("torch.nn.modules.transformer", "TransformerEncoderLayer"): ("linear1", "activation"),
    ("torch.nn.modules.transformer", "TransformerDecoderLayer"): ("linear1", "activation"),
    ("transformers.models.bert.modeling_bert", "BertIntermediate"): ("dense", "intermediate_act_fn"),
    ("transformers.models.roberta.modeling_roberta", "RobertaIntermediate"): ("dense", "intermediate_act_fn"),
    ("transformers.models.electra.modeling_electra", "ElectraIntermediate"): ("dense", "intermediate_act_fn"),
    ("transformers.models.mpnet.modeling_mpnet", "MPNetIntermediate"): ("dense", "intermediate_act_fn"),
    ("transformers.models.vit.modeling_vit", "ViTMLP"): ("fc1", "activation_fn"),
    ("transformers.models.clip.modeling_clip", "CLIPMLP"): ("fc1", "activation_fn"),
    ("transformers.models.gpt2.modeling_gpt2", "GPT2MLP"): ("c_fc", "act"),
}
#: transformers' modules for the functions that products fuse; the first two differ from them by rounding.
_TRANSFORMERS = {"NewGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh", "GELUActivation": "gelu"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FoldedActivation(nn.Identity):
    """Stands in a sequence where an activation was that the layer before it applies now; ``to_dense`` puts
    it back."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.folded = (activation,)  # in a tuple: a module in here is no child

    def extra_repr(self) -> str:
        return f"{_title(self.folded[0])}, in the layer before"


class FoldedAttribute:
    """The same in a block. No module: copies of torch's decoder layers apply ReLU instead of one."""

    def __init__(self, activation: Any) -> None:
        self.folded = (activation,)

    def __call__(self, input: Tensor) -> Tensor:
        return input

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_title(self.folded[0])}, in the layer before)"


class Place(NamedTuple):
    """A layer, and the activation that its parent applies to its output."""

    parent: nn.Module
    parent_name: str
    layer_name: str
    activation_name: str

    @property
    def layer(self) -> Any:
        return getattr(self.parent, self.layer_name)

    @property
    def activation(self) -> Any:
        return getattr(self.parent, self.activation_name)

    def put(self, activation: Any) -> None:
        """Let the parent apply ``activation``: a module or a function, where a module or a function was."""
        if not isinstance(activation, nn.Module):
            self.parent._modules.pop(self.activation_name, None)
        setattr(self.parent, self.activation_name, activation)

    def fold(self, name: str) -> None:
        """Let the layer apply the activation, which is called ``name`` there, and the parent nothing."""
        kind = FoldedActivation if isinstance(self.parent, nn.Sequential) else FoldedAttribute
        layer = self.layer
        self.put(kind(self.activation))
        layer.activation = name


def fuse_activations(model: nn.Module, report: Report) -> Report:
    """Fold every ReLU or GELU that follows a compressed layer into it; ``report`` with what was folded.

    In ``nn.Sequential`` and the :data:`BLOCKS`, where nobody listens to what is between the two and the layer
    has one place only. The activation's place is taken by a :class:`FoldedActivation`
    or :class:`FoldedAttribute`.
    """
    places = places_of(model)
    folded: dict[str, str] = {}
    for place in _pairs(model):
        layer, activation = place.layer, place.activation
        name = _fused_name(activation)
        if name is None or _is_listened_to(layer, activation) or len(places[id(layer)]) > 1:
            continue
        place.fold(name)
        full_name = f"{place.parent_name}.{place.layer_name}".removeprefix(".")
        folded[full_name] = f"{_title(activation)} ({place.activation_name}) folded in"
    rows = [
        dataclasses.replace(row, reason="; ".join(filter(None, (row.reason, folded[row.name]))))
        if row.name in folded
        else row
        for row in report
    ]
    return Report(tuple(rows), report.action)


def folds_of(model: nn.Module) -> dict[int, Place]:
    """Where :func:`fuse_activations` folded something, by the identity of the layer."""
    return {
        id(place.layer): place
        for place in _pairs(model)
        if isinstance(place.activation, FoldedActivation | FoldedAttribute)
        and hasattr(place.layer, "activation")
    }


def _pairs(model: nn.Module) -> Iterator[Place]:
    """Layers and what is applied to their outputs alone, as far as the graph is known."""
    for name, module in model.named_modules():
        kind = type(module)
        if kind.forward is nn.Sequential.forward and "forward" not in vars(module):
            children = list(module._modules)
            for first, second in itertools.pairwise(children):
                yield Place(module, name, first, second)
        elif (kind.__module__, kind.__qualname__) in BLOCKS and "forward" not in vars(module):
            yield Place(module, name, *BLOCKS[kind.__module__, kind.__qualname__])


def _fused_name(activation: Any) -> str | None:
    """What products call an activation; None: they have none such."""
    if activation is F.relu or activation is torch.relu or type(activation) is nn.ReLU:
        return "relu"
    if activation is F.gelu:
        return "gelu"
    if type(activation) is nn.GELU:
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    if type(activation).__module__ == "transformers.activations":
        return _TRANSFORMERS.get(type(activation).__name__)
    return None


def _is_listened_to(layer: Any, activation: Any) -> bool:
    """Whether somebody would see that an activation has moved."""
    if type(layer) not in (SparseLinear, SparseConv2d, SparseConv3d) or layer.activation != "none":
        return True
    if layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return True
    return isinstance(activation, nn.Module) and any(getattr(activation, hooks) for hooks in _HOOKS)


def _title(activation: Any) -> str:
    return type(activation).__name__ if isinstance(activation, nn.Module) else str(activation.__name__)
