"""Colours, markers and matplotlib settings of the figures, and inline SVG."""

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

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c7a00", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
INK, LINE, PAPER = "#1b1f24", "#d3d9df", "none"
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
    bound: bool = False

    @property
    def fill(self) -> str:
        """The colour inside the marker."""
        return "white" if self.bound else self.color

    def named(self, name: str) -> str:
        """The strategy's name as figures and tables have it."""
        return f"{name} ‡" if self.bound else name


def marks(strategies: Sequence[str], bounds: Collection[str] = ()) -> dict[str, Mark]:
    """A colour, a marker and a dash for each strategy; no two agree in all three.

    Args:
        strategies: Names.
        bounds: Which of them are yardsticks.
    """
    looks = {}
    for place, name in enumerate(strategies):
        color, marker, dash = (kind[place % len(kind)] for kind in (OKABE_ITO, MARKERS, DASHES))
        looks[name] = Mark(str(color), str(marker), dash, name in bounds)
    return looks


def key(look: Mark, dash: object, **other: Any) -> Line2D:
    """A strategy's line and marker, as a legend shows it.

    Args:
        look: The strategy's.
        dash: Of the line; "none": no line.
        other: Of `Line2D`, with "x" and "y" for its points.
    """
    known: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": dash, "markersize": 4.5}
    known |= {"markerfacecolor": look.fill, "linewidth": 1.3}
    return Line2D(other.pop("x", []), other.pop("y", []), **known, **other)


@matplotlib.rc_context(STYLE)
def swatch(look: Mark) -> Figure:
    """A strategy's line and marker, for the page's legend."""
    figure = Figure((0.42, 0.16))
    figure.add_artist(
        key(look, look.dash, x=[0.04, 0.5, 0.96], y=[0.5] * 3, markevery=[1], transform=figure.transFigure)
    )
    return figure


@matplotlib.rc_context(STYLE)
def svg_of(figure: Figure) -> str:
    """The figure as SVG text, the same for the same numbers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r"(\d\.\d{2})\d+", r"\1", buffer.getvalue())


def inline(figure: Figure, name: str, label: str = "") -> str:
    """The figure as a part of a page: it takes the page's font and colours, and its ids are its own.

    Args:
        figure: What is drawn.
        name: Unlike every other figure's of the page; letters, digits and hyphens.
        label: What it shows, for who cannot see it; without one it is decoration.
    """
    text = svg_of(figure)
    body = re.sub(r"(?s)<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :])
    body = re.sub(r'(<(?:g|path|rect)) id="\w+_\d+"', r"\1", body)  # no one refers to these
    body = re.sub(r'\bid="', f'id="{name}-', body).replace('xlink:href="#', f'href="#{name}-')
    body = body.replace("url(#", f"url(#{name}-").replace(INK, "currentColor").replace(LINE, "var(--line)")
    body = re.sub(r"font-family: [^;\"]*;?|transform=\"rotate\(-0 [^\"]*\"", "", body)
    body = body.replace("#ffffff", "var(--paper)")
    for place, color in enumerate(OKABE_ITO):
        body = body.replace(color, f"var(--mark-{place})")
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    box = re.search(r'viewBox="[^"]*"', body)
    opening = f'<svg id="{name}" {role} {box.group() if box else ""}>'
    return re.sub(r"\s+", " ", re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1))
