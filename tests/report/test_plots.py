"""Plots: they draw the numbers that they are given, and each layer and seam is where the plan puts it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from strategies import BlockExpansion, DepthUpScaling
from workbench.depth import PlannedLayer
from workbench.report.plots import (
    LAYER_KINDS,
    Panel,
    heat_map,
    layer_connections,
    layer_stacks,
    likelihood_lost,
    over_steps,
    over_tasks,
    score_lost,
    seams,
    stability_plasticity,
)
from workbench.report.scores import Loss
from workbench.report.style import series_styles
from workbench.statistics import Estimate


def known(mean: float, half: float = math.nan) -> Estimate:
    return Estimate(mean, half, 3)


def points_of(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_scores_over_time_are_those_given_with_their_bands() -> None:
    lines = {
        "lora": [known(0.1), known(0.9, 0.05), known(0.5, 0.2)],
        "joint": [known(0.1), known(math.nan), known(0.8)],
    }
    (axes,) = over_tasks([Panel("a", lines, learnt_after=1)], series_styles(list(lines))).axes
    learnt, lora, joint = axes.lines
    assert list(learnt.get_xdata()) == [1, 1]
    assert points_of(lora) == [(0, 0.1), (1, 0.9), (2, 0.5)]
    assert points_of(joint) == [(0, 0.1), (2, 0.8)]
    assert joint.get_linestyle() == "None"  # nothing is known between its points
    (band,) = axes.collections
    assert {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices} >= {(1, 0.85), (1, 0.95), (2, 0.3), (2, 0.7)}


def test_scores_in_mid_task_stand_at_their_steps() -> None:
    lines = {"solar": [(0, 0.4), (40, 0.3)], "naive": [(0, 0.9), (40, 0.5)]}
    (axes,) = over_steps(lines, series_styles(list(lines)), "loss").axes
    assert [points_of(line) for line in axes.lines] == [lines["solar"], lines["naive"]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer steps", "loss")


def test_the_dearest_strategy_has_the_largest_mark() -> None:
    points = {"cheap": (known(0.4, 0.1), known(0.7), 10.0), "dear": (known(0.2), known(0.9), 20.0)}
    (axes,) = stability_plasticity(points, series_styles(list(points)), "seconds").axes
    cheap, dear = (mark for mark in axes.collections if isinstance(mark, PathCollection))
    assert cheap.get_offsets().tolist() == [[0.4, 0.7]]
    assert (cheap.get_sizes()[0], dear.get_sizes()[0]) == (25 + 275 / 2, 300)
    assert axes.get_xlim()[0] > axes.get_xlim()[1]


def test_what_was_lost_is_the_mean_over_domains() -> None:
    both = Loss("a", strict=(0.9, 0.3), lenient=(0.9, 0.7), nats=(1.0, 2.0))
    strict_alone = Loss("b", strict=(0.8, 0.8), lenient=(math.nan, math.nan), nats=(1.0, 4.0))
    losses = {"lora": [both, strict_alone]}
    (axes,) = score_lost(losses, series_styles(["lora"])).axes
    assert [round(float(line.get_xdata()[0]), 6) for line in axes.lines[2:]] == [0.6, 0.2]
    (axes,) = likelihood_lost(losses, series_styles(["lora"])).axes
    assert points_of(axes.lines[-1]) == [(2.0, 0)]  # (1 + 3) / 2


def test_a_heat_map_prints_its_numbers_and_colours_scores_alone() -> None:
    figure = heat_map(["zero-shot", "a"], {"a": True, "text": False}, [[0.1, 3.5], [math.nan, 2.25]])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0.10", "3.50", "–", "2.25"]
    shown = axes.images[0].get_array()
    assert shown.mask.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize(
    ("plan", "known"),
    [
        (DepthUpScaling(dropped=2).plan(6), [(4, 2)]),  # 0 1 2 3 | 2 3 4 5
        (DepthUpScaling(dropped=0).plan(6), [(6, 6)]),
        (DepthUpScaling(dropped=2, interlock=1).plan(6), [(1, -1), (2, 2), (3, -1), (4, 2), (5, -1), (6, 2), (7, -1)]),
        (BlockExpansion(groups=3).plan(6), []),
        (BlockExpansion(groups=2, position="bottom").plan(6), []),
        ([PlannedLayer(0), PlannedLayer(0)], [(1, 1)]),
    ],
)
def test_a_seam_is_where_a_layer_follows_on_another_one_than_before(
    plan: list[PlannedLayer], known: list[tuple[int, int]]
) -> None:
    assert seams(plan) == known


def test_a_stack_is_drawn_from_below_with_its_kinds_and_its_seams() -> None:
    (axes,) = layer_stacks({"grown": BlockExpansion(groups=3).plan(6), "SOLAR": DepthUpScaling(dropped=2).plan(6)}).axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    colors = Counter((int(box.get_x()), to_hex(box.get_facecolor())) for box in boxes)
    own, identity, copy = LAYER_KINDS.values()
    assert colors == {(0, own): 6, (0, identity): 3, (1, own): 6, (1, copy): 2}
    texts = sorted((text.get_position(), text.get_text()) for text in axes.texts)
    assert [text for (x, y), text in texts if x == 0.4 and y > 0] == ["0", "1", "1", "2", "3", "3", "4", "5", "5"]
    assert [text for (x, y), text in texts if x == 1.4 and y > 0] == ["0", "1", "2", "3", "2", "3", "4", "5"]
    assert [(y, text) for (x, y), text in texts if x == 1.79] == [(4, "−2")]
    assert [text for (_, y), text in texts if y < 0] == ["grown", "SOLAR"]


def test_each_connection_leads_from_its_layer_to_behind_the_anchors() -> None:
    (axes,) = layer_connections((2, 4), [(0, 1), (1, 3)]).axes
    assert Counter(patch.get_x() for patch in axes.patches if isinstance(patch, Rectangle)) == {0.2: 2, 2.7: 4}
    arrows = [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation)]
    assert arrows == [((1.2, 0.35), (2.7, 1.85)), ((1.2, 1.35), (2.7, 3.85))]
