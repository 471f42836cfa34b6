"""Contents of the report page, section by section."""

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
    ORDERS_DRAWN,
    course_panels,
    has_lenient,
    looks_of,
    measured_losses,
    tradeoff_points,
)
from workbench.report.plots import change_map, likelihood_lost, over_time, score_lost, stability_plasticity
from workbench.report.published import on_these_tasks
from workbench.report.scores import View, cells_of
from workbench.report.style import inline, swatch
from workbench.results import RunFolder
from workbench.statistics import NORMAL, Estimate

REM_AN_INCH = 7.2
"""Of a map with numbers in its cells: what makes them as large as the page's other tables."""


def courses(view: View, name: str, probes: bool) -> list[dict[str, Any]]:
    """Scores over time, order by order: a small diagram for each domain, or for each probe, and the numbers.

    Args:
        view: The comparison.
        name: The beginning of the figures' ids.
        probes: Whether what was never trained is shown, and not the domains.
    """
    looks, made = looks_of(view), []
    for place, order in enumerate(view.orders):
        shown = []
        for index, (on, panel) in enumerate(course_panels(view, order, probes).items()):
            label = f"{on}, order {order}: {view.metric(on)} after each task, a line for each strategy"
            drawn = place < ORDERS_DRAWN
            svg = inline(over_time([panel], looks, legend=False), f"{name}-{place}-{index}", label) if drawn else ""
            numbers = {strategy: [estimate_text(point, 2) for point in line] for strategy, line in panel.lines.items()}
            shown.append({"on": on, "metric": view.metric(on), "svg": svg, "numbers": numbers})
        made.append({"order": order, "panels": shown, "after": list(range(len(view.tasks(order)) + 1))})
    return made


def tradeoff(view: View, name: str) -> list[dict[str, Any]]:
    """Stability against plasticity, over all orders or within the only one; nothing where nothing was measured."""
    points = tradeoff_points(view)
    if not points:
        return []
    label = f"Learning accuracy against forgetting, a mark for each strategy, its size the {COST_NAME}"
    svg = inline(stability_plasticity(points, looks_of(view), COST_NAME, legend=False), name, label)
    rows = [
        {
            "strategy": strategy,
            "forgetting": estimate_text(forgotten),
            "learnt": estimate_text(learnt),
            "cost": short(cost, COST),
        }
        for strategy, (forgotten, learnt, cost) in points.items()
    ]
    return [{"svg": svg, "rows": rows, "left_out": [name for name in view.strategies if name not in points]}]


def losses(view: View, name: str) -> dict[str, Any]:
    """Lost format against lost knowledge."""
    looks, found, svgs = looks_of(view), measured_losses(view), []
    if found and has_lenient(list(found.values())):
        label = "Drop of the strict and of the lenient score from learnt to the end, by strategy"
        svgs.append(inline(score_lost(found, looks), f"{name}-score", label))
    if found:
        label = "Rise of the nats a token of the right answer from learnt to the end, by strategy"
        svgs.append(inline(likelihood_lost(found, looks), f"{name}-nats", label))
    tables = {
        strategy: [
            {"domain": row.domain, "cells": [number(value, 2) for value in (*row.strict, *row.lenient, *row.nats)]}
            for row in rows
        ]
        for strategy, rows in found.items()
    }
    return {"svgs": svgs, "tables": tables, "left_out": [name for name in view.strategies if name not in found]}


def legend(view: View, name: str) -> list[dict[str, str]]:
    """How each strategy looks in every figure."""
    looks, made = looks_of(view), []
    for place, (strategy, look) in enumerate(looks.items()):
        key = f"{name}-{place}"
        made.append({"name": strategy, "id": key, "svg": inline(swatch(look), key)})
    return made


def on_demand(comparison: Comparison, folder: str | Path, name: str) -> dict[str, Any]:
    """What relearning and knocking out have shown, where anybody asked: tables, figures and how it was done."""
    maps = []
    found = knocked_out(measured(comparison, folder, "knock_out"))
    for place, ((strategy, order), one) in enumerate(found.items()):
        title = f"{strategy}, order {order}"
        drawn = change_map(one["domains"], one["parts"], one["changes"])
        svg = inline(drawn, f"{name}-{place}", f"{title}: change of each domain's score without each added part")
        rows = [
            (domain, [number(value) for value in row])
            for domain, row in zip(one["domains"], one["changes"], strict=True)
        ]
        width = round(REM_AN_INCH * drawn.get_figwidth(), 1)
        maps.append({"title": title, "svg": svg, "width": width, "parts": one["parts"], "rows": rows})
    return {"relearning": relearnt(measured(comparison, folder, "relearning")), "maps": maps, "knock_out": KNOCK_OUT}


SHADES = 20
MATRICES = 150
UNFINISHED = 12


def estimate_text(estimate: Estimate, digits: int = 3) -> dict[str, Any]:
    """A mean and its half width as they are printed, and the number by which a table is sorted."""
    known = not math.isnan(estimate.half_width)
    spread = f"± {number(estimate.half_width, digits)}" if known else ""
    return {"text": number(estimate.mean, digits), "spread": spread, "value": plain(estimate.mean)}


def plain(value: float) -> str:
    """A number as a page's script reads it: empty where there is none."""
    return "" if math.isnan(value) else repr(float(value))


def short(value: float, kind: str) -> str:
    """A budget in three digits, with its unit.

    >>> short(15552.0, "tokens"), short(1.5e9, "disk_bytes"), short(95.0, "train_seconds"), short(math.nan, "steps")
    ('15.6 K', '1.5 GB', '1 min 35 s', '–')
    """
    if kind.endswith("seconds") and not math.isnan(value):
        return duration(value)
    return rounded(value, "B" if kind.endswith("bytes") else "")


def exact(value: float, kind: str) -> str:
    """A budget in full."""
    return "–" if math.isnan(value) else f"{value:,.1f}" if kind.endswith("seconds") else f"{value:,.0f}"


def count_of(count: int, one: str, several: str = "") -> str:
    """A count with its noun.

    >>> count_of(1, "seed"), count_of(3, "seed"), count_of(2, "strategy", "strategies")
    ('1 seed', '3 seeds', '2 strategies')
    """
    return f"{count} {one}" if count == 1 else f"{count} {several or one + 's'}"


def score_tables(view: View) -> list[dict[str, Any]]:
    """The comparison: a table for each order, and one over all of them where there are several; the main one first."""
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
    """What each strategy took, means over its runs."""
    found = {}
    for strategy in view.strategies:
        budget = view.comparison.budget(strategy)
        values = {kind: float(budget.get(kind, math.nan)) for kind in BUDGET}
        cells = [
            {"text": short(value, kind), "exact": exact(value, kind), "value": plain(value)}
            for kind, value in values.items()
        ]
        found[strategy] = {"cells": cells, "told": bool(budget.get("task_id_at_test", False))}
    return found


def differences(view: View, baseline: str | None) -> list[dict[str, Any]]:
    """Each strategy less the baseline, paired over seeds, order by order."""
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


def test_noise(view: View) -> dict[str, Any]:
    """What the finite test sets leave open of OP, apart from what the seeds do; no rows where nobody knows it."""
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
    """Published tables that share a task with the comparison, beside its own numbers; None where there is none."""
    tables = on_these_tasks(view.comparison)
    if not tables:
        return None
    named = [name for name in MEASURES if any(name in row.values for rows in tables for row in rows)]
    of, order = view.comparison, view.main_order
    own = [
        {"strategy": name, "cells": [estimate_text(of.estimate(name, order, measure)) for measure in named]}
        for name in view.strategies
    ]
    return {
        "measures": named,
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
                        "cells": [number(row.values.get(measure, math.nan)) for measure in named],
                    }
                    for row in rows
                ],
            }
            for rows in tables
        ],
    }


def shade(value: float) -> str:
    """The class of a heat map's cell."""
    return "" if math.isnan(value) else f"h{round(min(max(value, 0.0), 1.0) * SHADES)}"


def matrix(tasks: Sequence[str], columns: Mapping[str, bool], values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A score matrix for the page.

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
        rows.append({"label": f"{after} {tasks[after - 1]}" if after else "0 untouched", "cells": cells})
    return {"columns": [{"name": name, "trained": name in tasks} for name in columns], "rows": rows}


def matrices(view: View) -> dict[str, Any]:
    """Each strategy's score matrix: the mean over seeds by order, and each seed's as long as they are not too many."""
    of = view.comparison
    every = len(of.runs) + len(view.orders) * len(view.strategies) <= MATRICES
    choices: list[dict[str, Any]] = []
    for order in view.orders:
        seeds = sorted({seed for strategy in view.strategies for seed in of.seeds(strategy, order)})
        columns = {name: view.is_score(name) for name in view.tested(order)}
        for seed in [None, *(seeds if every and len(seeds) > 1 else [])]:
            made = {
                strategy: matrix(view.tasks(order), columns, view.matrix(strategy, order, seed))
                for strategy in view.strategies
                if of.seeds(strategy, order) and (seed is None or seed in of.seeds(strategy, order))
            }
            which = f"seed {seed}" if seed is not None else "mean over seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
            choices.append({"label": f"order {order}, {which}", "made": made})
    return {"choices": choices, "every": every}


def unfinished(comparison: Comparison) -> list[dict[str, Any]]:
    """The runs that have not come to their end: how far each is, and what it has measured so far."""
    return [
        {"path": str(run.path), "how_far": how_far, "matrix": _so_far(run) if place < UNFINISHED else None}
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
