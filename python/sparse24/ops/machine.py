"""The kind of CPU this is, and the constants that its kernels take.

The constants are a row of csrc/cpu/machine.cpp, by class of machine. ``sparse24 doctor --measure`` may find
better ones for this very machine; they are kept in ``cpu.json`` of the cache folder (``figures``), by CPU and
instruction set, and taken at the first product. Nothing is timed at import or at a call.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path
from typing import Any

from .. import _C
from . import figures
from .registry import cpu_isa

_FILE, _FORMAT = "cpu.json", 1
_REMEDY = "delete it, or run sparse24 doctor --measure again"


def machine() -> dict[str, Any]:
    """Vendor, family, model, microarchitecture, caches in bytes, and instruction sets ("features")."""
    return _C.machine()


def isas() -> list[tuple[str, str]]:
    """Every instruction set that has kernels in this build, best first, and why it cannot run here, or ""."""
    return _C.cpu_isas()


def amx_problem() -> str:
    """Why AMX cannot be used, or "". Asks the system for permission, which a process then has for good."""
    return _C.amx_problem()


def tuning() -> dict[str, Any]:
    """The constants in use; "row" says where they are from."""
    load()
    return _C.tuning()


def identity(cpu: str) -> str:
    """What measured constants are valid for."""
    found = machine()
    return f"{cpu}, family {found['family']}, model {found['model']}, {cpu_isa()}"


@functools.cache
def _digest_of_kernels() -> str:
    return hashlib.blake2b(Path(_C.__file__).read_bytes(), digest_size=6).hexdigest()


def kernels() -> str:
    """What tells one build of the kernels, with the constants in use, from another."""
    constants = hashlib.blake2b(repr(sorted(tuning().items())).encode(), digest_size=3).hexdigest()
    return f"kernels {_digest_of_kernels()}-{constants}"


@functools.cache
def load() -> None:
    """Take the constants that were measured on this machine, if there are any. Once a process."""
    known = figures.read(_FILE, _FORMAT, "cpus", _REMEDY)
    fields = known.get(identity(cpu_name())) if known else None
    if not fields:
        return
    try:
        _C.set_tuning(**fields)
    except (TypeError, ValueError) as error:
        figures.refuse(_FILE, str(error), _REMEDY)


def keep(fields: dict[str, int]) -> str:
    """Use these constants from now on, in later processes too; where they were written.

    Raises:
        ValueError: one is out of its range.
        OSError: the cache folder cannot be written to; they are used in this process alone.
    """
    _C.set_tuning(**fields)
    known = figures.read(_FILE, _FORMAT, "cpus", _REMEDY)
    return str(figures.write(_FILE, _FORMAT, "cpus", {**known, identity(cpu_name()): fields}))


def set_tuning(**fields: int) -> None:
    """Replace constants in this process; without any, the row of the machine again."""
    _C.set_tuning(**fields)


def give_memory_back() -> None:
    """Return what is free to the system: glibc keeps it where small tensors lie between large freed ones."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def cpu_name() -> str:
    """The CPU as the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return machine()["vendor"] or "CPU"
