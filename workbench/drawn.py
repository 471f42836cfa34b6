"""The sections of a report's page that hold a figure, each with the numbers that it was drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.comparison import Comparison
from workbench.display import number
from workbench.figures import likelihood_lost, over_time, score_lost, stability_plasticity
from workbench.gallery import (
    COST,
    COST_NAME,
    ORDERS_DRAWN,
    course_panels,
    has_lenient,
    looks_of,
    measured_losses,
    tradeoff_points,
)
from workbench.looks import swatch
from workbench.maps import change_map
from workbench.on_demand import KNOCK_OUT, knocked_out, measured, relearnt
from workbench.sections import estimate_text, short
from workbench.svg import inline
from workbench.views import View

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
