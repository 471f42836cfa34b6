"""Show a study in a notebook: figures and tables that can be read on a projector, and the report page.

Nothing here imports Jupyter: the objects have the methods that Jupyter calls to show them.
"""

from __future__ import annotations

import atexit
import base64
import io
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from workbench.display import quiet
from workbench.formatting import number
from workbench.report import Comparison
from workbench.report.style import RC_PARAMS

SMALLEST_POINTS = 14.0
"""Size of the smallest text on the screen, readable from the last row of a lecture hall."""
PIXELS_PER_INCH = 96
SHARPNESS = 1.25
"""Image pixels per screen pixel, for displays of a higher resolution."""
COLORS = 96
"""Size of a picture's palette."""
MEASURES = {"OP": "OP", "BWT": "BWT", "learning_accuracy": "learning accuracy", "general_delta": "probes"}


def begin() -> None:
    """Silence the libraries and change to a temporary folder that is deleted with the kernel.

    Nothing is written beside the notebook, so that every execution starts from the same state.
    """
    quiet()
    folder = tempfile.mkdtemp(prefix="notebook-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chdir(folder)


class Picture:
    """A figure enlarged until its smallest text has `SMALLEST_POINTS`.

    Args:
        figure: Any matplotlib figure.
        label: Text alternative for screen readers.
    """

    def __init__(self, figure: Figure, label: str) -> None:
        self.figure, self.label = figure, label

    @property
    def scale(self) -> float:
        """Factor by which the figure is enlarged."""
        self.figure.draw_without_rendering()  # sets the text of the ticks
        texts: list[Any] = self.figure.findobj(Text)
        sizes = [text.get_size() for text in texts if text.get_text() and text.get_visible()]
        return SMALLEST_POINTS / min(sizes, default=SMALLEST_POINTS)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        """Return a PNG: Jupyter does not show SVG in a notebook that is not trusted."""
        with matplotlib.rc_context(RC_PARAMS):
            pixels, file = PIXELS_PER_INCH * self.scale, io.BytesIO()
            self.figure.savefig(file, format="png", dpi=pixels * SHARPNESS, facecolor="white")
        width, height = (round(pixels * inches) for inches in self.figure.get_size_inches())
        data = {"image/png": base64.b64encode(_small(file)).decode(), "text/plain": self.label}
        return data, {"image/png": {"width": width, "height": height, "alt": self.label}}


def _small(file: io.BytesIO) -> bytes:
    """Return a PNG with a palette, a third of the size: figures have few colours, and notebooks are stored in git.

    The palette holds the most frequent colours as they are: those of lines and of a legend's markers stay exact.
    """
    small, image, palette = io.BytesIO(), Image.open(file).convert("RGB"), Image.new("P", (1, 1))
    frequent = sorted(image.getcolors(image.width * image.height) or (), reverse=True)[:COLORS]
    palette.putpalette([value for _, color in frequent for value in color])  # type: ignore[attr-defined]
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


class Rows:
    """A table.

    Unlike a styled pandas DataFrame it has its numbers in the plain-text output too.

    Args:
        head: Names of the columns.
        rows: Cells; numbers get three digits or thousands separators.
        caption: Below the table.
    """

    def __init__(self, head: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        self.head, self.caption = list(head), caption
        self.rows = [[_text(cell) for cell in row] for row in rows]

    def __repr__(self) -> str:
        lines = ["\t".join(line) for line in (self.head, *self.rows)]
        return "\n".join([*lines, self.caption] if self.caption else lines)

    def _repr_html_(self) -> str:
        cell = 'style="text-align:left;white-space:pre-wrap"'
        head = "".join(f"<th {cell}>{escape(name)}</th>" for name in self.head)
        body = "".join(f"<tr>{''.join(f'<td {cell}>{escape(text)}</td>' for text in row)}</tr>" for row in self.rows)
        caption = f'<caption style="caption-side:bottom;text-align:left">{escape(self.caption)}</caption>'
        inside = f"{caption if self.caption else ''}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return f'<table style="font-size:{SMALLEST_POINTS:g}pt">{inside}</table>'


def _text(cell: object) -> str:
    return number(cell) if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def score_rows(comparison: Comparison) -> Rows:
    """Return measures, trainable and added parameters of each strategy, means over seeds and orders.

    Args:
        comparison: With at least one finished run.
    """
    order = comparison.orders[0] if len(comparison.orders) == 1 else None
    rows = []
    for strategy in comparison.strategies:
        budget = comparison.budget(strategy)
        counts = [round(budget[f"{name}_parameters"]) for name in ("trainable", "added")]
        rows.append([strategy, *(comparison.estimate(strategy, order, name).mean for name in MEASURES), *counts])
    return Rows(["strategy", *MEASURES.values(), "trainable", "added"], rows)


class Page:
    """A report page embedded in the notebook.

    The page's line on the hardware is left out, because notebooks are passed on.

    Args:
        file: `report.html`.
        height: In pixels.
    """

    def __init__(self, file: str | Path, height: int = 700) -> None:
        page = Path(file).read_text(encoding="utf-8")
        self.text, self.height = re.sub(r"(?s)<dt>hardware</dt>\s*<dd>.*?</dd>", "", page), height

    def __repr__(self) -> str:
        return f"a report of {len(self.text)} characters"

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:1px solid;box-sizing:border-box"
        return f'<iframe title="report" srcdoc="{escape(self.text)}" style="{style}"></iframe>'
