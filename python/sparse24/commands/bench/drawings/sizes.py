"""Plots of memory, and of masks."""

from __future__ import annotations

from collections.abc import Iterator

from ...page import plots
from ..table import Table
from .drawing import HERE, Drawing, column, number


def memory(tables: dict[str, Table]) -> Iterator[Drawing]:
    """What networks hold, dense and 2:4."""
    yield _memory(tables["memory"], "memory", "Bytes of all tensors that are alive after a forward")


def gpu_memory(tables: dict[str, Table]) -> Iterator[Drawing]:
    """What layers hold on a GPU."""
    yield _memory(tables["gpu-memory"], "gpu-memory", "What torch's allocator has given out")


def _memory(table: Table, name: str, what: str) -> Drawing:
    heads = (table.rows[0][0], "dtype", "dense MB", "2:4 MB")
    rows = [
        (f"{label}, {dtype}", {"dense": number(dense) or 0.0, "2:4": number(sparse) or 0.0})
        for label, dtype, dense, sparse in zip(*(column(table, head) for head in heads), strict=True)
    ]
    return Drawing(name, plots.grouped(rows, "MB", "Memory that is held"), f"{what}, {HERE}.")


def masks(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Rates of the kernels, from C++."""
    yield _masks(tables["masks"], "masks", "GB/s", "GB/s of the weight that is read")


def masks_python(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Times of the functions, over plain torch."""
    yield _masks(tables["masks-python"], "masks-python", "x torch", "times as fast as plain torch")


def gpu_masks(tables: dict[str, Table]) -> Iterator[Drawing]:
    """The same on a GPU."""
    yield _masks(tables["gpu-masks"], "gpu-masks", "x torch", "times as fast as plain torch")


def _masks(table: Table, name: str, head: str, label: str) -> Drawing:
    what = table.rows[0][0]
    values = ((row, number(cell)) for row, cell in zip(column(table, what), column(table, head), strict=True))
    rows = [(row, value) for row, value in values if value is not None]
    return Drawing(name, plots.bars(rows, label, f"Masks, {what}"), f"{HERE.capitalize()}.")
