"""Figures of a comparison: bars, curves, heat maps and layer plans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from workbench.depth import Plan
from workbench.formatting import number
from workbench.report.scores import Loss
from workbench.report.style import INK, OKABE_ITO, STYLE, Mark, key
from workbench.statistics import Estimate, mean

PANEL = (2.75, 1.9)  # inches


@dataclass(frozen=True)
class Panel:
    """One small diagram of scores over time: a line for each strategy, its points after 0, 1, … T tasks."""

    title: str
    lines: Mapping[str, Sequence[Estimate]]
    learnt_after: int | None = None
    in_nats: bool = False


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
        lines = [key(look, look.dash) for look in looks.values()]
        names = [look.named(name) for name, look in looks.items()]
        figure.legend(lines, names, loc="lower center", ncols=across, columnspacing=1.6, handlelength=2.6)
    return figure


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
        line_of: dict[str, Any] = {"color": look.color, "marker": look.marker, "markerfacecolor": look.fill}
        axes.plot(x, y, linestyle=style, linewidth=1.3, markersize=3.6, **line_of)
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


@matplotlib.rc_context(STYLE)
def over_steps(lines: Mapping[str, Sequence[tuple[int, float]]], looks: Mapping[str, Mark], measure: str) -> Figure:
    """What was scored in mid-task, by optimizer steps: how a model recovers from a surgery, say.

    Args:
        lines: (step, value) by strategy, as `RunFolder.within` gives them.
        looks: By strategy.
        measure: What the values are, with their unit.
    """
    figure = Figure((5.2, 2.7))
    figure.subplots_adjust(0.11, 0.16, 0.66, 0.96)
    axes = figure.add_subplot()
    for name, line in lines.items():
        axes.plot(
            *zip(*line, strict=True), color=looks[name].color, linestyle=looks[name].dash, marker=looks[name].marker
        )
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(measure)
    handles = [key(looks[name], looks[name].dash) for name in lines]
    names = [looks[name].named(name) for name in lines]
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.67, 0.55), handlelength=2.6)
    return figure


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
        drawn: dict[str, Any] = {"marker": look.marker, "alpha": 0.75, "linewidths": 1.4 if look.bound else 0}
        axes.scatter(forgotten.mean, learnt.mean, s=area, facecolors=look.fill, edgecolors=look.color, **drawn)
    axes.set_xlabel("forgetting (less is to the right)")
    axes.set_ylabel("learning accuracy")
    axes.margins(0.12)
    axes.invert_xaxis()
    if legend:
        handles, place = [key(looks[name], "none") for name in points], (0.71, 0.55)
        names = [looks[name].named(name) for name in points]
        figure.legend(handles, names, loc="center left", bbox_to_anchor=place, title=f"size: {cost}", alignment="left")
    return figure


@matplotlib.rc_context(STYLE)
def score_lost(losses: Mapping[str, Sequence[Loss]], looks: Mapping[str, Mark]) -> Figure:
    """What the strict score (full) and the lenient one (hollow) fell by since each domain was learnt.

    The domains that have a lenient score are taken; a strict loss without a lenient one is lost format.
    """
    figure, axes, rows = _rows_of(losses, looks, "score lost: ● strict, ○ lenient")
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
    figure, axes, rows = _rows_of(losses, looks, "likelihood lost, nats a token")
    for place, name in rows:
        rise = mean([loss.nats[1] - loss.nats[0] for loss in losses[name]])
        axes.plot([0, rise], [place, place], color=looks[name].color, linewidth=1.4)
        axes.plot(rise, place, color=looks[name].color, markerfacecolor=looks[name].fill, marker="D", markersize=5)
    return figure


def _rows_of(
    strategies: Iterable[str], looks: Mapping[str, Mark], title: str
) -> tuple[Figure, Axes, list[tuple[int, str]]]:
    """A diagram with a row for each strategy, and the rows' places."""
    rows = list(enumerate(list(strategies)[::-1]))
    names = [looks[name].named(name) for _, name in rows]
    width, height = 4.6, 0.27 * len(names) + 0.85
    figure = Figure((width, height))
    left = 0.12 + 0.068 * max(map(len, names), default=1)
    figure.subplots_adjust(min(left / width, 0.6), 0.45 / height, 0.97, 1 - 0.3 / height)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel("from learnt to the end")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), names)
    return figure, axes, rows


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
    right = max(0.4, 0.055 * len(list(columns)[-1]) - 0.15)  # the last name leans out
    width, height = left + plot[0] + right, plot[1] + head
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


KINDS = {
    "as it was": OKABE_ITO[0],
    "a copy, passes its input on": OKABE_ITO[4],
    "a copy": OKABE_ITO[5],
}
BOX = (1.0, 0.26)  # inches: of a stack with the room beside it, of a layer


@matplotlib.rc_context(STYLE)
def stack_figure(plans: Mapping[str, Plan]) -> Figure:
    """Stacks of layers side by side, the input below; each layer has the number of the one that it came from.

    A dashed line is a seam: what stands above it did not follow on what stands below it in the model before. Beside it
    stands how many layers the way leads back. Layers that pass their input on make no seam.

    Args:
        plans: By the name that stands below; each as a strategy's `plan` gives it.
    """
    tallest = max(map(len, plans.values()))
    width, height = BOX[0] * len(plans) + 0.1, BOX[1] * (tallest + 3) + 0.1
    figure = Figure((width, height))
    axes = figure.add_axes((0.05 / width, 2.4 * BOX[1] / height, 1 - 0.1 / width, BOX[1] * (tallest + 0.4) / height))
    axes.set_xlim(0, len(plans))
    axes.set_ylim(-0.2, tallest + 0.2)
    axes.axis("off")
    found = {kind for place, plan in enumerate(plans.values()) for kind in _draw_stack(axes, place, plan)}
    for place, name in enumerate(plans):
        axes.text(place + 0.4, -0.35, name, ha="center", va="top")
    shown = [Patch(color=color, label=kind) for kind, color in KINDS.items() if kind in found]
    figure.legend(handles=shown, loc="lower center", ncols=len(shown), columnspacing=1.2, handlelength=1)
    return figure


def seams(plan: Plan) -> list[tuple[int, int]]:
    """Where a layer does not follow on the one that it followed on before, and how many layers the way leads back.

    Layers that pass their input on are left out, since nothing changes on the way through them.

    Returns:
        (index of the upper layer, layers back) for each seam; negative where layers are left out.

    >>> from workbench.depth import PlannedLayer
    >>> seams([PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, identity=True), PlannedLayer(0), PlannedLayer(1)])
    [(3, 2)]
    """
    kept = [(index, layer.source) for index, layer in enumerate(plan) if not layer.identity]
    pairs = pairwise(kept)
    return [(index, below + 1 - source) for (_, below), (index, source) in pairs if source != below + 1]


@matplotlib.rc_context(STYLE)
def joined_figure(layers: tuple[int, int], pairs: Sequence[tuple[int, int]]) -> Figure:
    """Two frozen models side by side and the connections between them, the input below.

    Args:
        layers: Of the augmenting model and of the anchor.
        pairs: A layer of the augmenting model and the anchor's whose output it is added to, as
            `composition.joined_layers` gives them.
    """
    rows = max(layers) + 2.6
    figure = Figure((3.9, BOX[1] * 1.3 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 3.9)
    axes.set_ylim(-1.3, rows - 1.3)
    axes.axis("off")
    for x, count, name, color in (
        (0.2, layers[0], "augmenting", OKABE_ITO[4]),
        (2.7, layers[1], "anchor", OKABE_ITO[0]),
    ):
        for index in range(count):
            axes.add_patch(Rectangle((x, index), 1.0, 0.7, color=color, linewidth=0))
            ink = "white" if color == OKABE_ITO[0] else INK
            axes.text(x + 0.5, index + 0.35, str(index), ha="center", va="center_baseline", color=ink)
        axes.text(x + 0.5, -0.35, f"{name}, frozen", ha="center", va="top")
    for below, above in pairs:
        arrow = {"arrowstyle": "-|>", "color": OKABE_ITO[1], "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (2.7, above + 0.85), (1.2, below + 0.35), arrowprops=arrow)
    axes.text(1.95, layers[0] + 0.35, "trained", ha="center", color=OKABE_ITO[1])
    axes.text(3.2, layers[1] + 0.35, "answer", ha="center")
    return figure


def _draw_stack(axes: Axes, place: int, plan: Plan) -> list[str]:
    """Draws one stack and gives the kinds of its layers."""
    seen: set[int] = set()
    kinds = []
    for index, layer in enumerate(plan):
        first = layer.source not in seen and not layer.identity
        kind = "as it was" if first else "a copy, passes its input on" if layer.identity else "a copy"
        seen |= {layer.source} if first else set()
        axes.add_patch(Rectangle((place + 0.1, index + 0.08), 0.6, 0.84, color=KINDS[kind], linewidth=0))
        ink = "white" if kind == "as it was" else INK
        axes.text(place + 0.4, index + 0.5, str(layer.source), ha="center", va="center_baseline", color=ink)
        kinds.append(kind)
    for index, back in seams(plan):
        axes.plot([place + 0.03, place + 0.77], [index, index], color=INK, linewidth=1.3, linestyle=(0, (3, 1.5)))
        axes.text(place + 0.79, index, f"{-back:+d}".replace("-", "−"), va="center")
    return kinds
