"""Style of the figures: colours, markers, matplotlib settings, and SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c7a00", "#6b6b6b")
"""After Okabe and Ito (2008): distinguishable with any colour vision. `--mark-0` and on in the page's style sheet."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
INK, GRID = "#1b1f24", "#d3d9df"
RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "workbench",
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class SeriesStyle:
    """Colour, marker and dash pattern of one strategy, the same in every figure.

    Args:
        color: Of line and marker, "#rrggbb".
        marker: As matplotlib names it.
        dash: As matplotlib's `linestyle`.
        bound: Whether the strategy is a bound: its markers are hollow and its name has a ‡.
    """

    color: str
    marker: str
    dash: Any
    bound: bool = False

    @property
    def fill(self) -> str:
        """Colour inside the marker."""
        return "white" if self.bound else self.color

    def label(self, name: str) -> str:
        """Return a strategy's name as legends and axes show it."""
        return f"{name} ‡" if self.bound else name


def series_styles(strategies: Sequence[str], bounds: Collection[str] = ()) -> dict[str, SeriesStyle]:
    """Give each strategy a style of its own; no two agree in colour, marker and dash.

    Args:
        strategies: Names.
        bounds: Which of them are bounds.
    """
    styles = {}
    for index, name in enumerate(strategies):
        color, marker, dash = (choices[index % len(choices)] for choices in (PALETTE, MARKERS, DASHES))
        styles[name] = SeriesStyle(str(color), str(marker), dash, name in bounds)
    return styles


def legend_line(style: SeriesStyle, dash: object, **options: Any) -> Line2D:
    """Return a strategy's line and marker as a legend shows them.

    Args:
        style: Of the strategy.
        dash: Of the line; "none" draws the marker only.
        options: Of `Line2D`, with "x" and "y" for its points.
    """
    defaults: dict[str, Any] = {"color": style.color, "marker": style.marker, "linestyle": dash, "markersize": 4.5}
    defaults |= {"markerfacecolor": style.fill, "linewidth": 1.3}
    return Line2D(options.pop("x", []), options.pop("y", []), **defaults, **options)


@matplotlib.rc_context(RC_PARAMS)
def swatch(style: SeriesStyle) -> Figure:
    """Draw a strategy's line and marker for the page's legend."""
    figure = Figure((0.42, 0.16))
    points: dict[str, Any] = {"x": [0.04, 0.5, 0.96], "y": [0.5] * 3, "markevery": [1]}
    figure.add_artist(legend_line(style, style.dash, **points, transform=figure.transFigure))
    return figure


@matplotlib.rc_context(RC_PARAMS)
def to_svg(figure: Figure) -> str:
    """Return a figure as SVG text; equal numbers give equal text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r"(\d\.\d{2})\d+", r"\1", buffer.getvalue())


def inline_svg(figure: Figure, name: str, label: str = "") -> str:
    """Return a figure as an SVG element that takes the page's font and colours.

    Args:
        figure: The figure.
        name: Prefix of its ids, unique within the page; letters, digits and hyphens.
        label: Text alternative for screen readers; without one the figure is marked as decoration.
    """
    text = to_svg(figure)
    body = re.sub(r"(?s)<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :])
    body = re.sub(r'(<(?:g|path|rect)) id="\w+_\d+"', r"\1", body)  # ids that nothing refers to
    body = re.sub(r'\bid="', f'id="{name}-', body).replace('xlink:href="#', f'href="#{name}-')
    body = body.replace("url(#", f"url(#{name}-").replace(INK, "currentColor").replace(GRID, "var(--line)")
    body = re.sub(r"font-family: [^;\"]*;?|transform=\"rotate\(-0 [^\"]*\"", "", body)
    body = body.replace("#ffffff", "var(--paper)")
    for index, color in enumerate(PALETTE):
        body = body.replace(color, f"var(--mark-{index})")
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    box = re.search(r'viewBox="[^"]*"', body)
    opening = f'<svg id="{name}" {role} {box.group() if box else ""}>'
    return re.sub(r"\s+", " ", re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1))
