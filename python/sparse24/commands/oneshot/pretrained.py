"""Models that transformers has saved in a folder: loaded and written without a hub."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...files import FileError

#: Files that hold weights: the pruned ones take their place.
_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.h5",
    "*.msgpack", "*.onnx", "*.ot", "*.gguf", "*.tflite",
)  # fmt: skip
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)
_DTYPES = {"auto": "auto", "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Kind(NamedTuple):
    """What a model takes."""

    is_causal: bool  #: text, predicted from left to right
    is_encoder_decoder: bool
    is_vision: bool
    longest: int  #: tokens; 0: not said


def library() -> Any:
    """transformers.

    Raises:
        FileError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise FileError(f"transformers is needed: pip install 'sparse24[transformers]' ({error})") from None


def imaging() -> Any:
    """Pillow's module that opens images.

    Raises:
        FileError: it is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        raise FileError("Pillow is needed for images: pip install 'sparse24[transformers]'") from None


def load(folder: Path, dtype: str) -> tuple[nn.Module, Kind]:
    """The model of a folder with ``config.json`` and weights, in eval mode, and what it takes.

    Args:
        dtype: "auto": as in the file; or the name of one.

    Raises:
        FileError: no such folder, another dtype, a class that transformers does not have, weights that are
            missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise FileError(f"{folder}: has no config.json: give a folder that save_pretrained has written")
    if dtype not in _DTYPES:
        raise FileError(f"--dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    transformers = library()
    config = _read(folder, transformers.AutoConfig.from_pretrained, folder, local_files_only=True)
    names = getattr(config, "architectures", None) or []
    found = getattr(transformers, names[0], None) if names else transformers.AutoModel
    if found is None:
        raise FileError(f"{folder}: transformers {transformers.__version__} has no class {names[0]!r}")
    model, told = _read(
        folder,
        found.from_pretrained,
        folder,
        local_files_only=True,
        dtype=_DTYPES[dtype],
        output_loading_info=True,
    )
    missing = sorted(told.get("missing_keys", ()))
    if missing:
        shown = ", ".join(missing[:5])
        raise FileError(
            f"{folder}: the weights of {type(model).__name__} lack {len(missing)}, among them {shown}"
        )
    return model.eval(), _kind(model, config)


def _kind(model: nn.Module, config: Any) -> Kind:
    text = getattr(config, "get_text_config", lambda: config)()
    longest = getattr(text, "max_position_embeddings", 0) or getattr(text, "n_positions", 0) or 0
    name = type(model).__name__
    return Kind(
        is_causal=name.endswith(("ForCausalLM", "LMHeadModel")),
        is_encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        is_vision=getattr(model, "main_input_name", "input_ids") == "pixel_values",
        longest=int(longest),
    )


def _read(folder: Path, call: Any, *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except Exception as error:  # transformers, safetensors and tokenizers raise classes of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FileError(f"{folder}: {lines[0]}") from error


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder.

    Raises:
        FileError: there is none.
    """
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise FileError(f"{folder}: has no tokenizer ({', '.join(_TOKENIZERS)})")
    return _read(folder, library().AutoTokenizer.from_pretrained, folder, local_files_only=True)


def image_processor(folder: Path) -> Any:
    """What makes images the model's inputs.

    Raises:
        FileError: there is none.
    """
    return _read(folder, library().AutoImageProcessor.from_pretrained, folder, local_files_only=True)


def save(model: nn.Module, source: Path, target: Path) -> None:
    """Write a model, and beside it whatever else its folder ``source`` holds: tokenizer, settings, notes.

    Raises:
        FileError: the disk is full, or has failed.
    """
    shutil.rmtree(target, ignore_errors=True)  # of a run that was stopped here
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_WEIGHTS, ".git", ".cache"))
        writer: Any = model
        writer.save_pretrained(target)
    except OSError as error:
        raise FileError(f"{target}: {error.strerror or error}") from error
