"""LoRA of PEFT on compressed layers: adapters train beside them, and merging makes a layer dense.

The sum of a 2:4 weight and an adapter is not 2:4, so what is merged is a dense layer, and a warning says so.
Where the adapter is taken out again, the compressed layer comes back, bit for bit. Three functions of PEFT
are wrapped, for it knows the layers that it can adapt by their classes.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from ..nn import SparseLinear
from ..nn.convert import dense_of

#: Under which a layer of PEFT keeps the compressed one while it is merged; no child of it meanwhile.
_KEPT = "_sparse24_base"


def _adapted(target: Any) -> Any:
    """What an adapter is put on: a layer, or what a layer of PEFT holds."""
    return target.get_base_layer() if isinstance(target, BaseTunerLayer) else target


def _dispatch(plain: Any) -> Any:
    @functools.wraps(plain)
    def dispatch_default(target: Any, adapter_name: str, config: Any, **options: Any) -> Any:
        layer = _adapted(target)
        if not isinstance(layer, SparseLinear) or options.get("parameter_name") is not None:
            return plain(target, adapter_name, config, **options)
        if layer.activation != "none":
            raise ValueError(
                f"this SparseLinear fuses activation={layer.activation!r}, and an adapter's product belongs "
                "before it: call sparse24.to_dense(model), then to_sparse without fuse=True"
            )
        options.pop("parameter_name", None)
        config.fan_in_fan_out = False  # [out, in], also where transformers' Conv1D was
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            return lora.Linear(target, adapter_name, config=config, **options)

    return dispatch_default


def _merge(plain: Any) -> Any:
    @functools.wraps(plain)
    def merge(self: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        layer = self.get_base_layer()
        names = None
        if isinstance(layer, SparseLinear):
            names = check_adapters_to_merge(self, adapter_names)
        if not names:
            plain(self, safe_merge, adapter_names)
            return
        dense = dense_of(layer)
        dense.requires_grad_(False)
        is_turned = not isinstance(dense, nn.Linear)  # transformers' Conv1D, [in, out]
        self.base_layer, self.fan_in_fan_out = dense, is_turned
        try:
            plain(self, safe_merge, names)
        except BaseException:
            self.base_layer, self.fan_in_fan_out = layer, False
            raise
        self.__dict__[_KEPT] = layer
        warnings.warn(
            f"an adapter ({', '.join(names)}) was merged into a 2:4 weight, which is dense now: nothing is "
            "lost, but the layer runs dense; prune and convert again, or keep the adapter beside it",
            UserWarning,
            stacklevel=2,
        )

    return merge


def _unmerge(plain: Any) -> Any:
    @functools.wraps(plain)
    def unmerge(self: Any) -> None:
        plain(self)
        if _KEPT in vars(self) and not self.merged_adapters:
            layer = self.__dict__.pop(_KEPT)
            now = self.base_layer.weight
            self.base_layer, self.fan_in_fan_out = layer.to(now.device), False

    return unmerge


if not hasattr(lora.Linear.merge, "__wrapped__"):  # importing this module registers
    module: Any = lora_model
    module.dispatch_default = _dispatch(module.dispatch_default)
    lora.Linear.merge = _merge(lora.Linear.merge)  # type: ignore[method-assign]
    lora.Linear.unmerge = _unmerge(lora.Linear.unmerge)  # type: ignore[method-assign]
