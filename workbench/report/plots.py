"""Draw the figures: scores over time, stability against plasticity, losses, heat maps and layer plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from workbench.report.style import INK, PALETTE, RC_PARAMS, SeriesStyle, legend_line
from workbench.statistics import Estimate, mean

PANEL = (2.75, 1.9)
"""Width and height of a panel of `over_tasks`, in inches."""
CELL = (0.52, 0.27)
"""Width and height of a cell of a heat map, in inches."""
BOX = (1.0, 0.26)
"""Width of a stack of layers with the space beside it, and height of a layer, in inches."""
LAYER_KINDS = {
    "original layer": PALETTE[0],
    "copy, starts as identity": PALETTE[4],
    "copy": PALETTE[5],
}


@dataclass(frozen=True)
class Panel:
    """One diagram of scores after 0, 1, … T tasks.

    Args:
        title: Above the diagram.
        lines: (T+1,) estimates by strategy.
        learnt_after: After which task what is tested had just been learnt: a dotted line stands there.
        in_nats: Whether the values are nats and not scores between 0 and 1.
    """

    title: str
    lines: Mapping[str, Sequence[Estimate]]
    learnt_after: int | None = None
    in_nats: bool = False


@matplotlib.rc_context(RC_PARAMS)
def over_tasks(
    panels: Sequence[Panel], styles: Mapping[str, SeriesStyle], columns: int = 4, legend: bool = True
) -> Figure:
    """Plot scores after each task, a panel for each domain or probe, with Student-t intervals over seeds as bands.

    Args:
        panels: At least one.
        styles: By strategy.
        columns: Panels side by side.
        legend: Whether the strategies are named below.
    """
    columns = min(columns, len(panels))
    rows, across = math.ceil(len(panels) / columns), max(1, int(PANEL[0] * columns // 1.35))
    foot = 0.4 + (0.08 + 0.19 * math.ceil(len(styles) / across) if legend else 0.0)
    width, height = PANEL[0] * columns, PANEL[1] * rows + foot
    figure = Figure((width, height))
    figure.subplots_adjust(
        0.4 / width, foot / height, 1 - 0.08 / width, 1 - 0.27 / height, wspace=0.2, hspace=0.38 if rows > 1 else 0
    )
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, panel, styles)
        if index + columns >= len(panels):
            axes.set_xlabel("tasks learnt", labelpad=1)
    if legend:
        lines = [legend_line(style, style.dash) for style in styles.values()]
        names = [style.label(name) for name, style in styles.items()]
        figure.legend(lines, names, loc="lower center", ncols=across, columnspacing=1.6, handlelength=2.6)
    return figure


def _draw_panel(axes: Axes, panel: Panel, styles: Mapping[str, SeriesStyle]) -> None:
    axes.set_title(panel.title)
    last = 1
    if panel.learnt_after is not None:
        axes.axvline(panel.learnt_after, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    for name, line in panel.lines.items():
        style, measured = styles[name], [(x, point) for x, point in enumerate(line) if not math.isnan(point.mean)]
        last = max(last, len(line) - 1)
        x, y = [x for x, _ in measured], [point.mean for _, point in measured]
        dash = style.dash if len(x) == len(line) else "none"  # what lies between measured points is not known
        markers: dict[str, Any] = {"color": style.color, "marker": style.marker, "markerfacecolor": style.fill}
        axes.plot(x, y, linestyle=dash, linewidth=1.3, markersize=3.6, **markers)
        spread = [0.0 if math.isnan(point.half_width) else point.half_width for _, point in measured]
        if any(spread) and dash != "none":
            low, high = ([a + sign * b for a, b in zip(y, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=style.color, alpha=0.1, linewidth=0)
    axes.set_xlim(-0.25, last + 0.25)
    axes.set_xticks(range(0, last + 1, max(1, math.ceil(last / 8))))
    if panel.in_nats:
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.5, 1])


@matplotlib.rc_context(RC_PARAMS)
def over_steps(
    lines: Mapping[str, Sequence[tuple[int, float]]], styles: Mapping[str, SeriesStyle], measure: str
) -> Figure:
    """Plot scores within a task against optimizer steps, such as a model's recovery from a surgery.

    Args:
        lines: (step, value) by strategy, as `RunFolder.within` returns them.
        styles: By strategy.
        measure: Name of the values, with their unit.
    """
    figure = Figure((5.2, 2.7))
    figure.subplots_adjust(0.11, 0.16, 0.66, 0.96)
    axes = figure.add_subplot()
    for name, line in lines.items():
        style = styles[name]
        axes.plot(*zip(*line, strict=True), color=style.color, linestyle=style.dash, marker=style.marker)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(measure)
    handles = [legend_line(styles[name], styles[name].dash) for name in lines]
    names = [styles[name].label(name) for name in lines]
    figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.67, 0.55), handlelength=2.6)
    return figure


@matplotlib.rc_context(RC_PARAMS)
def stability_plasticity(
    points: Mapping[str, tuple[Estimate, Estimate, float]],
    styles: Mapping[str, SeriesStyle],
    cost: str,
    legend: bool = True,
) -> Figure:
    """Plot learning accuracy against forgetting, on a reversed axis: the best strategy is at the upper right.

    Args:
        points: (forgetting, learning accuracy, cost) by strategy; the marker's area grows with the cost.
        styles: By strategy.
        cost: Name of the cost.
        legend: Whether the strategies are named beside the diagram.
    """
    figure = Figure((6.4 if legend else 4.6, 3.4))
    figure.subplots_adjust(0.095 if legend else 0.13, 0.135, 0.7 if legend else 0.985, 0.97)
    axes = figure.add_subplot()
    highest = max((price for _, _, price in points.values() if price > 0), default=1.0)
    for name, (forgetting, learning, price) in points.items():
        style, area = styles[name], 25 + 275 * (price / highest if price > 0 else 0.0)
        half_widths = {"xerr": forgetting.half_width, "yerr": learning.half_width}
        bars: dict[str, Any] = {axis: value for axis, value in half_widths.items() if not math.isnan(value)}
        axes.errorbar(forgetting.mean, learning.mean, **bars, color=style.color, linewidth=1, capsize=2, fmt="none")
        marker: dict[str, Any] = {"marker": style.marker, "alpha": 0.75, "linewidths": 1.4 if style.bound else 0}
        axes.scatter(forgetting.mean, learning.mean, s=area, facecolors=style.fill, edgecolors=style.color, **marker)
    axes.set_xlabel("forgetting (reversed axis: lower is better)")
    axes.set_ylabel("learning accuracy")
    axes.margins(0.12)
    axes.invert_xaxis()
    if legend:
        handles, anchor = [legend_line(styles[name], "none") for name in points], (0.71, 0.55)
        names, title = [styles[name].label(name) for name in points], f"marker size: {cost}"
        figure.legend(handles, names, loc="center left", bbox_to_anchor=anchor, title=title, alignment="left")
    return figure


@matplotlib.rc_context(RC_PARAMS)
def score_lost(losses: Mapping[str, Sequence[Loss]], styles: Mapping[str, SeriesStyle]) -> Figure:
    """Plot by how much the strict and the lenient score fell since each domain was learnt, means over domains.

    Only domains with a lenient score count. Where the strict score falls and the lenient one does not, the format of
    the answers is lost and not the knowledge.

    Args:
        losses: By strategy.
        styles: By strategy.
    """
    figure, axes, rows = _strategy_rows(
        losses, styles, "Score lost (● strict, ○ lenient)", "score right after learning − at the end"
    )
    for y, name in rows:
        color, scored = styles[name].color, [loss for loss in losses[name] if not math.isnan(loss.lenient[1])]
        strict = mean([loss.strict[0] - loss.strict[1] for loss in scored])
        lenient = mean([loss.lenient[0] - loss.lenient[1] for loss in scored])
        marker: dict[str, Any] = {"color": color, "marker": "o", "markersize": 6}
        axes.plot([strict, lenient], [y, y], color=color, linewidth=1.4)
        axes.plot(strict, y, **marker)
        axes.plot(lenient, y, markerfacecolor="white", **marker)
    return figure


@matplotlib.rc_context(RC_PARAMS)
def likelihood_lost(losses: Mapping[str, Sequence[Loss]], styles: Mapping[str, SeriesStyle]) -> Figure:
    """Plot the rise of the right answer's negative log-likelihood since each domain was learnt, means over domains.

    Args:
        losses: By strategy; nats per token.
        styles: By strategy.
    """
    figure, axes, rows = _strategy_rows(
        losses, styles, "Likelihood lost", "nats per token at the end − right after learning"
    )
    for y, name in rows:
        style, rise = styles[name], mean([loss.nats[1] - loss.nats[0] for loss in losses[name]])
        axes.plot([0, rise], [y, y], color=style.color, linewidth=1.4)
        axes.plot(rise, y, color=style.color, markerfacecolor=style.fill, marker="D", markersize=5)
    return figure


def _strategy_rows(
    strategies: Iterable[str], styles: Mapping[str, SeriesStyle], title: str, measure: str
) -> tuple[Figure, Axes, list[tuple[int, str]]]:
    """Return a diagram with a row for each strategy, the first at the top, and (y, strategy) of each row."""
    rows = list(enumerate(list(strategies)[::-1]))
    names = [styles[name].label(name) for _, name in rows]
    width, height = 4.6, 0.27 * len(names) + 0.85
    figure = Figure((width, height))
    left = 0.12 + 0.068 * max(map(len, names), default=1)
    figure.subplots_adjust(min(left / width, 0.6), 0.45 / height, 0.97, 1 - 0.3 / height)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(measure)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), names)
    return figure, axes, rows


@matplotlib.rc_context(RC_PARAMS)
def heat_map(rows: Sequence[str], columns: Mapping[str, bool], values: Sequence[Sequence[float]]) -> Figure:
    """Draw a score matrix with its numbers.

    Args:
        rows: What was learnt.
        columns: What was tested, and whether that is a score between 0 and 1: other columns stay white.
        values: (rows, columns); NaN where nothing was measured.
    """
    scores = [[value if of else math.nan for value, of in zip(row, columns.values(), strict=True)] for row in values]

    def ink(score: float) -> str:
        return INK if math.isnan(score) or score > 0.5 else "white"

    return _annotated_matrix(rows, list(columns), values, scores, ink, cmap="cividis", vmin=0, vmax=1)


@matplotlib.rc_context(RC_PARAMS)
def change_map(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]) -> Figure:
    """Draw changes of scores with their numbers: orange below 0, purple above, white where nothing was measured.

    Args:
        rows: What was tested.
        columns: What was changed.
        values: (rows, columns); NaN where nothing was measured.
    """
    largest = max((abs(value) for row in values for value in row if not math.isnan(value)), default=0.0) or 1.0

    def ink(value: float) -> str:
        return "#fefefe" if abs(value) > 0.7 * largest else "black"  # the page replaces pure white by its background

    return _annotated_matrix(rows, columns, values, values, ink, cmap="PuOr", vmin=-largest, vmax=largest)


def _annotated_matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    shades: Sequence[Sequence[float]],
    ink: Callable[[float], str],
    **colors: Any,
) -> Figure:
    """Print `values` on cells coloured by `shades`; `ink` returns the text colour on a shade, `colors` go to imshow."""
    plot = (CELL[0] * len(columns), CELL[1] * len(rows))
    left, head = 0.13 + 0.068 * max(map(len, rows)), 0.2 + 0.045 * max(map(len, columns))
    right = max(0.4, 0.055 * len(columns[-1]) - 0.15)  # the last column's slanted name
    width, height = left + plot[0] + right, plot[1] + head
    figure = Figure((width, height))
    axes = figure.add_axes((left / width, 0.05 / height, plot[0] / width, plot[1] / height))
    axes.imshow(shades, aspect="auto", **colors)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(x, y, number(value, 2), ha="center", va="center", color=ink(shades[y][x]), size=7.5)
    axes.grid(False)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.spines[:].set_visible(False)
    return figure


@matplotlib.rc_context(RC_PARAMS)
def layer_stacks(plans: Mapping[str, Plan]) -> Figure:
    """Draw stacks of layers side by side, the input at the bottom; each layer has the number of its source layer.

    A dashed line is a seam, with the number of layers that it jumps: see `seams`.

    Args:
        plans: By the name below the stack, each as a strategy's `plan` returns it.
    """
    tallest = max(map(len, plans.values()))
    width, height = BOX[0] * len(plans) + 0.1, BOX[1] * (tallest + 3) + 0.1
    figure = Figure((width, height))
    axes = figure.add_axes((0.05 / width, 2.4 * BOX[1] / height, 1 - 0.1 / width, BOX[1] * (tallest + 0.4) / height))
    axes.set_xlim(0, len(plans))
    axes.set_ylim(-0.2, tallest + 0.2)
    axes.axis("off")
    kinds = {kind for x, plan in enumerate(plans.values()) for kind in _draw_stack(axes, x, plan)}
    for x, name in enumerate(plans):
        axes.text(x + 0.4, -0.35, name, ha="center", va="top")
    patches = [Patch(color=color, label=kind) for kind, color in LAYER_KINDS.items() if kind in kinds]
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), columnspacing=1.2, handlelength=1)
    return figure


def _draw_stack(axes: Axes, x: int, plan: Plan) -> list[str]:
    """Draw one stack and return the kind of each of its layers."""
    seen: set[int] = set()
    kinds = []
    for index, layer in enumerate(plan):
        first = layer.source not in seen and not layer.identity
        kind = "original layer" if first else "copy, starts as identity" if layer.identity else "copy"
        seen |= {layer.source} if first else set()
        axes.add_patch(Rectangle((x + 0.1, index + 0.08), 0.6, 0.84, color=LAYER_KINDS[kind], linewidth=0))
        ink = "white" if first else INK
        axes.text(x + 0.4, index + 0.5, str(layer.source), ha="center", va="center_baseline", color=ink)
        kinds.append(kind)
    for index, back in seams(plan):
        axes.plot([x + 0.03, x + 0.77], [index, index], color=INK, linewidth=1.3, linestyle=(0, (3, 1.5)))
        axes.text(x + 0.79, index, f"{-back:+d}".replace("-", "−"), va="center")
    return kinds


def seams(plan: Plan) -> list[tuple[int, int]]:
    """Find the places of a plan where a layer reads from another layer than it did before.

    Layers that start as the identity are left out, since nothing changes on the way through them.

    Returns:
        (index of the upper layer, number of layers that the path jumps back) for each seam; negative where layers are
        skipped.

    >>> from workbench.depth import PlannedLayer
    >>> seams([PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, identity=True), PlannedLayer(0), PlannedLayer(1)])
    [(3, 2)]
    """
    sources = [(index, layer.source) for index, layer in enumerate(plan) if not layer.identity]
    pairs = pairwise(sources)
    return [(index, below + 1 - source) for (_, below), (index, source) in pairs if source != below + 1]


@matplotlib.rc_context(RC_PARAMS)
def layer_connections(layers: tuple[int, int], pairs: Sequence[tuple[int, int]]) -> Figure:
    """Draw two frozen models side by side and the trained connections between them, the input at the bottom.

    Args:
        layers: Number of layers of the augmenting model and of the anchor.
        pairs: (layer of the augmenting model, layer of the anchor to whose output it is added), as
            `composition.joined_layers` returns them.
    """
    rows = max(layers) + 2.6
    figure = Figure((3.9, BOX[1] * 1.3 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 3.9)
    axes.set_ylim(-1.3, rows - 1.3)
    axes.axis("off")
    for x, count, name, color, ink in (
        (0.2, layers[0], "augmenting", PALETTE[4], INK),
        (2.7, layers[1], "anchor", PALETTE[0], "white"),
    ):
        for index in range(count):
            axes.add_patch(Rectangle((x, index), 1.0, 0.7, color=color, linewidth=0))
            axes.text(x + 0.5, index + 0.35, str(index), ha="center", va="center_baseline", color=ink)
        axes.text(x + 0.5, -0.35, f"{name}, frozen", ha="center", va="top")
    for below, above in pairs:
        arrow = {"arrowstyle": "-|>", "color": PALETTE[1], "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (2.7, above + 0.85), (1.2, below + 0.35), arrowprops=arrow)
    axes.text(1.95, layers[0] + 0.35, "trained", ha="center", color=PALETTE[1])
    axes.text(3.2, layers[1] + 0.35, "answer", ha="center")
    return figure
