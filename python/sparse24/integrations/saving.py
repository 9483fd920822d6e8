"""``save_pretrained`` of transformers' models with compressed layers: config.json says what they are.

The library asks a model's quantizer what to write, and a model that ``to_sparse`` has converted has none. So
its method is wrapped: for the time of a call a model with compressed layers, wherever they are and whoever
put them there, has sparse24's quantizer, and one without has not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..nn.compressed import CompressedModule

_ABSENT = object()


def wrap_save_pretrained() -> None:
    """Wrap ``PreTrainedModel.save_pretrained``, once."""
    from transformers.modeling_utils import PreTrainedModel  # noqa: PLC0415  it has been imported

    plain = PreTrainedModel.save_pretrained
    if hasattr(plain, "_sparse24_plain"):
        return

    @functools.wraps(plain)
    def save_pretrained(self: Any, *arguments: Any, **options: Any) -> Any:
        with _said_in_config(self, options.get("state_dict")):
            return plain(self, *arguments, **options)

    save_pretrained._sparse24_plain = plain  # type: ignore[attr-defined]
    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


@contextmanager
def _said_in_config(model: Any, state_dict: dict[str, Tensor] | None) -> Iterator[None]:
    """Inside, ``config.quantization_config`` and ``hf_quantizer`` are what the model's layers say."""
    from .transformers import Sparse24Config, Sparse24Quantizer, Writing  # noqa: PLC0415  transformers is there by now

    config, quantizer = model.config, getattr(model, "hf_quantizer", None)
    layers = any(isinstance(module, CompressedModule) for module in model.modules())
    is_ours = isinstance(quantizer, Sparse24Quantizer)
    if (not layers and not is_ours) or (quantizer is not None and not is_ours):
        yield
        return
    before = (vars(model).get("hf_quantizer", _ABSENT), vars(config).get("quantization_config", _ABSENT))
    try:
        if layers:
            config.quantization_config = Sparse24Config()
            model.hf_quantizer = Writing(config.quantization_config, state_dict)
        else:
            model.hf_quantizer = None
            vars(config).pop("quantization_config", None)
        yield
    finally:
        for owner, name, value in (
            (model, "hf_quantizer", before[0]),
            (config, "quantization_config", before[1]),
        ):
            if value is _ABSENT:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, value)


wrap_save_pretrained()  # importing this module registers
