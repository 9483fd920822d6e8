"""Plots: legible SVG of the figures given, the same bytes each time; a word about what cannot be drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from sparse24.commands.page import Page, plots

EVIL = "<script>x</script> $\\alpha$ & co"
PLOTS: dict[str, Callable[[str], str]] = {
    "lines": lambda name: plots.lines(
        {name: [(64, 2.0), (1, 1.0), (1024, 3.0)], "b": [(1, 4.0)]},
        "tokens",
        "GF/s",
        name,
        log_x=True,
        bands={name: [(1, 0.9, 1.1), (64, 1.5, 2.5)]},
        points={f"{name} measured": [(8, 2.0)]},
    ),
    "bars": lambda name: plots.bars([(name, 1.5), ("b", 0.5), ("c", -1.0)], "times", name, reference=1.0),
    "grouped": lambda name: plots.grouped([(name, {"here": 1.5, name: 2.0}), ("b", {})], "times", name),
    "stacked": lambda name: plots.stacked([(name, [(name, 1500.0), ("b", 2.0)])], "ms", name),
    "differences": lambda name: plots.differences([(name, -1, 0.2, False), ("b", 0.1, 0.2, True)], "x", name),
}


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("}text")]


@pytest.mark.parametrize("name", PLOTS)
def test_text_stays_text_and_bytes_stay_the_same(name: str) -> None:
    svg = PLOTS[name](EVIL)
    assert svg == PLOTS[name](EVIL)
    assert "<script" not in svg
    assert EVIL in words(svg)
    assert len(svg) < 20_000
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", svg)
    assert "currentColor" in svg
    assert plots.INK not in svg
    page = Page("t")
    page.figure(svg, EVIL)
    assert "http" not in page.html().replace("http-equiv", "")


def test_lines_show_names_labels_and_ticks_at_the_points() -> None:
    said = words(PLOTS["lines"]("dense"))
    assert {"dense", "b", "dense measured", "tokens", "GF/s", "1", "64", "1,024"} <= set(said)


def test_a_logarithmic_axis_of_many_values_has_round_ticks() -> None:
    said = words(plots.lines({"a": [(x, x) for x in range(1, 60)]}, "x", "y", "t", log_y=True))
    assert {"1", "2", "5", "10", "20", "50"} <= set(said)


def test_bars_show_their_numbers() -> None:
    said = words(plots.bars([("a", 1.444), ("b", 12345.6)], "times", "t", 1.0))
    assert {"a", "b", "1.44", "12,346", "times", "t"} <= set(said)


def test_a_bar_short_of_the_reference_has_another_colour() -> None:
    short, long = plots.bars([("a", 0.5)], "x", "t", 1.0), plots.bars([("a", 1.5)], "x", "t", 1.0)
    assert (plots.ORANGE in short, plots.ORANGE in long) == (True, False)
    assert plots.ORANGE not in plots.bars([("a", 0.5)], "x", "t")


def test_a_stack_shows_its_sum_and_each_part_once_in_the_legend() -> None:
    parts = [("products", 3.0), ("softmax", 1.0)]
    said = words(plots.stacked([("dense", parts), ("2:4", [("products", 2.0), ("softmax", 1.0)])], "ms", "t"))
    assert said.count("products") == said.count("softmax") == 1
    assert {"dense", "2:4", "4"} <= set(said)


def test_a_row_that_fails_is_told_by_more_than_colour() -> None:
    both = words(PLOTS["differences"]("a"))
    assert "mean difference of a row that fails" in both
    assert "mean difference" in both
    passing = words(plots.differences([("b", 0.1, 0.2, True)], "x", "t"))
    assert "mean difference of a row that fails" not in passing


NOTHING = "there is nothing to draw in 't'"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: plots.lines({}, "x", "y", "t"), NOTHING),
        (lambda: plots.lines({"a": []}, "x", "y", "t"), NOTHING),
        (lambda: plots.bars([], "x", "t"), NOTHING),
        (lambda: plots.grouped([("a", {})], "x", "t"), NOTHING),
        (lambda: plots.stacked([], "x", "t"), NOTHING),
        (lambda: plots.differences([], "x", "t"), NOTHING),
        (lambda: plots.lines({"a": [(1, float("nan"))]}, "x", "y", "t"), "must be finite, not nan"),
        (lambda: plots.lines({"a": [(0, 1)]}, "x", "y", "t", log_x=True), "must be positive and finite"),
        (
            lambda: plots.lines({"a": [(1, 1)]}, "x", "y", "t", bands={"b": [(1, 0, 2)]}),
            "a band for 'b', but no line of that name: a",
        ),
        (
            lambda: plots.lines({"a": [(1, 1)]}, "x", "y", "t", log_y=True, bands={"a": [(1, 0, 2)]}),
            "positive",
        ),
        (lambda: plots.stacked([("a", [("b", -1.0)])], "x", "t"), "cannot be negative"),
        (lambda: plots.differences([("a", 0, -1, True)], "x", "t"), "a spread cannot be negative"),
    ],
)
def test_what_cannot_be_drawn_is_said(call: Callable[[], str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
