"""Which weights of a network an N:M pattern applies to, along which dim, and why not the others.

Prunable: the weights of ``Linear``, ``Conv1d`` to ``Conv3d``, ``MultiheadAttention`` and recurrent layers,
subclasses included, of transformers' ``Conv1D``, and its stacks of experts. Left alone unless selected by
name:

* what would stay dense afterwards (``layers``): a layer without a kernel or with a ``forward`` of its own,
  a weight that two layers share, one that is no smaller when compressed;
* output heads, which a network feels most: what ``get_output_embeddings()`` returns, and what ``heads``
  tells by name and place;
* weights tied to an embedding, and adapters (LoRA's A and B).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .by_tensors import weights_by_tensors
from .heads import adapter_part, output_heads
from .layers import Owners, compressed_bytes, is_transposed_linear, runs_dense, stays_dense
from .rules import unfit

#: Children under which a module holds the one it stands in for (torch.compile, activation
#: checkpointing, FSDP1); names leave them out.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One weight of a layer; ``blocked`` and ``skipped`` are empty for a weight to prune."""

    name: str  #: of the parameter, qualified, wrappers left out
    layer: str  #: the layer's name, or the parameter's where a layer holds several
    kind: str  #: class name of the layer
    dim: int  #: groups run along it: the input channels
    blocked: str = ""  #: why it cannot be pruned
    skipped: str = ""  #: why it is left alone unless selected
    dense: str = ""  #: why its layer would stay dense, pruned or not; left alone unless selected
    alias_of: str = ""  #: the name under which the same tensor was met first

    @property
    def module_name(self) -> str:
        """The layer's name in the model."""
        return self.name.rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The parameter's name in its layer."""
        return self.name.rpartition(".")[2]


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``."""
    model = _inner(model)
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = _inner(model.module)
    return model


def _inner(module: nn.Module) -> nn.Module:
    for name in _WRAPPERS:
        if (inner := module._modules.get(name)) is not None:
            return _inner(inner)
    return module


def clean_name(name: str) -> str:
    """``name`` as it reads without the wrappers on its path."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, wrappers left out."""
    return {clean_name(name): _inner(module) for name, module in model.named_modules()}


def layer_at(model: nn.Module, name: str) -> nn.Module | None:
    """The layer of that name (without wrappers), wrappers taken off; None where there is none.

    Unlike ``get_submodule``, it finds a layer whose name is also that of a method ("half", "type").
    """
    layer: nn.Module | None = _inner(model)
    for part in name.split(".") if name else ():
        layer = None if layer is None else layer._modules.get(part)
        layer = None if layer is None else _inner(layer)
    return layer


def stored_weight(layer: nn.Module | None, attribute: str) -> Tensor | None:
    """A weight, or what it is parametrized from where that is one tensor; nothing is computed."""
    if layer is None:
        return None
    if parametrize.is_parametrized(layer, attribute):
        layer, attribute = layer.parametrizations[attribute], "original"  # type: ignore[index,assignment]
    stored = layer._parameters.get(attribute, layer.__dict__.get(attribute))
    return stored if isinstance(stored, Tensor) else None


def find_candidates(
    model: nn.Module, custom_layers: Mapping[type[nn.Module], Sequence[str]] | None = None
) -> list[Candidate]:
    """Every weight of two or more dimensions that ``model`` (unwrapped) holds, in module order.

    Args:
        model: the network.
        custom_layers: further layer types, each with the names of its weights [out, in, ...].
    """
    owners = Owners(model)
    attentions: dict[int, str] = {}  # why an attention stays dense, by the identity of its parts
    found = []
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        dense = attentions.get(id(module), "")
        if isinstance(module, nn.MultiheadAttention):
            dense = _attention_stays_dense(module, name, owners)
            attentions.update({id(part): dense for part in module.modules()})
        for candidate in _of_module(clean_name(name), module, custom_layers or {}):
            weight = module._parameters.get(candidate.attribute)
            if not candidate.blocked and weight is not None:
                raw_name = f"{name}.{candidate.attribute}" if name else candidate.attribute
                reason = dense or _stays_dense(module, weight, owners.others(weight, raw_name))
                candidate = dataclasses.replace(candidate, dense=reason)  # noqa: PLW2901
            found.append((candidate, weight))
    heads = _output_heads(model, found)
    tables = _embedding_tables(model)
    return _merge_shared([_with_default(c, weight, heads, tables) for c, weight in found], found)


def _attention_stays_dense(module: nn.MultiheadAttention, name: str, owners: Owners) -> str:
    """An attention is converted whole or not at all."""
    if reason := stays_dense(module):
        return reason
    if module.kdim == 3 or module.vdim == 3:  # a group of three is kept whole, and not 2:4
        return "it is converted whole, and one of its weights has 3 input channels, too few to be pruned"
    for own, weight in module.named_parameters():
        if not own.endswith("weight") or weight.is_meta:
            continue
        if unusable := unfit(weight):
            return f"it is converted whole, and its {own} cannot be: {unusable}"
        if others := owners.others(weight, f"{name}.{own}" if name else own):
            return f"it is converted whole, and its {own} is shared with {', '.join(map(clean_name, others))}"
    return ""


def _stays_dense(module: nn.Module, weight: Tensor, others: Sequence[str]) -> str:
    """Why a weight of a layer would stay dense, as far as that can be said before it is pruned."""
    if reason := runs_dense(module):
        return reason
    if others:
        return f"its weight is shared with {', '.join(map(clean_name, others))}: untie it first"
    if nn.parameter.is_lazy(weight) or weight.dim() < 2:
        return ""
    shape = tuple(reversed(weight.shape)) if is_transposed_linear(module) else tuple(weight.shape)
    if weight.dim() == 3:
        is_conv = isinstance(module, nn.Conv1d)
        shape = (shape[0], shape[1], 1, shape[2]) if is_conv else (shape[0] * shape[1], shape[2])
    size = min(weight.element_size(), 4)
    if compressed_bytes(shape, size) >= weight.numel() * size:
        return f"it is no smaller when compressed ({compressed_bytes(shape, size):,} bytes)"
    return ""


def _of_module(
    name: str, module: nn.Module, custom_layers: Mapping[type[nn.Module], Sequence[str]]
) -> Iterator[Candidate]:
    attributes, dim = _weights_of(module, custom_layers)
    prefix = f"{name}." if name else ""
    kind = type(module).__name__
    for attribute in attributes:
        layer = name if attribute == "weight" else prefix + attribute
        yield Candidate(prefix + attribute, layer, kind, dim, blocked=_not_a_parameter(module, attribute))
    for attribute, weight in module._parameters.items():
        if attribute in attributes or weight is None or nn.parameter.is_lazy(weight) or weight.dim() < 2:
            continue
        layer = name if attribute == "weight" else prefix + attribute
        yield Candidate(prefix + attribute, layer, kind, 1, blocked=_unsupported(module))


def _weights_of(
    module: nn.Module, custom_layers: Mapping[type[nn.Module], Sequence[str]]
) -> tuple[Sequence[str], int]:
    """The names of a layer's prunable weights, and the dim of their input channels."""
    for layer_type, names in custom_layers.items():
        if isinstance(module, layer_type):
            return names, 1
    if isinstance(module, nn.MultiheadAttention):
        own = [n for n in _ATTENTION_WEIGHTS if module._parameters.get(n) is not None]
        return own + [n for n in _ATTENTION_WEIGHTS if parametrize.is_parametrized(module, n)], 1
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ("weight",), 1
    if held := weights_by_tensors(module):
        return list(held), next(iter(held.values()))
    if is_transposed_linear(module):
        return ("weight",), 0
    return (), 1


def _not_a_parameter(module: nn.Module, attribute: str) -> str:
    if parametrize.is_parametrized(module, attribute):
        steps = ", ".join(type(step).__name__ for step in module.parametrizations[attribute])  # type: ignore[index]
        return f"{attribute} is parametrized by {steps}: call parametrize.remove_parametrizations first"
    if module._parameters.get(attribute) is not None:
        return ""
    sources = [name for name in module._parameters if name.startswith(f"{attribute}_")]
    if sources:
        return f"{attribute} is computed from {', '.join(sources)}: remove that reparametrization first"
    return f"{attribute} is not a parameter"


def _unsupported(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "a table that is looked up, not multiplied"
    return "not a layer that is pruned (Linear, Conv1d to Conv3d, MultiheadAttention, Conv1D)"


def _embedding_tables(model: nn.Module) -> dict[int, str]:
    """Names of the embeddings by the identity of their weight."""
    return {
        id(module._parameters.get("weight")): clean_name(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }


def _output_heads(model: nn.Module, found: Sequence[tuple[Candidate, Tensor | None]]) -> dict[str, str]:
    """Reasons by parameter name."""
    layers = {c.name: weight for c, weight in found if not c.blocked and weight is not None}
    shapes = {c.name: _out_first(c, layers[c.name]) for c, _ in found if c.name in layers}
    others = [c.name for c, _ in found if c.name not in layers]
    tables = [(m.num_embeddings, m.embedding_dim) for m in model.modules() if isinstance(m, nn.Embedding)]
    heads = output_heads(shapes, others, tables)
    for module in model.modules():
        get_head = getattr(module, "get_output_embeddings", None)
        head = get_head() if callable(get_head) else None
        returned = None if head is None else head._parameters.get("weight")
        for name, weight in layers.items():
            if weight is returned:
                heads[name] = "an output head: get_output_embeddings() returns it"
    return heads if len(layers) > 1 else {}


def _out_first(candidate: Candidate, weight: Tensor) -> tuple[int, ...]:
    """The shape [out, in, ...] of a weight; of one that is not initialized: ()."""
    shape = () if nn.parameter.is_lazy(weight) else tuple(weight.shape)
    return shape[::-1] if candidate.dim == 0 else shape


def _with_default(
    candidate: Candidate, weight: Tensor | None, heads: Mapping[str, str], tables: Mapping[int, str]
) -> Candidate:
    if candidate.blocked:
        return candidate
    reason = heads.get(candidate.name, "")
    if part := adapter_part(candidate.name):
        reason = f"an adapter by its name ({part})"
    if id(weight) in tables:
        reason = f"tied to the embedding {tables[id(weight)]}"
    return dataclasses.replace(
        candidate, skipped=f"{reason}; select it by name to prune it" if reason else ""
    )


def _merge_shared(
    candidates: Sequence[Candidate], found: Sequence[tuple[Candidate, Tensor | None]]
) -> list[Candidate]:
    """Point later names of one tensor at the first; what holds for one of them holds for all."""
    owners: dict[int, list[int]] = {}
    for i, (candidate, weight) in enumerate(found):
        if weight is not None and not candidate.blocked:
            owners.setdefault(id(weight), []).append(i)
    merged = list(candidates)
    for group in owners.values():
        first, *others = (candidates[i] for i in group)
        skipped = next((candidates[i].skipped for i in group if candidates[i].skipped), "")
        clash = next((c for c in others if c.dim != first.dim), None)
        blocked = (
            f"{first.layer} and {clash.layer} share it, but group it along different dims" if clash else ""
        )
        for i in group:
            merged[i] = dataclasses.replace(
                candidates[i],
                skipped=skipped,
                blocked=blocked,
                alias_of="" if candidates[i] is first else first.name,
            )
    return merged
