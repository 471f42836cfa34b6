"""LaTeX of a comparison: a booktabs table with its protocol, and the BibTeX of the methods compared."""

from __future__ import annotations

import math
import re
from itertools import product

from workbench.report.comparison import MEASURES, Comparison
from workbench.report.terminal import bounds_note, protocol_note
from workbench.statistics import Estimate

SHORT = {"learning_accuracy": "learning acc.", "general_delta": r"$\Delta$ general"}
"""Headings of measures where their names are long."""
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
KEY = re.compile(r"@\w+\s*\{\s*([^,\s]+)\s*,")


def escaped(text: str) -> str:
    r"""Escape a text for LaTeX.

    >>> print(escaped("block_expansion & 50% of {a}^2"))
    block\_expansion \& 50\% of \{a\}\textasciicircum{}2
    """
    return "".join(SPECIAL.get(character, character) for character in text)


def latex_table(comparison: Comparison) -> str:
    """Return a table environment that needs `booktabs`: measures with intervals, a row for each strategy and order.

    Means over seeds; "±" is the 95 % t interval from three seeds on. The strategies cite the entries of `bibtex`.
    """
    several = len(comparison.orders) > 1
    head = [
        "strategy",
        *(["order"] if several else []),
        "seeds",
        *(SHORT.get(name, escaped(name)) for name in MEASURES),
    ]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_caption(comparison)}}}",
        rf"  \begin{{tabular}}{{l{'l' if several else ''}r{'r' * len(MEASURES)}}}",
        r"    \toprule",
        f"    {' & '.join(head)} \\\\",
        r"    \midrule",
    ]
    for strategy in comparison.strategies:
        for order in comparison.orders:
            if seeds := comparison.seeds(strategy, order):
                cells = [_cell(comparison.estimate(strategy, order, name)) for name in MEASURES]
                where = [escaped(order)] if several else []
                row = " & ".join([_named(comparison, strategy), *where, str(len(seeds)), *cells])
                lines.append(f"    {row} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def bibtex(*comparisons: Comparison) -> str:
    """Return the BibTeX of the methods compared, each paper once; one without an entry becomes a note."""
    entries: dict[str, str] = {}
    for comparison in comparisons:
        for strategy in comparison.references:
            for key, entry in _entries(comparison, strategy):
                entries.setdefault(key, entry.strip())
    return "\n\n".join(entries.values()) + ("\n" if entries else "")


def _entries(comparison: Comparison, strategy: str) -> list[tuple[str, str]]:
    """Return key and BibTeX entry of each of a strategy's papers."""
    entries = []
    for line, entry in zip(comparison.references[strategy], comparison.bibtex[strategy], strict=True):
        if match := KEY.match(entry.strip()):
            entries.append((match.group(1), entry))
        else:
            key = re.sub(r"[^a-z0-9]+", "-", line.lower()).strip("-")
            entries.append((key, f"@misc{{{key},\n  note = {{{escaped(line)}}}\n}}"))
    return entries


def _named(comparison: Comparison, strategy: str) -> str:
    """Return a strategy's name with its marks and citations."""
    marks = r"\,\dag{}" if comparison.budget(strategy)["task_id_at_test"] else ""
    marks += r"\,\ddag{}" if strategy in comparison.bounds else ""
    keys = ",".join(dict.fromkeys(key for key, _ in _entries(comparison, strategy)))
    return f"{escaped(strategy)}{marks}" + (rf"~\cite{{{keys}}}" if keys else "")


def _caption(comparison: Comparison) -> str:
    parts = [f"{escaped(protocol_note(comparison.runs[0]))}."]
    pairs = product(comparison.strategies, comparison.orders)
    if any(comparison.estimate(strategy, order, "OP").half_width >= 0 for strategy, order in pairs):
        parts.append(r"$\pm$: 95\,\% $t$ interval over seeds.")
    if any(row["task_id_at_test"] for row in comparison.rows):
        parts.append(r"\dag{}: given the task's identity at test time.")
    if comparison.bounds:
        parts.append(f"{escaped(bounds_note(comparison))}.")
    if comparison.differs:
        parts.append(f"What differs between the rows: {escaped('; '.join(comparison.differs))}.")
    return " ".join(parts)


def _cell(estimate: Estimate) -> str:
    if math.isnan(estimate.mean):
        return "--"
    interval = "" if math.isnan(estimate.half_width) else rf" \pm {estimate.half_width:.3f}"
    return f"${estimate.mean:.3f}{interval}$"
