"""Calibration data from files: texts, or a folder of images, as a model's inputs."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...files import FileError
from . import pretrained
from .pretrained import Kind

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
_USUAL_LENGTH = 512


class Wanted(Protocol):
    """How much of the data is used."""

    @property
    def samples(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def seed(self) -> int: ...


Batch = dict[str, Tensor]


def batches(source: Path, given: Path, kind: Kind, wanted: Wanted) -> list[Batch]:
    """Batches of named inputs for the model in ``source``.

    Texts are lines of a file, or of the files of a folder; a .jsonl file holds them as ``text``. A model that
    predicts from left to right gets windows of the running text, one after the other in the files, chosen at
    random; others get lines. An encoder and decoder gets the same text on both sides.

    Raises:
        FileError: no such data, too little of it, or data that the model does not take.
    """
    if not given.exists():
        raise FileError(f"{given}: No such file or directory")
    if kind.is_vision:
        return _of_images(source, given, wanted)
    lines = _lines(given)
    tokenizer = pretrained.tokenizer(source)
    length = wanted.length or min(_USUAL_LENGTH, kind.longest or _USUAL_LENGTH)
    if kind.longest and length > kind.longest:
        raise FileError(f"--length {length} is more than the {kind.longest} tokens that the model takes")
    if kind.is_causal:
        return _windows(given, tokenizer, lines, length, wanted)
    found = _sentences(tokenizer, lines, length, wanted)
    if kind.is_encoder_decoder:
        return [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in found]
    return found


def _lines(given: Path) -> list[str]:
    files = sorted(p for p in given.rglob("*") if p.is_file()) if given.is_dir() else [given]
    files = [path for path in files if not path.name.startswith(".")]
    lines: list[str] = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{path}: is no text in UTF-8: {error}") from error
        if path.suffix == ".jsonl":
            lines += [
                _text_of(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line
            ]
        else:
            lines += text.splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise FileError(f"{given}: holds no text")
    return lines


def _text_of(path: Path, number: int, line: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise FileError(f"{path}: line {number} is no JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise FileError(f'{path}: line {number} has no "text"')
    return str(found["text"])


def _windows(given: Path, tokenizer: Any, lines: Sequence[str], length: int, wanted: Wanted) -> list[Batch]:
    tokens: list[int] = []
    for line in lines:
        tokens += tokenizer(line + "\n", add_special_tokens=False)["input_ids"]
    starts = list(range(0, len(tokens) - length + 1, length))
    if not starts:
        raise FileError(f"{given}: holds {len(tokens)} tokens, a window {length}: give a shorter --length")
    random.Random(wanted.seed).shuffle(starts)
    windows = torch.tensor([tokens[start : start + length] for start in sorted(starts[: wanted.samples])])
    return [{"input_ids": part} for part in windows.split(wanted.batch)]  # type: ignore[no-untyped-call]


def _sentences(tokenizer: Any, lines: Sequence[str], length: int, wanted: Wanted) -> list[Batch]:
    """Lines in batches of similar length, so that little is padded; the order of batches is random."""
    rng = random.Random(wanted.seed)
    some = rng.sample(list(lines), min(wanted.samples, len(lines)))
    some.sort(key=len)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    parts = [some[i : i + wanted.batch] for i in range(0, len(some), wanted.batch)]
    rng.shuffle(parts)
    found = [
        tokenizer(p, padding=True, truncation=True, max_length=length, return_tensors="pt") for p in parts
    ]
    return [dict(batch) for batch in found]


def _of_images(source: Path, given: Path, wanted: Wanted) -> list[Batch]:
    paths = sorted(p for p in given.rglob("*") if p.suffix.lower() in _IMAGES) if given.is_dir() else []
    if not paths:
        kinds = ", ".join(sorted(_IMAGES))
        raise FileError(f"{given}: the model takes images: give a folder of them ({kinds})")
    images = pretrained.imaging()
    processor = pretrained.image_processor(source)
    paths = random.Random(wanted.seed).sample(paths, min(wanted.samples, len(paths)))
    found = []
    for begin in range(0, len(paths), wanted.batch):
        opened = []
        for path in paths[begin : begin + wanted.batch]:
            try:
                with images.open(path) as image:
                    opened.append(image.convert("RGB"))
            except OSError as error:
                raise FileError(f"{path}: is no image: {error}") from error
        found.append({"pixel_values": processor(opened, return_tensors="pt")["pixel_values"]})
    return found
