"""Which figures a comparison has, from which numbers, and the files for a paper."""

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
    over_time,
    score_lost,
    stability_plasticity,
)
from workbench.report.scores import NATS, Loss, View
from workbench.report.style import STYLE, Mark, marks, svg_of
from workbench.runtime.files import digest_of, write_whole
from workbench.statistics import Estimate

COST, COST_NAME = "train_seconds", "training time"
DOTS_PER_INCH = 160
ORDERS_DRAWN = 3
MATRICES_DRAWN = 24
WRITTEN = "written.json"
"""In the folder of the figures: the SHA-256 of each that a report wrote, by its name."""


def looks_of(view: View) -> dict[str, Mark]:
    """What each strategy looks like in all figures of a comparison."""
    return marks(view.strategies, view.comparison.bounds)


def course_panels(view: View, order: str, probes: bool) -> dict[str, Panel]:
    """The panels of scores over time within an order, by what was tested.

    Args:
        view: The comparison.
        order: One of its orders.
        probes: Whether what was never trained is shown, and not the domains.
    """
    tasks = view.tasks(order)
    strategies = [strategy for strategy in view.strategies if view.comparison.seeds(strategy, order)]
    return {
        on: Panel(
            f"{on} ({view.metric(on)})",
            {strategy: view.course(strategy, order, on) for strategy in strategies},
            None if probes else tasks.index(on) + 1,
            in_nats=not view.is_score(on),
        )
        for on in view.tested(order)
        if (on in tasks) != probes
    }


def tradeoff_points(view: View) -> dict[str, tuple[Estimate, Estimate, float]]:
    """Forgetting, learning accuracy and training seconds of each strategy that has them, in the view's main order."""
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
    """Of each strategy that learns two domains or more in turn, what it lost of them."""
    found = {strategy: view.losses(strategy) for strategy in view.strategies}
    return {
        strategy: rows
        for strategy, rows in found.items()
        if len(rows) > 1 and not any(math.isnan(value) for row in rows for value in row.strict)
    }


def figures(view: View, folder: str | Path | None = None) -> Iterator[tuple[str, Figure]]:
    """The figures of a comparison with their files' names; of many orders and strategies the first ones.

    Args:
        view: The comparison.
        folder: Where an analysis on demand may have left `knock_out.csv`.
    """
    looks = looks_of(view)
    if points := tradeoff_points(view):
        yield "stability-plasticity", stability_plasticity(points, looks, COST_NAME)
    if lost := measured_losses(view):
        if has_lenient(list(lost.values())):
            yield "score-lost", score_lost(lost, looks)
        yield "likelihood-lost", likelihood_lost(lost, looks)
    for order in view.orders[:ORDERS_DRAWN]:
        for name, probes in (("domains", False), ("probes", True)):
            if panels := course_panels(view, order, probes):
                yield f"{name}-over-time-{order}", over_time(list(panels.values()), looks)
    for order in view.orders[:1]:
        for strategy in view.strategies[:MATRICES_DRAWN]:
            if view.comparison.seeds(strategy, order):
                yield f"matrix-{strategy}-{order}", matrix_figure(view, strategy, order)
    yield from knock_out_figures(view, folder)


def matrix_figure(view: View, strategy: str, order: str, after: int | None = None, others: bool = True) -> Figure:
    """The score matrix of a strategy, means over seeds.

    Args:
        view: The comparison.
        strategy: One of its strategies.
        order: One of its orders.
        after: As it was when so many tasks were learnt: what comes later is not filled in yet. None: the whole.
        others: Whether what is never trained stands beside the domains.
    """
    tasks, tested = view.tasks(order), view.tested(order)
    shown = [name for name in tested if others or name in tasks]
    known = len(tasks) if after is None else after
    values = [
        [row[tested.index(name)] if place <= known else math.nan for name in shown]
        for place, row in enumerate(view.matrix(strategy, order))
    ]
    return heat_map(["untouched", *tasks], {name: view.is_score(name) for name in shown}, values)


def format_panels(view: View, strategy: str, order: str) -> tuple[list[Panel], dict[str, Mark]]:
    """Lost format against lost knowledge over time: for each domain its strict and its lenient score, and beside
    them the nats that a token of the right answer takes.

    Args:
        view: The comparison.
        strategy: One of its strategies.
        order: One of its orders.

    Returns:
        Two panels a domain, for `figures.over_time` with two columns, and what its lines look like.
    """
    panels = []
    for place, domain in enumerate(view.tasks(order), start=1):
        kinds = {"strict": "", "lenient": f"{view.metric(domain)}_lenient"}
        scores = {kind: view.course(strategy, order, domain, metric) for kind, metric in kinds.items()}
        lines = {kind: line for kind, line in scores.items() if not math.isnan(line[place].mean)}
        panels.append(Panel(f"{domain}: score", lines, place))
        nats = {"right answer": view.course(strategy, order, domain, NATS)}
        panels.append(Panel(f"{domain}: nats a token", nats, place, in_nats=True))
    return panels, marks(["strict", "lenient", "right answer"])


def knock_out_figures(view: View, folder: str | Path | None) -> Iterator[tuple[str, Figure]]:
    """What each strategy's final model loses without each added part, where anybody asked."""
    for (strategy, order), found in knocked_out(
        measured(view.comparison, folder, "knock_out") if folder else []
    ).items():
        yield f"knock-out-{strategy}-{order}", change_map(found["domains"], found["parts"], found["changes"])


def has_lenient(losses: Sequence[Sequence[Loss]]) -> bool:
    """Whether any domain has a lenient score beside its strict one."""
    return any(not math.isnan(row.lenient[1]) for rows in losses for row in rows)


def write_figures(
    comparisons: Sequence[Comparison], folder: str | Path, beside: str | Path | None = None
) -> list[Path]:
    """Writes each figure as PNG and as SVG, and removes those of an earlier report that are no more.

    Args:
        comparisons: Where there are several, the files of the second begin with "2-" and so on.
        folder: Where they go; it is made if need be.
        beside: The folder of the report, where an analysis on demand may have left numbers.

    Returns:
        The files.
    """
    folder, files = Path(folder), []
    for place, comparison in enumerate(comparisons, start=1):
        for name, figure in figures(View(comparison), beside):
            stem = re.sub(r"[^\w.-]+", "_", f"{place}-{name}" if place > 1 else name)
            write_whole(folder / f"{stem}.svg", svg_of(figure))  # makes the folder
            with matplotlib.rc_context(STYLE):
                figure.savefig(folder / f"{stem}.png", dpi=DOTS_PER_INCH, facecolor="white")
            files += [folder / f"{stem}.png", folder / f"{stem}.svg"]
    _remove_old(folder, {file.name: digest_of(file) for file in files})
    return files


def _remove_old(folder: Path, written: Mapping[str, str]) -> None:
    """Removes what an earlier report wrote and this one did not, unless somebody has changed it since."""
    known = folder / WRITTEN
    for name, digest in _written_before(known).items():
        file = folder / name
        if name not in written and file.parent == folder and file.is_file() and digest_of(file) == digest:
            file.unlink()
    if written or known.is_file():
        write_whole(known, json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def _written_before(file: Path) -> dict[str, str]:
    """Names and checksums; none where the file is not there or is not what a report writes."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(digest) for name, digest in found.items()} if isinstance(found, dict) else {}
