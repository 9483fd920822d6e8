"""Plots as SVG text: the same figures give the same bytes, and a reader's theme gives the colour of the ink.

Needs matplotlib (the extra ``demo``). Text stays text. Series differ in colour, marker and dash, and the
colours are told apart with the common kinds of colour blindness, on white and on black.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .figures import tidied

Points = Sequence[tuple[float, float]]

#: What ``figures.tidied`` makes the colour of the surrounding text.
INK = "#010203"
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#2f7fd1", "#dd7a17", "#17a07a", "#9a6fe0", "#d8475a", "#848c96"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
_MARKERS, _DASHES = "osD^vP", ("-", "--", "-.", ":")
_WIDTH = 9.0  # inches, of 72 units of the drawing
_ROW = 0.3  # inches
_MANY_POINTS = 25  # more need no markers
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "sparse24", "text.parse_math": False, "font.size": 9,
    "font.family": ["DejaVu Sans"], "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlelocation": "left", "axes.titlesize": 10, "axes.axisbelow": True, "grid.color": INK,
    "grid.alpha": 0.15, "legend.frameon": False, "savefig.transparent": True,
}  # fmt: skip


def lines(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    title: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    points: Mapping[str, Points] | None = None,
) -> str:
    """Lines through points.

    Args:
        series: the points (x, y) of each line, by its name in the legend; one without points is left out.
        log_x, log_y: logarithmic axes.
        bands: (x, low, high) around the line of that name.
        points: more of them, which no line joins.

    Raises:
        ValueError: nothing to draw, a number that is not finite, one that is not positive on a logarithmic
            axis, or a band without its line.
    """
    joined = {name: sorted(given) for name, given in series.items() if given}
    scattered = {name: list(given) for name, given in (points or {}).items() if given}
    around = bands or {}
    everything = [*joined.values(), *scattered.values()]
    _check(title, [x for each in everything for x, _ in each], log_x)
    _check(title, [y for each in everything for _, y in each], log_y)
    for name, band in around.items():
        if name not in joined:
            raise ValueError(f"there is a band for {name!r}, but no line of that name: {', '.join(joined)}")
        _check(title, [edge for _, *edges in band for edge in edges], log_y)

    def draw(axes: Axes) -> list[Artist]:
        colours = itertools.cycle(PALETTE)
        handles: list[Artist] = []
        kinds = zip(itertools.cycle(_MARKERS), itertools.cycle(_DASHES), strict=False)
        for (name, given), (marker, dash) in zip(joined.items(), kinds, strict=False):
            colour = next(colours)
            (line,) = axes.plot(
                *zip(*given, strict=True), dash, color=colour, label=name, marker=marker, markersize=4
            )
            if len(given) > _MANY_POINTS:
                line.set_marker("")
            if around.get(name):
                at, low, high = zip(*around[name], strict=True)
                axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            handles.append(line)
        for (name, given), marker in zip(scattered.items(), reversed(_MARKERS * 3), strict=False):
            handles += axes.plot(
                *zip(*given, strict=True), marker, color=next(colours), label=name, markersize=6
            )
        if log_x:
            axes.set_xscale("log")
            _set_log_ticks(axes.xaxis, [x for each in everything for x, _ in each])
        if log_y:
            axes.set_yscale("log")
            _set_log_ticks(axes.yaxis, [])
        axes.grid(True)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        return handles

    return _drawn(draw, 4.2)


def bars(rows: Sequence[tuple[str, float]], x_label: str, title: str, reference: float | None = None) -> str:
    """A bar a row, with its number; those short of ``reference``, where a line stands, in another colour.

    Raises:
        ValueError: no rows, or a number that is not finite.
    """
    return grouped([(name, {"": value}) for name, value in rows], x_label, title, reference)


def grouped(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    x_label: str,
    title: str,
    reference: float | None = None,
) -> str:
    """Rows of bars, one a kind; a kind that a row does not have takes no room in it.

    Args:
        rows: the numbers of a row by kind, in the same order everywhere; the kind "" alone has no legend.

    Raises:
        ValueError: no rows, or a number that is not finite.
    """
    _check(title, [value for _, values in rows for value in values.values()])
    kinds = list(dict.fromkeys(kind for _, values in rows for kind in values))
    colours = dict(zip(kinds, itertools.cycle(PALETTE), strict=False))
    count = sum(max(1, len(values)) for _, values in rows)

    def draw(axes: Axes) -> list[Artist]:
        at, middles = 0.0, []
        numbers = [value for _, values in rows for value in values.values()]
        low, high = min(0.0, *numbers), max(0.0, reference or 0.0, *numbers)
        for _, values in rows:
            middles.append(at + (max(1, len(values)) - 1) / 2)
            for kind, value in values.items():
                short = kinds == [""] and reference is not None and value < reference
                box = axes.barh(at, value, 0.8, color=ORANGE if short else colours[kind])
                if reference is not None and 0 < reference - value < 0.08 * (high - low):  # the line is there
                    axes.bar_label(box, [_short(value)], padding=-30, color="#ffffff")
                else:
                    axes.bar_label(box, [_short(value)], padding=3)
                at += 1
            at += 0.5 + (not values)
        axes.set_xlim(low - 0.12 * (high - low) * (low < 0), high + 0.12 * (high - low))
        _set_rows(axes, [name for name, _ in rows], middles, -0.7, at - 0.8)
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=1, linestyle="--")
        axes.grid(True, axis="x")
        axes.set(xlabel=x_label, title=title)
        return [Patch(color=colours[kind], label=kind) for kind in kinds if kind]

    return _drawn(draw, 1.0 + _ROW * (count + 0.5 * len(rows)))


def stacked(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], x_label: str, title: str) -> str:
    """A bar a row, made of parts, whose sum stands at its end; a part has one colour in all rows.

    Raises:
        ValueError: no rows, or a number that is not finite or is negative.
    """
    values = [value for _, parts in rows for _, value in parts]
    _check(title, values)
    if min(values) < 0:
        raise ValueError(f"the parts of a bar cannot be negative, as in {title!r}: {min(values):g}")
    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts))
    hatches = [""] * len(PALETTE) + ["///"] * len(PALETTE)
    looks = dict(zip(names, zip(itertools.cycle(PALETTE), itertools.cycle(hatches)), strict=False))

    def draw(axes: Axes) -> list[Artist]:
        longest = max(sum(value for _, value in parts) for _, parts in rows)
        for index, (_, parts) in enumerate(rows):
            start = 0.0
            for name, value in parts:
                colour, hatch = looks[name]
                box = axes.barh(index, value, 0.72, start, color=colour, hatch=hatch, edgecolor="#ffffff")
                if value > 0.07 * longest:
                    axes.bar_label(box, [_short(value)], label_type="center", color="#ffffff")
                start += value
            axes.annotate(_short(start), (start, index), (4, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, 1.12 * longest)
        _set_rows(axes, [name for name, _ in rows], range(len(rows)), -0.6, len(rows) - 0.4)
        axes.grid(True, axis="x")
        axes.set(xlabel=x_label, title=title)
        return [Patch(facecolor=looks[name][0], hatch=looks[name][1], label=name) for name in names]

    return _drawn(draw, 1.6 + 0.5 * len(rows))


def differences(rows: Sequence[tuple[str, float, float, bool]], x_label: str, title: str) -> str:
    """Paired differences, sparse minus dense: a dot a row on a band of what the dense seeds differ by.

    Args:
        rows: name, mean of the differences, spread of the dense seeds (the band is from -spread to spread
            around 0), and whether the row passes; one that does not is a cross.

    Raises:
        ValueError: no rows, a number that is not finite, or a negative spread.
    """
    _check(title, [value for _, mean, spread, _ in rows for value in (mean, spread)])
    if min(spread for _, _, spread, _ in rows) < 0:
        raise ValueError(f"a spread cannot be negative, as in {title!r}")

    def draw(axes: Axes) -> list[Artist]:
        axes.axvline(0, color=INK, linewidth=1)
        for index, (_, mean, spread, passed) in enumerate(rows):
            axes.barh(index, 2 * spread, 0.62, -spread, color=GREY, alpha=0.35)
            axes.plot(mean, index, "o" if passed else "X", color=BLUE if passed else RED, markersize=6.5)
        _set_rows(axes, [name for name, *_ in rows], range(len(rows)), -0.7, len(rows) - 0.3)
        axes.margins(x=0.06)
        axes.grid(True, axis="x")
        axes.set(xlabel=x_label, title=title)
        made: list[Artist] = [Patch(color=GREY, alpha=0.35, label="spread of the dense seeds")]
        for passing, marker, colour, label in (
            (True, "o", BLUE, "mean difference"),
            (False, "X", RED, "mean difference of a row that fails"),
        ):
            if any(passed is passing for *_, passed in rows):
                made.append(Line2D([], [], linestyle="", marker=marker, color=colour, label=label))
        return made

    return _drawn(draw, 1.3 + 0.27 * len(rows))


def _short(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _check(title: str, values: Sequence[float], is_log: bool = False) -> None:
    if not values:
        raise ValueError(f"there is nothing to draw in {title!r}")
    wrong = [value for value in values if not math.isfinite(value) or (is_log and value <= 0)]
    if wrong:
        asked = "positive and finite (its axis is logarithmic)" if is_log else "finite"
        raise ValueError(f"every number in {title!r} must be {asked}, not {wrong[0]:g}")


def _set_log_ticks(axis: mpl.axis.Axis, values: Iterable[float]) -> None:
    """At the values where there are few, such as powers of two; else at 1, 2, 5, 10 ..."""
    own = sorted(set(values))
    few = 1 < len(own) <= 9 and all(b / a > 1.3 for a, b in itertools.pairwise(own))
    axis.set_major_locator(FixedLocator(own) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _set_rows(axes: Axes, names: Sequence[str], at: Iterable[float], first: float, last: float) -> None:
    """Rows from the top down; long names on several lines."""
    axes.set_yticks(list(at), [textwrap.fill(name, 44) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(last, first)


def _drawn(draw: Callable[[Axes], list[Artist]], height: float) -> str:
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        handles = draw(figure.subplots())
        if handles:
            longest = max(len(str(handle.get_label())) for handle in handles)
            columns = max(1, min(len(handles), int(130 / (longest + 8))))
            figure.legend(handles=handles, loc="outside lower left", ncols=columns)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return tidied(file.getvalue(), INK)
