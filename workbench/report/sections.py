"""Contents of the report page, section by section, as the template shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from workbench.formatting import duration, number, rounded
from workbench.report.analyses import KNOCK_OUT, knocked_out, measured, relearnt
from workbench.report.comparison import BUDGET, MEASURES, Comparison
from workbench.report.figures import (
    COST,
    COST_NAME,
    MAX_ORDERS,
    has_lenient,
    measured_losses,
    panels_over_tasks,
    styles_of,
    tradeoff_points,
)
from workbench.report.plots import change_map, likelihood_lost, over_tasks, score_lost, stability_plasticity
from workbench.report.published import on_these_tasks
from workbench.report.scores import View, cells_of
from workbench.report.style import inline_svg, swatch
from workbench.results import RunFolder
from workbench.statistics import NORMAL, Estimate

SHADES = 20
"""Shade of a score of 1; the style sheet has a colour for each of `.h0` to `.h20`."""
MAX_MATRICES = 150
"""Runs and means up to which each seed's score matrix is on the page."""
MAX_UNFINISHED = 12
"""Unfinished runs whose score matrix is on the page."""
REM_PER_INCH = 7.2
"""Scale of a knock-out map, so that its numbers are as large as those of the page's tables."""


def unfinished(comparison: Comparison) -> list[dict[str, Any]]:
    """Return path, progress and scores so far of each unfinished run."""
    return [
        {"path": str(run.path), "how_far": how_far, "matrix": _so_far(run) if place < MAX_UNFINISHED else None}
        for place, (run, how_far) in enumerate(comparison.unfinished)
    ]


def _so_far(run: RunFolder) -> dict[str, Any] | None:
    layout, cells = run.layout, cells_of(run)
    if not cells:
        return None
    columns = {name: not layout.primary[name].startswith("nats") for name in layout.tested}
    values = [
        [cells.get((after, name, layout.primary[name]), math.nan) for name in columns]
        for after in range(len(layout.order) + 1)
    ]
    return matrix(layout.order, columns, values)


def legend(view: View, name: str) -> list[dict[str, str]]:
    """Return each strategy's line and marker; `name` begins the ids of their SVG elements."""
    entries = []
    for index, (strategy, style) in enumerate(styles_of(view).items()):
        key = f"{name}-{index}"
        entries.append({"name": strategy, "id": key, "svg": inline_svg(swatch(style), key)})
    return entries


def score_tables(view: View) -> list[dict[str, Any]]:
    """Return a score table for each order, and for several orders one of their means; the main one first."""
    of, orders = view.comparison, view.orders
    if not orders:
        return []
    tables, main = [], view.main_order
    for order in sorted([*([None] if len(orders) > 1 else []), *orders], key=lambda order: order != main):
        rows = []
        for strategy in view.strategies:
            runs = {name: len(of.seeds(strategy, name)) for name in ([order] if order is not None else orders)}
            if any(runs.values()):
                scores = [estimate_text(of.estimate(strategy, order, measure)) for measure in MEASURES]
                rows.append({"strategy": strategy, "runs": sum(runs.values()), "scores": scores})
        label = f"order {order}" if order is not None else f"mean over {len(orders)} orders"
        tables.append({"label": label, "rows": rows})
    return tables


def budgets(view: View) -> dict[str, dict[str, Any]]:
    """Return each strategy's budget, means over its runs."""
    table = {}
    for strategy in view.strategies:
        budget = view.comparison.budget(strategy)
        values = {kind: float(budget.get(kind, math.nan)) for kind in BUDGET}
        cells = [
            {"text": short(value, kind), "exact": exact(value, kind), "value": plain(value)}
            for kind, value in values.items()
        ]
        table[strategy] = {"cells": cells, "task_id_at_test": bool(budget.get("task_id_at_test", False))}
    return table


def differences(view: View, baseline: str | None) -> list[dict[str, Any]]:
    """Return a table for each order: strategy − baseline, paired over seeds."""
    of = view.comparison
    if baseline is None:
        return []
    tables = []
    for order in view.orders:
        others = [name for name in view.strategies if name != baseline and of.seeds(name, order)]
        rows = [
            {
                "strategy": name,
                "scores": [estimate_text(of.difference(name, baseline, order, measure)) for measure in MEASURES],
            }
            for name in others
        ]
        if rows and of.seeds(baseline, order):
            tables.append({"label": f"order {order}", "rows": rows})
    return tables


def sampling_error(view: View) -> dict[str, Any]:
    """Return OP with the half width that the finite test sets cause, where it is known, and the half widths' range.

    It is kept apart from the intervals over seeds: all seeds are scored on the same test rows.
    """
    rows, halves = [], []
    for strategy, order in product(view.strategies, view.orders):
        error = view.comparison.test_error(strategy, order)
        if not math.isnan(error):
            op = number(view.comparison.estimate(strategy, order, "OP").mean)
            halves.append(NORMAL * error)
            cells = [order, op, number(error, 4), f"± {number(halves[-1])}"]
            rows.append({"strategy": strategy, "cells": cells})
    span = " to ".join(dict.fromkeys(f"± {number(half)}" for half in (min(halves), max(halves)))) if halves else ""
    return {"rows": rows, "span": span}


def published(view: View) -> dict[str, Any] | None:
    """Return the published tables that share a task with the comparison, and its own scores; None without any."""
    tables = on_these_tasks(view.comparison)
    if not tables:
        return None
    measures = [name for name in MEASURES if any(name in row.values for rows in tables for row in rows)]
    of, order = view.comparison, view.main_order
    own = [
        {"strategy": name, "cells": [estimate_text(of.estimate(name, order, measure)) for measure in measures]}
        for name in view.strategies
    ]
    return {
        "measures": measures,
        "own": own,
        "where": f"order {order}" if order is not None else f"mean over {len(view.orders)} orders",
        "tables": [
            {
                "source": ", ".join(filter(None, [rows[0].source, rows[0].table])),
                "differences": rows[0].differences,
                "notes": rows[0].notes,
                "rows": [
                    {
                        "strategy": row.strategy,
                        "cells": [number(row.values.get(measure, math.nan)) for measure in measures],
                    }
                    for row in rows
                ],
            }
            for rows in tables
        ],
    }


def tradeoff(view: View, name: str) -> list[dict[str, Any]]:
    """Return the figure of stability against plasticity with its numbers; empty if no strategy has both.

    Args:
        view: The comparison; the figure shows its main order.
        name: Id of the figure.
    """
    points = tradeoff_points(view)
    if not points:
        return []
    label = f"Learning accuracy against forgetting, one marker per strategy, its size the {COST_NAME}"
    svg = inline_svg(stability_plasticity(points, styles_of(view), COST_NAME, legend=False), name, label)
    rows = [
        {
            "strategy": strategy,
            "forgetting": estimate_text(forgetting),
            "learning_accuracy": estimate_text(learning),
            "cost": short(cost, COST),
        }
        for strategy, (forgetting, learning, cost) in points.items()
    ]
    return [{"svg": svg, "rows": rows, "left_out": [name for name in view.strategies if name not in points]}]


def matrices(view: View) -> dict[str, Any]:
    """Return each strategy's score matrices: means over seeds by order, and each seed's unless there are too many."""
    of = view.comparison
    every = len(of.runs) + len(view.orders) * len(view.strategies) <= MAX_MATRICES
    choices: list[dict[str, Any]] = []
    for order in view.orders:
        seeds = sorted({seed for strategy in view.strategies for seed in of.seeds(strategy, order)})
        columns = {name: view.is_score(name) for name in view.tested(order)}
        for seed in [None, *(seeds if every and len(seeds) > 1 else [])]:
            by_strategy = {
                strategy: matrix(view.tasks(order), columns, view.matrix(strategy, order, seed))
                for strategy in view.strategies
                if of.seeds(strategy, order) and (seed is None or seed in of.seeds(strategy, order))
            }
            which = f"seed {seed}" if seed is not None else "mean over seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
            choices.append({"label": f"order {order}, {which}", "matrices": by_strategy})
    return {"choices": choices, "every": every}


def matrix(tasks: Sequence[str], columns: Mapping[str, bool], values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return one score matrix.

    Args:
        tasks: In the order learnt.
        columns: What was tested, and whether that is a score between 0 and 1, which has a colour.
        values: (T+1, columns).
    """
    rows = []
    for after, row in enumerate(values):
        cells = [
            {
                "text": number(value, 2),
                "shade": shade(value) if scored else "",
                "own": after > 0 and name == tasks[after - 1],
            }
            for value, (name, scored) in zip(row, columns.items(), strict=True)
        ]
        rows.append({"label": f"{after} {tasks[after - 1]}" if after else "0 zero-shot", "cells": cells})
    return {"columns": [{"name": name, "trained": name in tasks} for name in columns], "rows": rows}


def shade(score: float) -> str:
    """Return the CSS class of a cell of a heat map.

    >>> shade(0.0), shade(0.52), shade(1.0), shade(math.nan)
    ('h0', 'h10', 'h20', '')
    """
    return "" if math.isnan(score) else f"h{round(min(max(score, 0.0), 1.0) * SHADES)}"


def over_time(view: View, name: str, probes: bool) -> list[dict[str, Any]]:
    """Return scores over time for each order: a diagram for each domain, or for each probe, and its numbers.

    Args:
        view: The comparison.
        name: Prefix of the figures' ids.
        probes: Show what is never trained instead of the domains.
    """
    styles, orders = styles_of(view), []
    for place, order in enumerate(view.orders):
        panels = []
        for index, (on, panel) in enumerate(panels_over_tasks(view, order, probes).items()):
            label = f"{on}, order {order}: {view.metric(on)} after each task, one line per strategy"
            svg = ""
            if place < MAX_ORDERS:
                svg = inline_svg(over_tasks([panel], styles, legend=False), f"{name}-{place}-{index}", label)
            numbers = {strategy: [estimate_text(point, 2) for point in line] for strategy, line in panel.lines.items()}
            panels.append({"on": on, "metric": view.metric(on), "svg": svg, "numbers": numbers})
        orders.append({"order": order, "panels": panels, "after": list(range(len(view.tasks(order)) + 1))})
    return orders


def losses(view: View, name: str) -> dict[str, Any]:
    """Return figures and numbers that tell lost format from lost knowledge.

    Args:
        view: The comparison.
        name: Prefix of the figures' ids.
    """
    styles, lost, svgs = styles_of(view), measured_losses(view), []
    if lost and has_lenient(list(lost.values())):
        label = "Drop of the strict and the lenient score from right after learning to the end, by strategy"
        svgs.append(inline_svg(score_lost(lost, styles), f"{name}-score", label))
    if lost:
        label = "Rise of the right answer's nats per token from right after learning to the end, by strategy"
        svgs.append(inline_svg(likelihood_lost(lost, styles), f"{name}-nats", label))
    tables = {
        strategy: [
            {"domain": row.domain, "cells": [number(value, 2) for value in (*row.strict, *row.lenient, *row.nats)]}
            for row in rows
        ]
        for strategy, rows in lost.items()
    }
    return {"svgs": svgs, "tables": tables, "left_out": [name for name in view.strategies if name not in lost]}


def on_demand(comparison: Comparison, folder: str | Path, name: str) -> dict[str, Any]:
    """Return the results of relearning and knock-out, where `relearning.csv` and `knock_out.csv` have any.

    Args:
        comparison: Of the runs.
        folder: Of the report.
        name: Prefix of the figures' ids.
    """
    maps = []
    knock_outs = knocked_out(measured(comparison, folder, "knock_out"))
    for index, ((strategy, order), table) in enumerate(knock_outs.items()):
        title = f"{strategy}, order {order}"
        figure = change_map(table["domains"], table["parts"], table["changes"])
        svg = inline_svg(figure, f"{name}-{index}", f"{title}: change of each domain's score without each added part")
        rows = [
            (domain, [number(value) for value in row])
            for domain, row in zip(table["domains"], table["changes"], strict=True)
        ]
        width = round(REM_PER_INCH * figure.get_figwidth(), 1)
        maps.append({"title": title, "svg": svg, "width": width, "parts": table["parts"], "rows": rows})
    return {"relearning": relearnt(measured(comparison, folder, "relearning")), "maps": maps, "knock_out": KNOCK_OUT}


def estimate_text(estimate: Estimate, digits: int = 3) -> dict[str, Any]:
    """Return a mean and its half width as text, and the value by which a table is sorted."""
    known = not math.isnan(estimate.half_width)
    spread = f"± {number(estimate.half_width, digits)}" if known else ""
    return {"text": number(estimate.mean, digits), "spread": spread, "value": plain(estimate.mean)}


def plain(value: float) -> str:
    """Return a number as the page's script reads it; empty for NaN."""
    return "" if math.isnan(value) else repr(float(value))


def short(value: float, kind: str) -> str:
    """Return a budget in three digits, with its unit.

    >>> short(15552.0, "tokens"), short(1.5e9, "disk_bytes"), short(95.0, "train_seconds"), short(math.nan, "steps")
    ('15.6 K', '1.5 GB', '1 min 35 s', '–')
    """
    if kind.endswith("seconds") and not math.isnan(value):
        return duration(value)
    return rounded(value, "B" if kind.endswith("bytes") else "")


def exact(value: float, kind: str) -> str:
    """Return a budget with all its digits."""
    return "–" if math.isnan(value) else f"{value:,.1f}" if kind.endswith("seconds") else f"{value:,.0f}"


def count_of(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun.

    >>> count_of(1, "seed"), count_of(3, "seed"), count_of(2, "strategy", "strategies")
    ('1 seed', '3 seeds', '2 strategies')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"
