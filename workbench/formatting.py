"""Format numbers, durations and score tables for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table


def number(value: float, digits: int = 3) -> str:
    """Format a score: three digits, a dash for NaN, and no sign before a zero.

    >>> number(0.5), number(float("nan")), number(-0.0004)
    ('0.500', '–', '0.000')
    """
    return "–" if math.isnan(value) else f"{round(float(value), digits) + 0.0:.{digits}f}"


def rounded(value: float, unit: str = "", space: str = " ") -> str:
    """Format a count in three digits: thousands, millions, billions and trillions, or KB, MB, GB and TB of bytes.

    Args:
        value: Count; NaN where it is not known.
        unit: "B" for bytes.
        space: Text between number and unit.

    >>> rounded(15552), rounded(6.74e9, space=""), rounded(1.5e9, "B"), rounded(4.2857), rounded(float("nan"))
    ('15.6 K', '6.74B', '1.5 GB', '4.29', '–')
    """
    if math.isnan(value):
        return "–"
    for size, prefix in ((1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "K")):
        if value >= 0.9995 * size:  # 999,999 is 1 M, not 1e+03 K
            return f"{value / size:.3g}{space}{prefix}{unit}"
    return f"{value:.3g}{space if unit else ''}{unit}"


def duration(seconds: float) -> str:
    """Format seconds with units.

    >>> duration(8.2), duration(95), duration(7260)
    ('8 s', '1 min 35 s', '2 h 1 min')
    """
    if math.isnan(seconds):
        return "an unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def narrow_headings(names: Sequence[str], width: int) -> tuple[list[str], str]:
    """Return column headings that fit into `width` characters, and a legend if they are numbers.

    Names break at "_" and "-"; where that is still too wide, numbers replace them.

    >>> narrow_headings(["topic_stance", "NumGLUE-cm"], 80)
    (['topic\\nstance', 'NumGLUE\\ncm'], '')
    >>> narrow_headings(["topic_stance", "NumGLUE-cm"], 20)
    (['1', '2'], '1 topic_stance, 2 NumGLUE-cm')
    """
    broken = [name.replace("_", "\n").replace("-", "\n") for name in names]
    widths = [max(4, *map(len, name.split("\n"))) + 3 for name in broken]
    if sum(widths) + len("| after |") <= width:
        return broken, ""
    numbers = [str(index + 1) for index in range(len(names))]
    return numbers, ", ".join(map(" ".join, zip(numbers, names, strict=True)))


def compress(table: Table) -> None:
    """Remove the lines of a table, for a terminal of 80 characters."""
    table.box, table.padding, table.show_edge = box.SIMPLE_HEAD, (0, 0, 0, 0), False


def score_table(title: str, names: Sequence[str], width: int) -> Table:
    """Return an empty score matrix with a column for each name, at most `width` characters wide."""
    headings, legend = narrow_headings(names, width)
    caption = "rows: number of tasks learnt" + (f"; {legend}" if legend else "")
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    if legend:
        compress(table)
    for heading in ("after", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    return table
