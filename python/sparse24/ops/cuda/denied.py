"""Algorithms that crashed or hung the process that tried them: they are never tried or run again here.

``$SPARSE24_CACHE/denied.json``, by default in ``~/.cache/sparse24``, by GPU, driver, cuSPARSELt version and
dtypes: what an algorithm does to one shape it is not given a second chance with on another.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from .. import figures
from . import route, tuned
from .cusparselt import GPU

_FILE, _FORMAT = "denied.json", 1
#: Stands for ``cusparseLtMatmulSearch`` itself in journals and on the list.
LIBRARY_SEARCH = -1


def dtypes_of(call: route.Call) -> str:
    """ "float16 float16": of the operands and the output."""
    return f"{call.dtype} {call.out_dtype}".replace("torch.", "")


def _read() -> dict[str, Any]:
    return figures.read(_FILE, _FORMAT, "gpus", "delete it; what crashes is found again")


def load(device: int, gpu: GPU) -> int:
    """Deny from now on what the file names for this device; how many algorithms that are."""
    known = _read().get(tuned.identity(device, gpu), {})
    for dtypes, entries in known.items():
        for numbers, reason in entries:
            deny(gpu, dtypes, numbers, reason)
    return sum(map(len, known.values()))


def deny(gpu: GPU, dtypes: str, numbers: list[int], reason: str) -> None:
    """Never run this algorithm in this process."""
    dtype, out_dtype = (getattr(torch, name) for name in dtypes.split())
    route.denied[gpu, dtype, out_dtype, tuple(numbers)] = reason
    route.forget()


def add(device: int, gpu: GPU, dtypes: str, numbers: list[int], reason: str) -> None:
    """Deny an algorithm, in this process and in every later one.

    Raises:
        OSError: the file cannot be written; this process denies it all the same.
    """
    deny(gpu, dtypes, numbers, reason)
    _write(tuned.identity(device, gpu), dtypes, numbers, reason)


def _write(identity: str, dtypes: str, numbers: list[int], reason: str) -> None:
    known = _read()
    entries = known.setdefault(identity, {}).setdefault(dtypes, [])
    if numbers not in [entry[0] for entry in entries]:
        entries.append([numbers, reason])
        figures.write(_FILE, _FORMAT, "gpus", known)


# ---- journals: what was in flight when a whole machine, or whoever read the answers, went down -----------


def journal(number: int) -> Path:
    """Where a process of trials notes what it is about to try."""
    return figures.path(f"trials-{os.getpid()}-{number}.journal")


def recover() -> int:
    """Deny what journals of processes that are gone left unfinished; how many algorithms that are.

    A run that ends in order, by an interruption too, takes its journal away.
    """
    found = 0
    for file in figures.path(_FILE).parent.glob("trials-*.journal"):
        if _is_running(int(file.stem.split("-")[1])):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError):
            note = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
            if "begin" in note:
                _write(
                    note["identity"], note["dtypes"], note["begin"], "in flight when its process went down"
                )
                found += 1
        with contextlib.suppress(OSError):
            file.unlink()
    return found


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
