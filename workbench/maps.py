"""Heat maps with their numbers: score matrices, and what changes them.

The scale of scores is cividis (Nuñez et al., 2018), which the colour-blind read as others do; that of changes is orange
and purple around white. No figure holds a number that is not in a table of the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from workbench.display import number
from workbench.looks import INK, STYLE


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
