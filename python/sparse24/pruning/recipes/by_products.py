"""Which linear layers of a network in training gain by sparse products: each is timed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.backend import backend
from ...ops.registry import Error
from ...report import Report
from ...timing import Pair, in_units, interleaved_times
from ..packed import PackedMask
from ..prunable import Candidate, layer_at
from ..running import as_it_was, quiet, run_batch
from ..sharding import is_sharded
from ..sparsifier import Sparsifier
from .dynamic import DynamicSparsity
from .mvue import MvueLinear
from .products import DTYPES, Product, SparseProductLinear, Way, computed_in, forms_of, give_up, take_up

#: Of timing a call: the fastest of at least so many rounds.
_SECONDS, _ROUNDS = 0.3, 7


class _Call(NamedTuple):
    """How a layer was called."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    needs_grad: bool  #: of the input: all but a first layer's
    autocast: torch.dtype | None


def sparse_products(
    recipe: Sparsifier | DynamicSparsity,
    example_inputs: Any = None,
    *,
    when: Literal["faster", "always"] = "faster",
) -> Report:
    """Train pruned ``Linear`` layers by sparse products, forward and, where the mask allows, backward.

    The product with the input runs sparse. So does that with the gradient of the output where the mask is 2:4
    along the output channels as well (pattern "transposable"). The gradient of the weight is a dense product.
    On a CPU these are this library's kernels, on a GPU cuSPARSELt's; the kept values are taken from the
    parameter at each call. Outputs and gradients are those of the masked weights, to rounding.

    Parameters, state_dict, optimizer and enforcement stay as they are, and masks may change at any step. In
    eval mode, and in what ``torch.compile`` or an exporter takes, the layers compute as before.
    :func:`dense_products` undoes it.

    Args:
        recipe: a Sparsifier, or a recipe over one; pruned by now or later.
        example_inputs: one training batch: a tensor, a tuple of positional arguments, or a mapping of named
            ones; or a list of such batches. The model runs on them in eval mode, and each layer is timed on
            inputs of the shapes that it saw, under the autocast that is on now.
        when: "faster": layers whose forward and backward passes take less time so, with a share of what it
            costs to look at a new mask; "always": all that can.

    Returns:
        One row a weight; the reason holds both times, or says why the layer stays dense.

    Raises:
        TypeError: neither a Sparsifier nor a recipe.
        ValueError: an unknown ``when``, "faster" without example inputs, or "always" with them. The model is
            as it was.
    """
    sparsifier = _sparsifier_of(recipe)
    if when not in ("faster", "always"):
        raise ValueError(f'when must be "faster" or "always", not {when!r}')
    if (when == "faster") != (example_inputs is not None):
        raise ValueError(
            'when="faster" times layers on example_inputs: give a batch, or when="always" without one'
        )
    left = {c.name: _why_dense(sparsifier, c) for c in sparsifier._candidates}
    taken = {c.name: _layer(sparsifier, c) for c in sparsifier._candidates if not left[c.name]}
    remarks = dict.fromkeys(taken, "")
    if when == "faster":
        seen = _calls(sparsifier._model, taken, example_inputs)
        refresh = recipe.refresh if isinstance(recipe, DynamicSparsity) else None
        timer = _Timer(sparsifier, refresh)
        for name, layer in list(taken.items()):
            wins, remarks[name] = timer.decide(name, layer, seen[name])
            if not wins:
                left[name] = remarks[name]
                del taken[name]
    for name, layer in taken.items():
        take_up(layer, sparsifier, name)
    rows = [
        dataclasses.replace(row, done=not left[c.name], reason=left[c.name] or remarks[c.name])
        for c, row in zip(sparsifier._candidates, sparsifier.report(), strict=True)
    ]
    return Report(tuple(rows), "sparse")


def dense_products(recipe: Sparsifier | DynamicSparsity) -> None:
    """The inverse of :func:`sparse_products`: layers compute as they did before it.

    Raises:
        TypeError: neither a Sparsifier nor a recipe.
    """
    for module in _sparsifier_of(recipe)._model.modules():
        give_up(module)


def _sparsifier_of(recipe: object) -> Sparsifier:
    found = recipe.sparsifier if isinstance(recipe, DynamicSparsity) else recipe
    if not isinstance(found, Sparsifier):
        raise TypeError(f"this needs a Sparsifier or a recipe over one, not {type(recipe).__name__}")
    return found


def _layer(sparsifier: Sparsifier, candidate: Candidate) -> nn.Linear:
    layer = layer_at(sparsifier._model, candidate.module_name)
    assert isinstance(layer, nn.Linear)
    return layer


def _why_dense(sparsifier: Sparsifier, candidate: Candidate) -> str:
    """Why a layer cannot be trained by sparse products; empty: it can."""
    layer: Any = layer_at(sparsifier._model, candidate.module_name)
    if type(layer) not in (nn.Linear, MvueLinear, SparseProductLinear) or candidate.attribute != "weight":
        return f"a {candidate.kind} is trained by dense products: only Linear layers have sparse ones"
    if "forward" in vars(layer):
        return "its forward was replaced by hand"
    if candidate.alias_of:
        return f"shares its weight with {candidate.alias_of}"
    return sparsifier._why_not(candidate) or _unfit(sparsifier, layer.weight)


def _unfit(sparsifier: Sparsifier, weight: Tensor) -> str:
    """Why a weight that is pruned has no sparse products; or ""."""
    reason = ""
    if is_sharded(weight):
        reason = "its weight is sharded: a process would need the whole of it"
    elif weight.dtype not in DTYPES:
        reason = f"{str(weight.dtype).removeprefix('torch.')} has no sparse product"
    elif not sparsifier._rule.group.is_within_24:
        reason = f"{sparsifier._rule} is not 2:4"
    elif weight.shape[1] % 8:
        reason = f"{weight.shape[1]} input features: sparse products in training need a multiple of 8"
    else:
        try:
            backend(weight.device)
        except Error as error:
            reason = str(error)
    return reason


@torch.enable_grad()
def _calls(model: nn.Module, layers: dict[str, nn.Linear], example_inputs: Any) -> dict[str, Counter[_Call]]:
    """How the layers are called, and how often."""
    seen: dict[str, Counter[_Call]] = {name: Counter() for name in layers}

    def noting(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else kwargs["input"]
            device = x.device.type
            on = torch.is_autocast_enabled(device)
            autocast = torch.get_autocast_dtype(device) if on else None
            seen[name][_Call(tuple(x.shape), x.dtype, x.requires_grad, autocast)] += 1

        return note

    handles = [layer.register_forward_pre_hook(noting(n), with_kwargs=True) for n, layer in layers.items()]
    try:
        with quiet(model), as_it_was(model), torch.random.fork_rng(devices=[]):
            for batch in example_inputs if isinstance(example_inputs, list) else [example_inputs]:
                run_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


class _Timer:
    """Times layers; calls that cost the same are timed once.

    Args:
        refresh: steps between two masks, whose cost is shared by them; ``None``: they stay.
    """

    def __init__(self, sparsifier: Sparsifier, refresh: int | None) -> None:
        self._sparsifier, self._refresh = sparsifier, refresh
        self._known: dict[Any, Pair | None] = {}

    def decide(self, name: str, layer: nn.Linear, calls: Counter[_Call]) -> tuple[bool, str]:
        """Whether sparse products win over all calls of a layer, and the times."""
        if not calls:
            return False, "not called by example_inputs: stays dense"
        pairs = []
        for call, times in calls.items():
            pair = self._time(name, layer, call)
            if pair is None:
                return False, f"called with {call.dtype}, of which there is no sparse product: stays dense"
            pairs += [pair] * times
        dense, sparse = sum(p.dense for p in pairs), sum(p.sparse for p in pairs)
        tokens = sum(times * max(1, torch.Size(call.shape[:-1]).numel()) for call, times in calls.items())
        told = f"forward and backward: dense {in_units(dense)}, sparse {in_units(sparse)} at {tokens} tokens"
        return sparse < dense, told if sparse < dense else f"{told}: stays dense"

    def _time(self, name: str, layer: nn.Linear, call: _Call) -> Pair | None:
        weight = layer.weight
        key = (call, weight.shape, weight.dtype, weight.device, weight.requires_grad, layer.bias is None)
        if key not in self._known:
            pair = timed(layer, self._mask(name, weight), call)
            if pair is not None and self._refresh is not None:
                mask = self._mask(name, weight)
                looking = min(interleaved_times([lambda: forms_of(mask)], _SECONDS / 4, 3)[0])
                pair = Pair(pair.dense, pair.sparse + looking / self._refresh)
            self._known[key] = pair
        return self._known[key]

    def _mask(self, name: str, weight: Tensor) -> Tensor:
        """The mask of a weight, or what it would be now."""
        packed: PackedMask | None = self._sparsifier._masks.get(name)
        if packed is not None:
            return packed.follow(weight).local_bool()
        candidate = next(c for c in self._sparsifier._candidates if c.name == name)
        return self._sparsifier._rule.mask(self._sparsifier._scores(candidate, weight), candidate.dim)


@torch.enable_grad()
def timed(layer: nn.Linear, mask: Tensor, call: _Call) -> Pair | None:
    """Seconds of one call and its backward pass, dense and sparse, in turns: the fastest of some rounds.

    ``None``: it has no sparse product.
    """
    weight = torch.where(mask, layer.weight.detach(), 0).requires_grad_(layer.weight.requires_grad)
    device, bias, forms = weight.device, layer.bias, forms_of(mask)
    x = torch.randn(call.shape, generator=torch.Generator().manual_seed(24)).to(device, call.dtype)
    x.requires_grad_(call.needs_grad)
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    autocast = torch.autocast(device.type, call.autocast, enabled=call.autocast is not None)
    with autocast:
        dtype = computed_in(x, weight)
    if dtype is None or forms is None:
        return None
    way = Way(forms, dtype)

    def step(product: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with autocast:
                y = product()
            if wanted:
                torch.autograd.grad(y, wanted, torch.ones_like(y))
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    dense = step(lambda: F.linear(x, weight, bias))
    sparse = step(lambda: Product.apply(x, weight, bias, way))  # type: ignore[no-untyped-call]
    return Pair(*(min(times) for times in interleaved_times([dense, sparse], _SECONDS, _ROUNDS)))
