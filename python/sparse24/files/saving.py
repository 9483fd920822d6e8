"""``sparse24.save``: a network's state_dict in a file or a folder, in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from ..nn.compressed import FORMAT
from ..pruning.prunable import unwrap
from .errors import FileError
from .folders import making
from .formats import METADATA_KEY, StateFile, is_safetensors, write
from .shards import index_text

#: Bytes of one file of a folder.
_BY_DEFAULT = 5_000_000_000


def save(model: nn.Module, path: str | os.PathLike[str], *, max_shard_size: int = _BY_DEFAULT) -> None:
    """Write the state_dict of ``model``, compressed layers in their compressed form, in one step.

    Args:
        model: the network; DistributedDataParallel and torch.compile around it are left out.
        path: a file that ends in ``.safetensors``; one that ends in something else, which ``torch.save``
            writes; or, without a suffix, a folder that is not there yet or is empty, for safetensors files
            and their index.
        max_shard_size: bytes of one file of a folder; a tensor that is larger has one for itself.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``max_shard_size`` is not positive.
        FileError: the file or folder cannot be written, or holds a checkpoint; a parameter is on the meta
            device; the state_dict has more than tensors in it, which only torch.save can write. ``path`` is
            as before, whatever ends the call.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save needs an nn.Module, not {type(model).__name__}")
    if max_shard_size <= 0:
        raise ValueError(f"max_shard_size is in bytes and positive, not {max_shard_size}")
    path = Path(path)
    model = unwrap(model)
    state = model.state_dict()
    if meta := [name for name, each in state.items() if isinstance(each, Tensor) and each.is_meta]:
        raise FileError(f"{path}: {meta[0]} is on the meta device and holds no numbers: load them first")
    if path.suffix and not path.is_dir() and not is_safetensors(path):
        state._metadata.setdefault("", {})[METADATA_KEY] = FORMAT  # type: ignore[attr-defined]
        write(StateFile(state), path)
        return
    others = [name for name, each in state.items() if not isinstance(each, Tensor)]
    if others:
        raise FileError(f"{path}: {others[0]} is no tensor: only a file of torch.save, say .pt, can hold it")
    tensors = dict(_without_ties(model, state))
    if path.suffix and not path.is_dir():
        write(StateFile(tensors, _metadata()), path)
        return
    _save_folder(tensors, path, max_shard_size)


def _metadata() -> dict[str, str]:
    return {"format": "pt", METADATA_KEY: str(FORMAT)}


def _without_ties(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor once: a parameter of two names is tied in any model of the class; copies of views."""
    owners: dict[str, int] = {}
    for name, parameter in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        owners[name] = id(parameter)
    seen: set[int] = set()
    memory: set[int] = set()
    for name, tensor in state.items():
        owner = owners.get(name)
        if owner is not None and owner in seen:
            continue
        if owner is not None:
            seen.add(owner)
        plain = tensor.detach()
        place = plain.untyped_storage().data_ptr()
        yield name, plain.clone() if place in memory and place else plain
        memory.add(place)


def _save_folder(tensors: dict[str, Tensor], path: Path, most: int) -> None:
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    parts: list[dict[str, Tensor]] = [{}]
    room = most
    for name, tensor in tensors.items():
        if sizes[name] > room and parts[-1]:
            parts.append({})
            room = most
        parts[-1][name] = tensor
        room -= sizes[name]
    with making(path, sum(sizes.values())) as folder:
        if len(parts) == 1:
            write(StateFile(parts[0], _metadata()), folder / "model.safetensors")
            return
        where: dict[str, str] = {}
        for number, part in enumerate(parts, 1):
            name = f"model-{number:05}-of-{len(parts):05}.safetensors"
            write(StateFile(part, _metadata()), folder / name)
            where |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(index_text(where, sum(sizes.values())))
