"""Pictures of layer plans: each layer stands where the plan says, and the seams are those worked by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from strategies import BlockExpansion, DepthUpScaling
from workbench.depth import PlannedLayer
from workbench.report.plots import KINDS, joined_figure, seams, stack_figure


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
    (axes,) = stack_figure({"grown": BlockExpansion(groups=3).plan(6), "SOLAR": DepthUpScaling(dropped=2).plan(6)}).axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    colors = Counter((int(box.get_x()), to_hex(box.get_facecolor())) for box in boxes)
    own, identity, copy = KINDS.values()
    assert colors == {(0, own): 6, (0, identity): 3, (1, own): 6, (1, copy): 2}
    texts = sorted((text.get_position(), text.get_text()) for text in axes.texts)
    assert [text for (x, y), text in texts if x == 0.4 and y > 0] == ["0", "1", "1", "2", "3", "3", "4", "5", "5"]
    assert [text for (x, y), text in texts if x == 1.4 and y > 0] == ["0", "1", "2", "3", "2", "3", "4", "5"]
    assert [(y, text) for (x, y), text in texts if x == 1.79] == [(4, "−2")]
    assert [text for (_, y), text in texts if y < 0] == ["grown", "SOLAR"]


def test_each_connection_leads_from_its_layer_to_behind_the_anchors() -> None:
    (axes,) = joined_figure((2, 4), [(0, 1), (1, 3)]).axes
    assert Counter(patch.get_x() for patch in axes.patches if isinstance(patch, Rectangle)) == {0.2: 2, 2.7: 4}
    arrows = [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation)]
    assert arrows == [((1.2, 0.35), (2.7, 1.85)), ((1.2, 1.35), (2.7, 3.85))]
