"""LSTM, GRU and RNN, and their cells, written out over their weights: torch's own run on dense memory alone.

The products of the inputs of all steps are one; those of the hidden state are one a step. Shapes, masks of
packed sequences, projections, dropout between layers and results are torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .compiled import held_for_compiler, linear

#: From the products of input and hidden state, and the state (h, c), to the next state.
_Step = Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _lstm(inputs: Tensor, hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (inputs + hidden).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(inputs: Tensor, hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    reset_in, update_in, new_in = inputs.chunk(3, -1)
    reset, update, new = hidden.chunk(3, -1)
    candidate = (new_in + (reset_in + reset).sigmoid() * new).tanh()
    return ((update_in + update).sigmoid() * (state[0] - candidate) + candidate,)


def _rnn(activation: Callable[[Tensor], Tensor]) -> _Step:
    return lambda inputs, hidden, state: (activation(inputs + hidden),)


def _step_of(module: Any) -> _Step:
    mode = getattr(module, "mode", "")
    if mode == "LSTM" or isinstance(module, nn.LSTMCell):
        return _lstm
    if mode == "GRU" or isinstance(module, nn.GRUCell):
        return _gru
    is_relu = mode == "RNN_RELU" or getattr(module, "nonlinearity", "") == "relu"
    return _rnn(torch.relu if is_relu else torch.tanh)


class _Cell:
    """``forward`` of a cell."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        module: Any = self
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead"
            )
        is_lstm = isinstance(module, nn.LSTMCell)
        given = hx if is_lstm else None if hx is None else (hx,)
        batch = input.dim() == 2
        x = input if batch else input.unsqueeze(0)
        if given is None:
            state = (x.new_zeros(len(x), module.hidden_size),) * (2 if is_lstm else 1)
        else:
            state = tuple(each if batch else each.unsqueeze(0) for each in given)
        hidden = linear(module, "weight_hh", state[0], module.bias_hh)
        after = _step_of(module)(linear(module, "weight_ih", x, module.bias_ih), hidden, state)
        after = after if batch else tuple(each.squeeze(0) for each in after)
        return after if is_lstm else after[0]


class _Layers:
    """``forward`` of layers of cells."""

    def flatten_parameters(self) -> None:
        """Nothing: compressed weights lie as they do."""

    def _init_flat_weights(self) -> None:
        self.__dict__.update(_flat_weights=(), _flat_weight_refs=())

    def forward(self, input: Any, hx: Any = None) -> Any:
        module: Any = self
        sizes = unsorted = sorted_by = None
        if isinstance(input, PackedSequence):
            data, sizes, sorted_by, unsorted = input
            steps = [int(size) for size in sizes]
            batch = steps[0]
        else:
            if input.dim() not in (2, 3):
                raise ValueError(
                    f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
                )
            x = input if input.dim() == 3 else input.unsqueeze(0 if module.batch_first else 1)
            x = x.transpose(0, 1) if module.batch_first else x
            steps, batch = [x.shape[1]] * x.shape[0], x.shape[1]
            data = x.reshape(-1, x.shape[-1])
        if data.shape[-1] != module.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {module.input_size}, got {data.shape[-1]}"
            )
        batched = isinstance(input, PackedSequence) or input.dim() == 3
        states = _states(module, hx, batch, data, batched, sorted_by)
        output, finals = _run(module, data, steps, states)
        last = tuple(torch.stack(each) for each in zip(*finals, strict=True))
        if unsorted is not None:
            last = tuple(each.index_select(1, unsorted) for each in last)
        last = last if batched else tuple(each.squeeze(1) for each in last)
        if sizes is not None:
            result: Any = PackedSequence(output, sizes, sorted_by, unsorted)
        else:
            result = output.view(len(steps), batch, -1)
            result = result.transpose(0, 1) if module.batch_first else result
            result = result if batched else result.squeeze(0 if module.batch_first else 1)
        return result, last if module.mode == "LSTM" else last[0]


def _states(
    module: Any, hx: Any, batch: int, data: Tensor, batched: bool, sorted_by: Tensor | None
) -> list[tuple[Tensor, ...]]:
    """The first state of every layer and direction."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    out = module.proj_size or module.hidden_size
    sizes = (out, module.hidden_size) if module.mode == "LSTM" else (out,)
    if hx is None:
        return [tuple(data.new_zeros(batch, size) for size in sizes)] * count
    given = tuple(hx) if module.mode == "LSTM" else (hx,)
    given = given if batched else tuple(each.unsqueeze(1) for each in given)
    for each, size in zip(given, sizes, strict=True):
        if tuple(each.shape) != (count, batch, size):
            raise RuntimeError(f"Expected hidden size {(count, batch, size)}, got {list(each.shape)}")
    if sorted_by is not None:
        given = tuple(each.index_select(1, sorted_by) for each in given)
    return list(zip(*(each.unbind(0) for each in given), strict=True))


def _run(
    module: Any, data: Tensor, steps: list[int], states: list[tuple[Tensor, ...]]
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """The outputs of the last layer, and the last states of all."""
    finals = []
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            first = states[layer * directions + direction]
            output, final = _direction(module, data, steps, first, suffix)
            outputs.append(output)
            finals.append(final)
        data = torch.cat(outputs, -1) if directions == 2 else outputs[0]
        if module.dropout and module.training and layer < module.num_layers - 1:
            data = F.dropout(data, module.dropout)
    return data, finals


def _direction(
    module: Any, data: Tensor, steps: list[int], state: tuple[Tensor, ...], suffix: str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    def named(name: str) -> Any:
        return getattr(module, name + suffix)

    bias = named("bias_hh") if module.bias else None
    step, hidden = _step_of(module), _product(module, f"weight_hh{suffix}")
    projection = _product(module, f"weight_hr{suffix}") if module.proj_size else None
    inputs = linear(module, f"weight_ih{suffix}", data, named("bias_ih") if module.bias else None)
    parts = torch.split(inputs, steps)
    backwards = suffix.endswith("_reverse")
    order = range(len(steps) - 1, -1, -1) if backwards else range(len(steps))
    outputs: list[Tensor] = [data] * len(steps)
    now = tuple(each[: steps[order[0]]] for each in state) if len(steps) else state
    ended: list[tuple[Tensor, ...]] = []  # states of sequences that are over, the shortest first
    for t in order:
        size = steps[t]
        if size < len(now[0]):
            ended.append(tuple(each[size:] for each in now))
            now = tuple(each[:size] for each in now)
        elif size > len(now[0]):  # backwards: longer sequences begin
            begun = len(now[0])
            now = tuple(torch.cat([n, s[begun:size]]) for n, s in zip(now, state, strict=True))
        now = step(parts[t], hidden(now[0], bias), now)
        if projection is not None:
            now = (projection(now[0], None), *now[1:])
        outputs[t] = now[0]
    pieces = [now, *reversed(ended)]
    final = tuple(torch.cat([piece[i] for piece in pieces]) for i in range(len(now)))
    return torch.cat(outputs), final


def _product(module: Any, name: str) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The product with a weight that is read once for all steps."""
    if held_for_compiler(module, name) is not None:
        return lambda input, bias: linear(module, name, input, bias)
    weight = getattr(module, name)
    return lambda input, bias: F.linear(input, weight, bias)


def forward_of(base: type[nn.Module]) -> type | None:
    """The class with the ``forward`` that stands for that of ``base``; None: its own reads tensors."""
    if issubclass(base, nn.RNNBase):
        return _Layers
    return _Cell if issubclass(base, nn.RNNCellBase) else None
