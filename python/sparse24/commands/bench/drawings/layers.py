"""Plots of single products: speed against tokens, convolutions, and this machine beside others' figures."""

from __future__ import annotations

from collections.abc import Iterator

from ...page import plots
from .. import published
from ..table import Table
from .drawing import HERE, Drawing, band, by_tokens, column, line, number

#: Published cards that stand beside this machine.
CARDS = ("A100 bf16", "H100 PCIe bf16", "RTX 4090 bf16", "B200 bf16")
RATIO = "times as fast as dense"


def linear(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Rates, then ratios beside published ones."""
    table = tables["linear"]
    tokens = column(table, "tokens")
    rates = {
        name: line(by_tokens(tokens, column(table, head)))
        for name, head in (("torch", "torch GF/s"), ("best dense", "best dense GF/s"), ("2:4", "2:4 GF/s"))
    }
    yield Drawing(
        "linear",
        plots.lines(rates, "tokens", "GF/s of the dense product", "Linear layers in fp32", log_x=True),
        f"Speed against tokens, {HERE}: geometric means over BERT-Large's shapes.",
    )
    yield from _beside(
        "linear-published",
        {
            "here, fp32, over torch": by_tokens(tokens, column(table, "x torch")),
            "here, fp32, over the best dense": by_tokens(tokens, column(table, "x best dense")),
        },
    )


def _beside(name: str, here: dict[str, dict[int, list[float]]]) -> Iterator[Drawing]:
    series = {label: line(each) for label, each in here.items()}
    bands = {label: band(each) for label, each in here.items()}
    for card in CARDS:
        medians = published.CARDS[card].items()
        series[f"published: {card}"] = [(tokens, ratios.median) for tokens, ratios in medians]
    svg = plots.lines(series, "tokens", RATIO, "2:4 over dense, here and on GPUs", log_x=True, bands=bands)
    yield Drawing(
        name,
        svg,
        f"Lines called here: {HERE}, geometric means over the shapes, and from the least to the most. "
        f"Published: medians over other shapes, not measured here; {published.KERNELS}.",
    )


def narrow(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Ratios against tokens, a line a dtype."""
    table = tables["narrow"]
    for name, head, rival in (
        ("narrow", "x torch", "torch"),
        ("narrow-best", "x best dense", "the best dense"),
    ):
        series = {kind: line(each) for kind, each in _by_dtype(table, head).items()}
        svg = plots.lines(
            series, "tokens", f"times as fast as {rival}", f"Linear layers over {rival}", log_x=True
        )
        caption = f"Geometric means over BERT-Large's shapes, {HERE}, against {rival} in the same dtype."
        yield Drawing(name, svg, caption)


def _by_dtype(table: Table, head: str) -> dict[str, dict[int, list[float]]]:
    """The numbers under a heading, by dtype and then by tokens."""
    kinds, tokens, cells = (column(table, name) for name in ("dtype", "tokens", head))
    found = {}
    for kind in dict.fromkeys(kinds):
        mine = [i for i, each in enumerate(kinds) if each == kind]
        found[kind] = by_tokens([tokens[i] for i in mine], [cells[i] for i in mine])
    return found


def decode(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Ratios of few tokens."""
    table = tables["decode"]
    tokens = column(table, "tokens")
    series = {
        f"over {rival}": line(by_tokens(tokens, column(table, head)))
        for rival, head in (("torch", "x torch"), ("the best dense", "x best dense"))
    }
    svg = plots.lines(series, "tokens", RATIO, "Few tokens, cold weights, fp32", log_x=True)
    yield Drawing("decode", svg, f"Geometric means over BERT-Large's shapes, {HERE}.")


def conv(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Bars of every shape."""
    table = tables["conv"]
    names = column(table, table.rows[0][0])
    over = {"over torch": column(table, "x torch"), "over prepacked oneDNN": column(table, "x prepacked")}
    yield _bars("conv", "Convolutions in fp32", names, over, f"Batch 8, {HERE}.")


def _bars(name: str, title: str, rows: list[str], kinds: dict[str, list[str]], caption: str) -> Drawing:
    made: list[tuple[str, dict[str, float]]] = []
    for index, row in enumerate(rows):
        values = {kind: number(cells[index]) for kind, cells in kinds.items()}
        made.append((row, {kind: value for kind, value in values.items() if value is not None}))
    return Drawing(name, plots.grouped(made, f"{RATIO} (1: as fast)", title, reference=1.0), caption)


def talk(tables: dict[str, Table]) -> Iterator[Drawing]:
    """The talk's products here and there."""
    table = tables["talk"]
    kinds = {
        "here, fp32": column(table, "x torch, fp32"),
        "here, bf16": column(table, "x torch, bf16"),
        "published: A100, FP16": column(table, "published: A100, FP16"),
    }
    caption = f"Here: {HERE}, over stock torch. Published: {published.TALK}, not measured here."
    yield _bars("talk", "The talk's products", column(table, "product"), kinds, caption)


def gpu_linear(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Ratios of a GPU against tokens, beside published ones."""
    here = {f"here, {kind}": each for kind, each in _by_dtype(tables["gpu-linear"], "x dense").items()}
    yield from _beside("gpu-linear", here)


def gpu_decode(tables: dict[str, Table]) -> Iterator[Drawing]:
    """Ratios of few tokens on a GPU."""
    series = {kind: line(each) for kind, each in _by_dtype(tables["gpu-decode"], "x dense").items()}
    svg = plots.lines(series, "tokens", RATIO, "Few tokens, cold weights", log_x=True)
    yield Drawing("gpu-decode", svg, f"Geometric means over the shapes, {HERE}.")


def gpu_conv(tables: dict[str, Table]) -> Iterator[Drawing]:
    """The talk's convolutions on a GPU."""
    table = tables["gpu-conv"]
    kinds = {
        "here": column(table, "x dense"),
        "published: A100, FP16": column(table, "published: A100, FP16"),
    }
    caption = f"Here: {HERE}. Published: {published.TALK}, not measured here."
    yield _bars("gpu-conv", "The talk's convolutions", column(table, "convolution"), kinds, caption)
