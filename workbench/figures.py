"""A comparison as figures: drawn once, for papers as PNG and SVG files and for the page as SVG text.

Colours are Okabe & Ito's (2008), heat maps cividis (Nuñez et al., 2018): both are told apart by the colour-blind;
markers and dashes differ too. No figure holds a number that is not in a table of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbench.display import number
from workbench.statistics import Estimate
from workbench.views import Loss, mean

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c7a00", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
INK, LINE, PAPER = "#1b1f24", "#d3d9df", "none"
PANEL = (2.75, 1.9)  # inches
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "workbench",
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


@dataclass(frozen=True)
class Mark:
    """How a strategy looks in every figure."""

    color: str
    marker: str
    dash: Any


@dataclass(frozen=True)
class Panel:
    """One small diagram of scores over time: a line for each strategy, its points after 0, 1, … T tasks."""

    title: str
    lines: Mapping[str, Sequence[Estimate]]
    learnt_after: int | None = None
    in_nats: bool = False


def marks(strategies: Sequence[str]) -> dict[str, Mark]:
    """A colour, a marker and a dash for each strategy; no two agree in all three."""
    kinds = (OKABE_ITO, MARKERS, DASHES)
    return {name: Mark(*(kind[place % len(kind)] for kind in kinds)) for place, name in enumerate(strategies)}  # type: ignore[arg-type]


@matplotlib.rc_context(STYLE)
def over_time(panels: Sequence[Panel], looks: Mapping[str, Mark], columns: int = 4, legend: bool = True) -> Figure:
    """Scores after each task, a panel for each domain or probe, with Student-t intervals over seeds as bands.

    Args:
        panels: At least one.
        looks: By strategy.
        columns: Panels side by side.
        legend: Whether the strategies are named below.
    """
    columns = min(columns, len(panels))
    rows, across = math.ceil(len(panels) / columns), max(1, int(PANEL[0] * columns // 1.35))
    foot = 0.4 + (0.08 + 0.19 * math.ceil(len(looks) / across) if legend else 0.0)
    width, height = PANEL[0] * columns, PANEL[1] * rows + foot
    figure = Figure((width, height))
    figure.subplots_adjust(
        0.4 / width, foot / height, 1 - 0.08 / width, 1 - 0.27 / height, wspace=0.2, hspace=0.38 if rows > 1 else 0
    )
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw_panel(axes, panel, looks)
        if place + columns >= len(panels):
            axes.set_xlabel("tasks learnt", labelpad=1)
    if legend:
        lines = [_key(look, look.dash) for look in looks.values()]
        figure.legend(lines, list(looks), loc="lower center", ncols=across, columnspacing=1.6, handlelength=2.6)
    return figure


@matplotlib.rc_context(STYLE)
def swatch(look: Mark) -> Figure:
    """A strategy's line and marker, for a legend."""
    figure = Figure((0.42, 0.16))
    figure.add_artist(
        _key(look, look.dash, x=[0.04, 0.5, 0.96], y=[0.5] * 3, markevery=[1], transform=figure.transFigure)
    )
    return figure


def _key(look: Mark, dash: object, **other: Any) -> Line2D:
    known: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": dash, "markersize": 4.5}
    return Line2D(other.pop("x", []), other.pop("y", []), linewidth=1.3, **known, **other)


def _draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, Mark]) -> None:
    axes.set_title(panel.title)
    last = 1
    if panel.learnt_after is not None:
        axes.axvline(panel.learnt_after, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    for name, line in panel.lines.items():
        look, shown = looks[name], [(x, point) for x, point in enumerate(line) if not math.isnan(point.mean)]
        last = max(last, len(line) - 1)
        x, y = [x for x, _ in shown], [point.mean for _, point in shown]
        style = look.dash if len(x) == len(line) else "none"  # what lies between measured points is not known
        axes.plot(x, y, color=look.color, marker=look.marker, linestyle=style, linewidth=1.3, markersize=3.6)
        spread = [0.0 if math.isnan(point.half_width) else point.half_width for _, point in shown]
        if any(spread) and style != "none":
            low, high = ([a + sign * b for a, b in zip(y, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=look.color, alpha=0.1, linewidth=0)
    axes.set_xlim(-0.25, last + 0.25)
    axes.set_xticks(range(0, last + 1, max(1, math.ceil(last / 8))))
    if panel.in_nats:
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])


def _legend(figure: Figure, looks: Mapping[str, Mark], columns: int) -> None:
    lines = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle=look.dash, markersize=4.5)
        for look in looks.values()
    ]
    figure.legend(lines, list(looks), loc="lower center", ncols=max(1, columns), columnspacing=1.6, handlelength=2.6)


@matplotlib.rc_context(STYLE)
def stability_plasticity(
    points: Mapping[str, tuple[Estimate, Estimate, float]], looks: Mapping[str, Mark], cost: str, legend: bool = True
) -> Figure:
    """Forgetting from left (much) to right (none) against learning accuracy: the best stands in the upper right.

    Args:
        points: Forgetting, learning accuracy and cost by strategy; the mark's area grows with the cost.
        looks: By strategy.
        cost: What the area shows, with its unit.
        legend: Whether the strategies are named beside it.
    """
    figure = Figure((6.4 if legend else 4.6, 3.4))
    figure.subplots_adjust(0.095 if legend else 0.13, 0.135, 0.7 if legend else 0.985, 0.97)
    axes = figure.add_subplot()
    dearest = max((price for _, _, price in points.values() if price > 0), default=1.0)
    for name, (forgotten, learnt, price) in points.items():
        look, area = looks[name], 25 + 275 * (price / dearest if price > 0 else 0.0)
        spread = {"xerr": forgotten.half_width, "yerr": learnt.half_width}
        known: dict[str, Any] = {axis: value for axis, value in spread.items() if not math.isnan(value)}
        axes.errorbar(forgotten.mean, learnt.mean, **known, color=look.color, linewidth=1, capsize=2, fmt="none")
        axes.scatter(
            forgotten.mean, learnt.mean, s=area, color=look.color, marker=look.marker, alpha=0.75, linewidths=0
        )
    axes.set_xlabel("forgetting (less is to the right)")
    axes.set_ylabel("learning accuracy")
    axes.margins(0.12)
    axes.invert_xaxis()
    if legend:
        handles, place = [_key(looks[name], "none") for name in points], (0.71, 0.55)
        figure.legend(
            handles, list(points), loc="center left", bbox_to_anchor=place, title=f"size: {cost}", alignment="left"
        )
    return figure


@matplotlib.rc_context(STYLE)
def score_lost(losses: Mapping[str, Sequence[Loss]], looks: Mapping[str, Mark]) -> Figure:
    """What the strict score (full) and the lenient one (hollow) fell by since each domain was learnt.

    The domains that have a lenient score are taken; a strict loss without a lenient one is lost format.
    """
    figure, axes, rows = _rows_of(losses, "score lost: ● strict, ○ lenient", "from learnt to the end")
    for place, name in rows:
        both = [loss for loss in losses[name] if not math.isnan(loss.lenient[1])]
        strict = mean([loss.strict[0] - loss.strict[1] for loss in both])
        lenient = mean([loss.lenient[0] - loss.lenient[1] for loss in both])
        line: dict[str, Any] = {"color": looks[name].color, "marker": "o", "markersize": 6}
        axes.plot([strict, lenient], [place, place], color=looks[name].color, linewidth=1.4)
        axes.plot(strict, place, **line)
        axes.plot(lenient, place, markerfacecolor="white", **line)
    return figure


@matplotlib.rc_context(STYLE)
def likelihood_lost(losses: Mapping[str, Sequence[Loss]], looks: Mapping[str, Mark]) -> Figure:
    """How many nats a token the right answer has become less likely by since each domain was learnt."""
    figure, axes, rows = _rows_of(losses, "likelihood lost, nats a token", "from learnt to the end")
    for place, name in rows:
        rise = mean([loss.nats[1] - loss.nats[0] for loss in losses[name]])
        axes.plot([0, rise], [place, place], color=looks[name].color, linewidth=1.4)
        axes.plot(rise, place, color=looks[name].color, marker="D", markersize=5)
    return figure


def _rows_of(names: Iterable[str], title: str, label: str) -> tuple[Figure, Axes, list[tuple[int, str]]]:
    """A diagram with a row for each strategy, and the rows' places."""
    names = list(names)[::-1]
    width, height = 4.6, 0.27 * len(names) + 0.85
    figure = Figure((width, height))
    left = 0.12 + 0.068 * max(map(len, names), default=1)
    figure.subplots_adjust(min(left / width, 0.6), 0.45 / height, 0.97, 1 - 0.3 / height)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), names)
    return figure, axes, list(enumerate(names))


@matplotlib.rc_context(STYLE)
def heat_map(rows: Sequence[str], columns: Mapping[str, bool], values: Sequence[Sequence[float]]) -> Figure:
    """A score matrix with its numbers.

    Args:
        rows: What was learnt.
        columns: What was tested, and whether that is a score between 0 and 1: only such a one has a colour.
        values: (rows, columns); NaN where nothing was measured.
    """
    plot = (0.52 * len(columns), 0.27 * len(rows))
    left, head = 0.15 + 0.068 * max(map(len, rows)), 0.2 + 0.045 * max(map(len, columns))
    width, height = left + plot[0] + 0.4, plot[1] + head
    figure = Figure((width, height))
    axes = figure.add_axes((left / width, 0.05 / height, plot[0] / width, plot[1] / height))
    scored = list(columns.values())
    scores = [[value if of else math.nan for value, of in zip(row, scored, strict=True)] for row in values]
    axes.imshow(scores, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            color = INK if math.isnan(scores[y][x]) or value > 0.5 else "white"
            axes.text(x, y, number(value, 2), ha="center", va="center", color=color, size=7.5)
    axes.grid(False)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), list(columns), rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def change_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> Figure:
    """Changes of scores with their numbers: orange below 0, purple above, white where there is none.

    Args:
        rows: What was tested.
        columns: What was changed.
        values: (rows, columns); NaN where nothing was measured.
    """
    plot = (0.56 * len(columns), 0.27 * len(rows))
    left, head = 0.15 + 0.08 * max(map(len, rows)), 0.25 + 0.05 * max(map(len, columns))
    width, height = left + plot[0] + 0.05 * max(map(len, columns)), plot[1] + head
    figure = Figure((width, height))
    axes = figure.add_axes((left / width, 0.05 / height, plot[0] / width, plot[1] / height))
    largest = max((abs(value) for row in values for value in row if not math.isnan(value)), default=0.0) or 1.0
    axes.imshow(values, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            color = "#fefefe" if abs(value) > 0.7 * largest else "black"  # the page turns pure white into its own paper
            axes.text(x, y, number(value, 2), ha="center", va="center", color=color, size=7.5)
    axes.grid(False)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), list(columns), rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.spines[:].set_visible(False)
    return figure
