"""A quantizer for transformers: ``from_pretrained`` of a folder whose weights are compressed.

``quantization_config`` in config.json is ``{"quant_method": "sparse24", "format": 1}``; which layers are
compressed the weights say. transformers knows it after ``import sparse24`` alone; without, it refuses the
weights, for ``nn/guard.py``'s sake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..choose import to_sparse
from ..files import METADATA_KEY, is_safetensors, read, read_header
from ..nn import int8, to_dense
from ..nn.compressed import FORMAT, CompressedModule
from ..nn.guard import guard_name, guard_of
from ..nn.shells import compressed_in, put_shells
from ..pruning.prunable import unwrap

METHOD = "sparse24"


class Sparse24Config(QuantizationConfigMixin):
    """What config.json says of compressed weights.

    Given to ``from_pretrained`` of a folder with dense weights that are 2:4 already, as
    ``quantization_config=Sparse24Config()``, it has them compressed after they are loaded.

    Raises:
        ValueError: a format that is newer than this sparse24 knows.
    """

    def __init__(self, format: int = FORMAT, quant_method: str = METHOD, **_: Any) -> None:
        if not isinstance(format, int) or not 1 <= format <= FORMAT:
            raise ValueError(
                f"quantization_config has the format {format!r} of sparse24, which this version does not "
                f"know (1 to {FORMAT}): install a newer one"
            )
        self.quant_method = quant_method  # type: ignore[assignment]  # a name; the library's own are an enum
        self.format = format


class Sparse24Quantizer(HfQuantizer):
    """Puts compressed layers in the dense ones' places before the weights are loaded."""

    requires_calibration = False

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Iterable[str] | None = None, **_: Any
    ) -> None:
        """Raises ValueError: see :func:`_put_shells`."""
        if self.pre_quantized:
            _put_shells(model, [Path(file) for file in checkpoint_files or ()])

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        """Refuse what is damaged or missing in a compressed layer; compress what was loaded dense.

        Raises:
            ValueError: the layer is named; or there is none that is 2:4.
        """
        if not self.pre_quantized:
            report = to_sparse(model, when="always")
            if not report.done:
                raise ValueError(
                    "quantization_config is sparse24's, but no weight that was loaded is 2:4: prune it "
                    f"first, with sparse24.Sparsifier(model).prune() or sparse24.oneshot\n{report}"
                )
        for name, module in model.named_modules():
            if isinstance(module, CompressedModule):
                _check(name, module, self.pre_quantized)
                module.requires_grad_(False)
        model.is_quantized = False  # or float(), half() would be refused, which these layers can do
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        to_dense(model)
        return model if dtype is None else model.to(dtype)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


class Writing(Sparse24Quantizer):
    """What a model that is about to be written has for its quantizer."""

    def __init__(self, config: Sparse24Config, state_dict: dict[str, Tensor] | None) -> None:
        super().__init__(config)
        self._state_dict = state_dict

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """The state_dict that was given, or the model's, with a guard."""
        state = self._state_dict
        if state is None and not getattr(model, "_hf_peft_config_loaded", False):
            state = unwrap(model).state_dict()
            state |= guard_of(state)
        return state, {METADATA_KEY: str(FORMAT)}


def _put_shells(model: nn.Module, files: list[Path]) -> None:
    """Put compressed layers where the names in ``files`` want them.

    Raises:
        ValueError: no layer is compressed in them; or one is that the model does not have, or has as
            something else. The model is as before.
    """
    where = files[0].parent if files else Path()
    dtypes: dict[str, torch.dtype | str] = {}
    for file in files:
        dtypes |= _dtypes_in(file)
    stored = compressed_in(dtypes)
    if not stored:
        raise ValueError(
            f"{where}: config.json says that the weights are sparse24's, but none is compressed: take "
            "quantization_config out of config.json, or compress them (sparse24 prune --compress)"
        )
    renamed = _as_the_model_names(model, stored)
    by_name = {renamed[name]: storage for name, storage in stored.items()}
    swaps, problems = put_shells(model, by_name)
    if problems:
        others = f", and {len(problems) - 1} others" if len(problems) > 1 else ""
        raise ValueError(f"{where}: does not fit {type(model).__name__}: {problems[0]}{others}")
    for swap in swaps:
        storage, layer = by_name.get(swap.name), swap.new
        is_float8 = storage is not None and storage.dtype in int8.FLOAT8
        if is_float8 and isinstance(layer, CompressedModule) and not int8.is_float8(layer):
            raise ValueError(f"{where}: {swap.name} is of a float8 that is not kept: sparse24.load widens it")
    layers = [name for name in stored if guard_name(name) in dtypes]
    names = {guard_name(name) for name in (*layers, *map(renamed.__getitem__, layers))}
    patterns = {rf"(^|\.){re.escape(name)}$" for name in names}
    ignored: Any = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    model._keys_to_ignore_on_load_unexpected = {*ignored, *patterns}  # type: ignore[assignment]


def _dtypes_in(file: Path) -> dict[str, torch.dtype | str]:
    if is_safetensors(file):
        return {piece.name: piece.shown.dtype for piece in read_header(file).pieces}
    return {name: tensor.dtype for name, tensor in read(file).tensors.items()}


def _as_the_model_names(model: Any, layers: Iterable[str]) -> dict[str, str]:
    """Layers of a file by the names that transformers gives them when it loads: older names, and prefixes."""
    from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: PLC0415  not there yet
    from transformers.core_model_loading import (  # noqa: PLC0415  where this module is imported
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    changes = get_model_conversion_mapping(model)
    renamings = [each for each in changes if isinstance(each, WeightRenaming)]
    converters = [each for each in changes if isinstance(each, WeightConverter)]
    held = model.state_dict()
    found = {}
    for name in layers:
        key, _ = rename_source_key(f"{name}.weight", renamings, converters, model.base_model_prefix, held)
        found[name] = key.removesuffix(".weight")
    return found


def _check(name: str, module: CompressedModule, was_loaded: bool) -> None:
    tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    for own_name, tensor in tensors.items():
        if tensor is None or tensor.is_meta:  # offloaded
            return
        if was_loaded and not getattr(tensor, "_is_hf_initialized", False):
            raise ValueError(f"{name}.{own_name} is missing in the file: it is damaged, or another model's")
    problem = module._damage_in(module.values, module.indices)
    problem = problem or int8.problem_with(
        module, module.values, *map(tensors.get, ("weight_scale", "input_scale"))
    )
    if problem:
        raise ValueError(f"{name}.{problem}")


if METHOD not in AUTO_QUANTIZER_MAPPING:  # importing this module registers
    register_quantization_config(METHOD)(Sparse24Config)
    register_quantizer(METHOD)(Sparse24Quantizer)
