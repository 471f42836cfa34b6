"""Style: no two strategies look alike, and an inline figure takes the page's colours."""

from __future__ import annotations

import math
import re

from workbench.report.plots import Panel, over_tasks
from workbench.report.style import inline_svg, series_styles, to_svg
from workbench.statistics import Estimate


def known(mean: float, half: float = math.nan) -> Estimate:
    return Estimate(mean, half, 3)


def test_no_two_strategies_look_alike() -> None:
    styles = series_styles([f"s{index}" for index in range(40)])
    assert len({(style.color, style.marker, style.dash) for style in styles.values()}) == 40
    first = list(styles.values())[:8]
    assert len({style.color for style in first}) == len({style.marker for style in first}) == 8


def test_a_figure_is_the_same_text_each_time_and_takes_the_pages_colours() -> None:
    panel = Panel("a $x$ <b>", {"lora": [known(0.1, 0.1), known(0.9, 0.1)]})
    one, two = (to_svg(over_tasks([panel], series_styles(["lora"]))) for _ in range(2))
    assert one == two
    part = inline_svg(over_tasks([panel], series_styles(["lora"])), "x-1", 'says "a" & b')
    assert 'aria-label="says &quot;a&quot; &amp; b"' in part
    assert "a $x$ &lt;b&gt;" in part
    assert not re.search(r"#[0-9a-f]{6}", part.replace("&#", "")), "a colour of its own"
    assert "http" not in part
    ids = re.findall(r'\bid="([^"]+)"', part)
    assert ids
    assert ids[0] == "x-1"
    assert all(name.startswith("x-1-") for name in ids[1:])
    assert {*re.findall(r"url\(#([^)]+)\)", part), *re.findall(r'href="#([^"]+)"', part)} <= {*ids}
