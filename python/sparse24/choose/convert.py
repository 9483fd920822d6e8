"""``sparse24.to_sparse``: what is faster compressed is, and the report says why the rest is not."""

from __future__ import annotations

import functools
import sys
from typing import Any, Literal

import torch
from torch import nn

from ..nn import convert
from ..nn.convert import Decide, Verdict, why_device_dense
from ..nn.convertible import FilterFn
from ..nn.fuse import fuse_activations
from ..nn.plan import How
from ..report import Report
from . import cpu, example, kept, measured, rules

When = Literal["faster", "always"]


def to_sparse(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    filter_fn: FilterFn | None = None,
    *,
    when: When = "faster",
    example_inputs: Any = None,
    fuse: bool = False,
    how: How = "modules",
) -> Report:
    """Replace the pruned layers of ``model`` by compressed ones, in place, where that makes them faster.

    ``Linear``, ``Conv2d``, ``Conv3d``, ``MultiheadAttention`` and transformers' ``Conv1D`` are replaced where
    their weight is 2:4 along the input channels. Where ``when="always"`` says so, ``Conv1d``, LSTM, GRU and
    RNN and their cells, stacks of experts [E, out, in] of transformers, and subclasses of Linear, Conv2d and
    Conv3d that pad or cast in ``forward`` stay the modules they are, with compressed tensors in the places
    of their weights.
    The rest stays, and the report says why. Files do not depend on what is chosen: a state_dict of either
    kind loads into a model of either kind.

    On a CPU, ``when="faster"`` decides layer by layer. With ``example_inputs`` the model runs on them once;
    then each layer is timed, dense and compressed in turns, on inputs of the shapes that it saw, with weights
    as cold as the network makes them: eager against eager, or compiled against compiled where ``model`` came
    from ``torch.compile`` or ``model.compile()`` was called (each layer alone, so that what a compiler fuses
    around one is not seen). The sum over all calls counts, and a tie within
    3 % is sparse. Without examples what ``tune`` measured decides or, for other layers, a rule by machine,
    dtype and shape, and the rows say so. Times are kept in the user's cache folder. On a GPU a layer chooses
    call by call instead (``explain``), so all are converted; where a device has no sparse kernels they stay
    dense.

    A module registered under several names is converted once. Hooks around ``forward``, the training flag and
    public attributes are carried over. torch's fused path for transformer encoders, which would read dense
    weights, is switched off; outputs at padded positions are then those of the unfused path. A failure or an
    interruption leaves the model as it was.

    Args:
        model: the network; converted layers are for inference, so convert after training.
        dtype: cast the converted layers to it (float32, float16, bfloat16). Their inputs must then have
            this dtype: cast the rest of the model too, or run under autocast.
        filter_fn: ``filter_fn(name, module) -> bool``, false for a layer to leave as it is.
        when: "faster", or "always": convert whatever can run, for half the memory at any speed.
        example_inputs: one call (a tensor, a tuple of positional arguments, or a mapping of named ones) or a
            list of calls that are made equally often, as prefill and decode.
        how: "modules": replace layers where there is a compressed one. "tensors": keep every module, and put
            compressed tensors in the places of weights; ``F.linear``, ``F.conv2d`` and the like run sparse
            with them. Compiled or exported, torch's own layers and recurrent ones do, and modules that
            multiply by themselves (stacks of experts, attention) run dense.
        fuse: fold a ReLU or GELU that follows a converted layer into its product, where the graph is plain:
            in ``nn.Sequential``, torch's transformer layers and the blocks of :mod:`sparse24.nn.fuse`.

    Returns:
        One row a layer, in model order; bytes count weight (values and indices) and bias.

    Raises:
        TypeError: ``model`` is no module; another dtype; example inputs of another kind.
        ValueError: ``model`` itself is the layer, which cannot be swapped in place; an unknown ``when`` or
            ``how``;
            example inputs that nothing is decided by, or an empty list of them.
    """
    if when not in ("faster", "always"):
        raise ValueError(f'when must be "faster" or "always", not {when!r}')
    if when == "always" and example_inputs is not None:
        raise ValueError('example_inputs decide nothing with when="always": leave one of them out')
    calls = None if example_inputs is None else example.calls_of(example_inputs)
    model, is_compiled = _what_was_compiled(model)
    decide = None if when == "always" else _decision(model, dtype, calls, is_compiled)
    report = convert.to_sparse(model, dtype, filter_fn, decide, how)
    return fuse_activations(model, report) if fuse else report


def _what_was_compiled(model: nn.Module) -> tuple[nn.Module, bool]:
    """The module behind what ``torch.compile`` returned, and whether it or the module itself is compiled."""
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")  # slow to import, and there if it was used
    if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        return model._orig_mod, True
    return model, isinstance(model, nn.Module) and model._compiled_call_impl is not None


def _decision(
    model: nn.Module, dtype: torch.dtype | None, calls: list[example.Arguments] | None, is_compiled: bool
) -> Decide:
    def decide(layers: dict[str, nn.Module]) -> dict[str, Verdict]:
        elsewhere = {name: _on_another_device(m) for name, m in layers.items() if _device_of(m).type != "cpu"}
        here = {name: module for name, module in layers.items() if name not in elsewhere}
        if calls is None or not here:
            known = kept.load()
            return elsewhere | {
                name: cpu.remembered(module, dtype, known) or rules.verdict(module, dtype)
                for name, module in here.items()
            }
        seen = example.record(model, here, calls)
        weights = sum(p.numel() * p.element_size() for p in model.parameters() if not nn.parameter.is_lazy(p))
        chooser = measured.Chooser(weights, is_compiled, dtype)
        return elsewhere | measured.decide_all(
            chooser, here, seen, functools.partial(rules.verdict, dtype=dtype)
        )

    return decide


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _on_another_device(module: nn.Module) -> Verdict:
    """A GPU with sparse kernels chooses call by call; without them a compressed layer is only slower."""
    reason = why_device_dense(_device_of(module))
    return Verdict(not reason, f"{reason}: stays dense" if reason else "")
