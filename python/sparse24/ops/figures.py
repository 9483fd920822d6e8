"""Files in the user's cache folder with what was measured on this machine.

``$SPARSE24_CACHE``, by default ``sparse24`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. A file is written in one
step, and looked at before it is used; where one cannot be read, a warning says so, and it is not used.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any


def path(name: str) -> Path:
    """Where the file ``name`` is, or would be."""
    folder = os.environ.get("SPARSE24_CACHE")
    if folder:
        return Path(folder) / name
    caches = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "sparse24" / name


def read(name: str, format: int, key: str, remedy: str) -> dict[str, Any]:
    """What the file holds under ``key``; empty where there is no file, or, with a warning, no good one."""
    file = path(name)
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] == format and isinstance(found[key], dict):
            return dict(found[key])
        problem = f"format {found['format']!r} is not {format}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = repr(error)
    refuse(name, problem, remedy)
    return {}


def refuse(name: str, problem: str, remedy: str) -> None:
    """Warn that a file is not used."""
    text = f"{path(name)} cannot be read ({problem}): its figures are not used; {remedy}"
    warnings.warn(text, stacklevel=3)


def write(name: str, format: int, key: str, figures: dict[str, Any]) -> Path:
    """Replace the file in one step.

    Raises:
        OSError: the folder cannot be written to; the old file is as it was.
    """
    file = path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as draft:
        try:
            json.dump({"format": format, key: figures}, draft, indent=1)
            draft.flush()
            os.replace(draft.name, file)
        except BaseException:
            os.unlink(draft.name)
            raise
    return file
