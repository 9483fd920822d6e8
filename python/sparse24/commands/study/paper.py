"""The study's tables and page: rows that fail first, then each family, recipes, and the comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...timing import Machine
from ..bench.machine import MachineClass
from ..page import Page, plots
from . import comparison, verdicts
from .rows import ROWS, Row
from .verdicts import Verdict
from .ways import OPEN_QUESTIONS, OTHERS, WAYS, Unit

Kept = Sequence[tuple[Unit, Mapping[str, Any]]]
HEAD = [
    "network", "layers", "width", "parameters", "training", "steps", "metric", "seeds", "dense", "2:4",
    "difference", "least", "passes", "dense again", "less that", "int8", "QAT",
]  # fmt: skip

_OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}
_HOW = (
    "Each is trained dense, pruned once by magnitude, and trained again with the same schedule, the "
    "masks fixed. Differences are less the dense network, paired by seed, turned so that more is "
    "better, in the metric's unit. A row passes if the mean of 2:4's is no worse than -2 s / "
    "sqrt(pairs) (the column `least`), s the spread of dense seeds, pooled over the rows of a task. "
    "`Dense again`: the dense network trained a second time, as the sparse one was; `less that`: 2:4 "
    "less it, which is what sparsity costs at equal training. int8: of the sparse network.\n\n"
    "The networks are small, so that a training takes about a minute: they tell whether the recipe "
    "works over kinds of networks, not what it costs at the size of the talk's."
)


class Section(NamedTuple):
    """A part of the paper."""

    title: str
    text: str
    rows: list[list[str]]
    figure: str = ""  #: SVG
    caption: str = ""


class Finding(NamedTuple):
    """A row of the study, judged."""

    row: Row
    metric: str
    data: str
    size: tuple[str, str, str]  #: layers, width, parameters
    verdict: Verdict
    others: dict[str, Verdict]  #: of its other ways, against the dense one
    equal: Verdict | None  #: against the dense one that is trained as long


def findings(kept: Kept) -> list[Finding]:
    """Every row that has a pair."""
    scores = verdicts.scores_of(kept)
    some = {unit.row: result for unit, result in kept if unit.row != comparison.KEY}
    by_data: dict[str, list[list[float]]] = {}
    for key, result in some.items():
        by_data.setdefault(result["data"], []).append(list(scores.get((key, "dense"), {}).values()))
    found = []
    for row in ROWS:
        if row.key not in some:
            continue
        result = some[row.key]
        spread = verdicts.pooled_spread(by_data[result["data"]])
        better = 1 if result["higher_is_better"] else -1
        judged = {
            way: each
            for way in WAYS
            if way != "dense"
            and (each := verdicts.verdict(scores, row.key, way, spread, better=better)) is not None
        }
        if "sparse" in judged:
            equal = verdicts.verdict(scores, row.key, "sparse", spread, better=better, base="again")
            size, verdict = _size(row.key, kept), judged.pop("sparse")
            found.append(Finding(row, result["metric"], result["data"], size, verdict, judged, equal))
    return found


def _size(key: str, kept: Kept) -> tuple[str, str, str]:
    """What tables say of a network's size."""
    sizes = [result for unit, result in kept if unit.row == key and "layers" in result]
    if not sizes:
        return "-", "-", "-"
    return str(sizes[0]["layers"]), str(sizes[0]["width"]), f"{sizes[0]['parameters']:,}"


def sections(kept: Kept) -> list[Section]:
    """All parts, from what there is."""
    found = findings(kept)
    parts = [_summary(found)]
    failing = [finding for finding in found if finding.verdict.passed is False]
    if failing:
        parts.append(
            Section("Rows that fail", "The recipe lost more here than seeds differ by.", _table(failing))
        )
    for family in dict.fromkeys(finding.row.family for finding in found):
        rows = [finding for finding in found if finding.row.family == family]
        parts.append(Section(family.capitalize(), "", _table(rows)))
    parts += [_open_questions(found)] if any(_questions(f) for f in found) else []
    curves = [(unit, result) for unit, result in kept if unit.row == comparison.KEY]
    return parts + ([_comparison(curves)] if curves else [])


def _summary(found: Sequence[Finding]) -> Section:
    judged = [finding for finding in found if finding.verdict.passed is not None]
    passing = sum(bool(finding.verdict.passed) for finding in judged)
    counts = f"{len(found)} networks, {len(judged)} of them with two seeds or more, of which {passing} pass."
    text = f"{counts}\n\n{_HOW}"
    if not found:
        return Section("Summary", text, [])
    drawn = [
        (f"{f.row.network}, {f.data}", _in_spreads(f), 2 / math.sqrt(f.verdict.pairs), bool(f.verdict.passed))
        for f in judged
        if f.verdict.spread > 0
    ]
    figure = (
        plots.differences(drawn, "difference / spread of dense seeds", "Sparse minus dense") if drawn else ""
    )
    caption = "Mean differences in units of the task's spread s; the band ends where a row stops passing."
    return Section("Summary", text, [], figure, caption)


def _in_spreads(finding: Finding) -> float:
    return finding.verdict.difference / finding.verdict.spread


def _table(found: Sequence[Finding]) -> list[list[str]]:
    rows = [HEAD]
    for finding in found:
        verdict, training = finding.verdict, finding.row.training
        passes = {True: "yes", False: "no", None: "one seed"}[verdict.passed]
        least = "-" if math.isnan(verdict.bound) else f"{verdict.bound:+.3g}"
        rows.append(
            [
                finding.row.network, *finding.size, f"{_OPTIMIZERS[training.optimizer]} {training.dtype}",
                f"{training.steps:,}", f"{finding.metric}, {finding.data}", str(verdict.pairs),
                f"{verdict.dense:.4g}", f"{verdict.sparse:.4g}",
                f"{verdict.difference:+.3g}", least, passes,
                _less(finding, "again"), f"{finding.equal.difference:+.3g}" if finding.equal else "-",
                *(_less(finding, way) for way in ("int8", "qat")),
            ]
        )  # fmt: skip
    return rows


def _less(finding: Finding, way: str) -> str:
    verdict = finding.others.get(way)
    return f"{verdict.difference:+.3g}" if verdict is not None else "-"


def _questions(finding: Finding) -> bool:
    return finding.row.key in OPEN_QUESTIONS and any(way in finding.others for way in OTHERS)


def _open_questions(found: Sequence[Finding]) -> Section:
    rows = [["network", "metric", "way", "seeds", "score", "less dense"]]
    for finding in filter(_questions, found):
        every = {"sparse": finding.verdict, **finding.others}
        for way in ("sparse", "again", *OTHERS):
            if way in every:
                one = every[way]
                rows.append(
                    [finding.row.network, finding.metric, WAYS[way].what, str(one.pairs), f"{one.sparse:.4g}",
                     f"{one.difference:+.3g}"]
                )  # fmt: skip
    text = "Other recipes on two networks. Scores are means over seeds; the dense network is trained once."
    return Section("Open questions", text, rows)


def _comparison(kept: Kept) -> Section:
    rows = [["way", "seeds", "weights kept", "parameters", "loss, nats a byte", "less dense", "spread"]]
    series: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    dense = {unit.seed: result["score"] for unit, result in kept if unit.way == "dense"}
    for way, what in comparison.WAYS.items():
        results = {unit.seed: result for unit, result in kept if unit.way == way}
        if not results:
            continue
        any_ = next(iter(results.values()))
        scores = [result["score"] for result in results.values()]
        pairs = [result["score"] - dense[seed] for seed, result in results.items() if seed in dense]
        rows.append(
            [
                what, str(len(results)), f"{any_['kept']:.0%}", f"{any_['parameters']:,}",
                f"{statistics.fmean(scores):.4f}",
                f"{statistics.fmean(pairs):+.4f}" if pairs else "-",
                f"{max(scores) - min(scores):.4f}" if len(scores) > 1 else "-",
            ]
        )  # fmt: skip
        steps = [step for step, _ in any_["curve"]]
        values = [[loss for _, loss in result["curve"]] for result in results.values()]
        columns = [column for step, *column in zip(steps, *values, strict=False) if step >= 0]
        shown = [step for step in steps if step >= 0]
        if way != "start":
            series[what] = [(s, statistics.fmean(c)) for s, c in zip(shown, columns, strict=True)][1:]
            bands[what] = [(s, min(c), max(c)) for s, c in zip(shown, columns, strict=True)][1:]
    figure = ""
    if series:
        figure = plots.lines(
            series, "steps after pruning", "validation loss, nats a byte", "From one dense start", bands=bands
        )
    text = (
        f"A byte-level transformer, {comparison.TRAINING.steps} steps dense and then as many pruned: all "
        "from one dense start but the half-wide one, which has as many steps from nothing. Less dense: "
        "paired by seed; more is worse."
    )
    caption = "Validation loss against steps; bands: from the best seed to the worst."
    return Section("The alternatives", text, rows, figure, caption)


def markdown(parts: Sequence[Section], command: str, about: str) -> str:
    """The study as a paper of Markdown."""
    lines = ["# Study", "", f"By `{command}`. {about}", ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        lines += [part.text, ""] if part.text else []
        if part.rows:
            head, *body = part.rows
            lines += ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def page(parts: Sequence[Section], command: str, about: str) -> Page:
    """The same as a page with plots."""
    made = Page("sparse24 study")
    made.command(command)
    made.text(about)
    for part in parts:
        made.heading(part.title)
        if part.text:
            made.text(part.text)
        if part.figure:
            made.figure(part.figure, part.caption)
        if part.rows:
            made.table(part.rows)
    return made


def about(kept: Kept, failed: Mapping[str, str], asked: Sequence[str] = ()) -> str:
    """The machine, the seeds and the time; which of the rows that were asked for are missing."""
    seeds = sorted({unit.seed for unit, _ in kept})
    spent = sum(result["whole_seconds"] for _, result in kept)
    jobs = sorted({result["jobs"] for _, result in kept})
    text = (
        f"{Machine.here()}; class: {MachineClass.here().title}. {len(kept)} units with the seeds "
        f"{', '.join(map(str, seeds)) or 'none'}, {spent / 3600:.1f} hours of one core, "
        f"{' or '.join(map(str, jobs)) or 0} side by side."
    )
    done = {unit.row for unit, _ in kept}
    later = [key for key in asked if key not in done]
    if later:
        text += f" Not begun yet: {', '.join(later)}."
    if failed:
        text += " Not there: " + "; ".join(f"{key} ({why})" for key, why in failed.items()) + "."
    return text
