"""What compressed layers are to programs that look into a model.

A leaf for torch.fx, operators in a trace of TorchScript, and an error with the way round for its compiler.
For ONNX see :mod:`.onnx`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn
from torch.fx import Proxy


class Unscriptable:
    """A layer that the compiler of TorchScript refuses by name."""

    def __prepare_scriptable__(self) -> NoReturn:
        """What ``torch.jit.script`` asks of a module before it compiles it.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"TorchScript cannot compile {type(self).__name__}: record the model with torch.jit.trace, or "
            "call sparse24.to_dense(model) before torch.jit.script"
        )


def leaf_of(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any] | None = None) -> Any:
    """The call of a layer in the graph that torch.fx records, as for the layers of torch.nn.

    ``None`` where nobody records, and for the root of what is recorded, whose operators are recorded.
    """
    recorded = next((each for each in inputs if isinstance(each, Proxy)), None)
    if recorded is None:
        return None
    path = recorded.tracer.path_of_module(module)  # type: ignore[attr-defined]
    return recorded.tracer.create_proxy("call_module", path, inputs, options or {}) if path else None


def is_traced() -> bool:
    """Whether TorchScript records what runs."""
    return not torch.compiler.is_compiling() and bool(torch._C._is_tracing())
