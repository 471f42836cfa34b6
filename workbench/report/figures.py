"""Choose the figures of a comparison, collect their numbers and write them as PNG and SVG files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from workbench.report.analyses import knocked_out, measured
from workbench.report.comparison import Comparison
from workbench.report.plots import (
    Panel,
    change_map,
    heat_map,
    likelihood_lost,
    over_tasks,
    score_lost,
    stability_plasticity,
)
from workbench.report.scores import NATS, Loss, View
from workbench.report.style import RC_PARAMS, SeriesStyle, series_styles, to_svg
from workbench.runtime.files import digest_of, write_whole
from workbench.statistics import Estimate

COST, COST_NAME = "train_seconds", "training time"
DOTS_PER_INCH = 160
MAX_ORDERS = 3
"""Orders whose scores over time are drawn."""
MAX_MATRICES = 24
"""Strategies whose score matrices are drawn."""
MANIFEST = "written.json"
"""In the folder of the figures: name and SHA-256 of each file that a report wrote."""


def styles_of(view: View) -> dict[str, SeriesStyle]:
    """Return the style of each strategy, the same in all figures of a comparison."""
    return series_styles(view.strategies, view.comparison.bounds)


def panels_over_tasks(view: View, order: str, probes: bool) -> dict[str, Panel]:
    """Return a panel of scores over time for each domain, or for each probe and the general text, by name.

    Args:
        view: The comparison.
        order: One of its orders.
        probes: Show what is never trained instead of the domains.
    """
    tasks = view.tasks(order)
    strategies = [strategy for strategy in view.strategies if view.comparison.seeds(strategy, order)]
    return {
        on: Panel(
            f"{on} ({view.metric(on)})",
            {strategy: view.over_tasks(strategy, order, on) for strategy in strategies},
            None if probes else tasks.index(on) + 1,
            in_nats=not view.is_score(on),
        )
        for on in view.tested(order)
        if (on in tasks) != probes
    }


def tradeoff_points(view: View) -> dict[str, tuple[Estimate, Estimate, float]]:
    """Return (forgetting, learning accuracy, training seconds) in the view's main order, where both are known."""
    of, order = view.comparison, view.main_order
    points = {
        strategy: (
            of.estimate(strategy, order, "forgetting"),
            of.estimate(strategy, order, "learning_accuracy"),
            float(of.budget(strategy)[COST]),
        )
        for strategy in view.strategies
    }
    return {name: point for name, point in points.items() if not math.isnan(point[0].mean + point[1].mean)}


def measured_losses(view: View) -> dict[str, list[Loss]]:
    """Return the losses domain by domain of each strategy that learnt at least two domains one after the other."""
    losses = {strategy: view.losses(strategy) for strategy in view.strategies}
    return {
        strategy: rows
        for strategy, rows in losses.items()
        if len(rows) > 1 and not any(math.isnan(value) for row in rows for value in row.strict)
    }


def figures(view: View, folder: str | Path | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a comparison by the name of their file; of many orders and strategies only the first.

    Args:
        view: The comparison.
        folder: Of the report, where an analysis may have written `knock_out.csv`.
    """
    styles = styles_of(view)
    if points := tradeoff_points(view):
        yield "stability-plasticity", stability_plasticity(points, styles, COST_NAME)
    if losses := measured_losses(view):
        if has_lenient(list(losses.values())):
            yield "score-lost", score_lost(losses, styles)
        yield "likelihood-lost", likelihood_lost(losses, styles)
    for order in view.orders[:MAX_ORDERS]:
        for name, probes in (("domains", False), ("probes", True)):
            if panels := panels_over_tasks(view, order, probes):
                yield f"{name}-over-time-{order}", over_tasks(list(panels.values()), styles)
    for order in view.orders[:1]:
        for strategy in view.strategies[:MAX_MATRICES]:
            if view.comparison.seeds(strategy, order):
                yield f"matrix-{strategy}-{order}", matrix_figure(view, strategy, order)
    yield from knock_out_figures(view, folder)


def matrix_figure(view: View, strategy: str, order: str, after: int | None = None, others: bool = True) -> Figure:
    """Draw the score matrix of a strategy, means over seeds.

    Args:
        view: The comparison.
        strategy: One of its strategies.
        order: One of its orders.
        after: Number of tasks learnt; later rows stay empty. None: all tasks.
        others: Show the probes and the general text beside the domains.
    """
    tasks, tested = view.tasks(order), view.tested(order)
    columns = [name for name in tested if others or name in tasks]
    last = len(tasks) if after is None else after
    values = [
        [row[tested.index(name)] if place <= last else math.nan for name in columns]
        for place, row in enumerate(view.matrix(strategy, order))
    ]
    return heat_map(["zero-shot", *tasks], {name: view.is_score(name) for name in columns}, values)


def format_panels(view: View, strategy: str, order: str) -> tuple[list[Panel], dict[str, SeriesStyle]]:
    """Return panels that tell lost format from lost knowledge: each domain's scores, and its nats per token.

    Args:
        view: The comparison.
        strategy: One of its strategies.
        order: One of its orders.

    Returns:
        For `plots.over_tasks` with two columns: two panels per domain (strict and lenient score; nats per token of the
        right answer) and the styles of their lines.
    """
    panels = []
    for place, domain in enumerate(view.tasks(order), start=1):
        kinds = {"strict": "", "lenient": f"{view.metric(domain)}_lenient"}
        scores = {kind: view.over_tasks(strategy, order, domain, metric) for kind, metric in kinds.items()}
        lines = {kind: line for kind, line in scores.items() if not math.isnan(line[place].mean)}
        panels.append(Panel(f"{domain}: score", lines, place))
        nats = {"right answer": view.over_tasks(strategy, order, domain, NATS)}
        panels.append(Panel(f"{domain}: nats per token", nats, place, in_nats=True))
    return panels, series_styles(["strict", "lenient", "right answer"])


def knock_out_figures(view: View, folder: str | Path | None) -> Iterator[tuple[str, Figure]]:
    """Yield the change of each strategy's final scores without each added part, where `knock_out.csv` has it.

    Args:
        view: The comparison.
        folder: Of the report; None: no figure.
    """
    rows = measured(view.comparison, folder, "knock_out") if folder else []
    for (strategy, order), changes in knocked_out(rows).items():
        yield f"knock-out-{strategy}-{order}", change_map(changes["domains"], changes["parts"], changes["changes"])


def has_lenient(losses: Sequence[Sequence[Loss]]) -> bool:
    """Return True if any domain has a lenient score beside its strict one."""
    return any(not math.isnan(row.lenient[1]) for rows in losses for row in rows)


def write_figures(
    comparisons: Sequence[Comparison], folder: str | Path, beside: str | Path | None = None
) -> list[Path]:
    """Write each figure as PNG and as SVG, and remove figures of an earlier report that no longer exist.

    Args:
        comparisons: The file names of the second begin with "2-", and so on.
        folder: Where the files go; created if missing.
        beside: Folder of the report, where an analysis may have written `knock_out.csv`.

    Returns:
        The files.
    """
    folder, files = Path(folder), []
    for place, comparison in enumerate(comparisons, start=1):
        for name, figure in figures(View(comparison), beside):
            stem = re.sub(r"[^\w.-]+", "_", f"{place}-{name}" if place > 1 else name)
            write_whole(folder / f"{stem}.svg", to_svg(figure))  # creates the folder
            with matplotlib.rc_context(RC_PARAMS):
                figure.savefig(folder / f"{stem}.png", dpi=DOTS_PER_INCH, facecolor="white")
            files += [folder / f"{stem}.png", folder / f"{stem}.svg"]
    _remove_old(folder, {file.name: digest_of(file) for file in files})
    return files


def _remove_old(folder: Path, written: Mapping[str, str]) -> None:
    """Remove files that an earlier report wrote and this one did not, except those that were changed since."""
    manifest = folder / MANIFEST
    for name, digest in _read_manifest(manifest).items():
        file = folder / name
        if name not in written and file.parent == folder and file.is_file() and digest_of(file) == digest:
            file.unlink()
    if written or manifest.is_file():
        write_whole(manifest, json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def _read_manifest(file: Path) -> dict[str, str]:
    """Return SHA-256 by file name; empty if the file is missing or damaged."""
    try:
        digests = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(digest) for name, digest in digests.items()} if isinstance(digests, dict) else {}
