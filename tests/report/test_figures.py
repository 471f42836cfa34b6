"""Figures: what they draw are the numbers that they were given, and each strategy looks like no other."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import make_run, make_study
from matplotlib.collections import PathCollection

from workbench.report import compare
from workbench.report.figures import figures, measured_losses, tradeoff_points, write_figures
from workbench.report.plots import (
    Panel,
    heat_map,
    likelihood_lost,
    over_steps,
    over_time,
    score_lost,
    stability_plasticity,
)
from workbench.report.scores import Loss, View
from workbench.report.style import inline, marks, svg_of
from workbench.runtime.files import digest_of
from workbench.statistics import Estimate

HALF = 4.302653 * 0.1 / math.sqrt(3)  # of three values 0.1 apart: t of two degrees of freedom, s = 0.1


def known(mean: float, half: float = math.nan) -> Estimate:
    return Estimate(mean, half, 3)


def points_of(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_no_two_strategies_look_alike() -> None:
    looks = marks([f"s{index}" for index in range(40)])
    assert len({(look.color, look.marker, look.dash) for look in looks.values()}) == 40
    first = list(looks.values())[:8]
    assert len({look.color for look in first}) == len({look.marker for look in first}) == 8


def test_scores_over_time_are_those_given_with_their_bands() -> None:
    lines = {
        "lora": [known(0.1), known(0.9, 0.05), known(0.5, 0.2)],
        "joint": [known(0.1), known(math.nan), known(0.8)],
    }
    (axes,) = over_time([Panel("a", lines, learnt_after=1)], marks(list(lines))).axes
    learnt, lora, joint = axes.lines
    assert list(learnt.get_xdata()) == [1, 1]
    assert points_of(lora) == [(0, 0.1), (1, 0.9), (2, 0.5)]
    assert points_of(joint) == [(0, 0.1), (2, 0.8)]
    assert joint.get_linestyle() == "None"  # nothing is known between its points
    (band,) = axes.collections
    assert {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices} >= {(1, 0.85), (1, 0.95), (2, 0.3), (2, 0.7)}


def test_scores_in_mid_task_stand_at_their_steps() -> None:
    lines = {"solar": [(0, 0.4), (40, 0.3)], "naive": [(0, 0.9), (40, 0.5)]}
    (axes,) = over_steps(lines, marks(list(lines)), "loss").axes
    assert [points_of(line) for line in axes.lines] == [lines["solar"], lines["naive"]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer steps", "loss")


def test_the_dearest_strategy_has_the_largest_mark() -> None:
    points = {"cheap": (known(0.4, 0.1), known(0.7), 10.0), "dear": (known(0.2), known(0.9), 20.0)}
    (axes,) = stability_plasticity(points, marks(list(points)), "seconds").axes
    cheap, dear = (mark for mark in axes.collections if isinstance(mark, PathCollection))
    assert cheap.get_offsets().tolist() == [[0.4, 0.7]]
    assert (cheap.get_sizes()[0], dear.get_sizes()[0]) == (25 + 275 / 2, 300)
    assert axes.get_xlim()[0] > axes.get_xlim()[1]


def test_what_was_lost_is_the_mean_over_domains() -> None:
    both = Loss("a", strict=(0.9, 0.3), lenient=(0.9, 0.7), nats=(1.0, 2.0))
    strict_alone = Loss("b", strict=(0.8, 0.8), lenient=(math.nan, math.nan), nats=(1.0, 4.0))
    losses = {"lora": [both, strict_alone]}
    (axes,) = score_lost(losses, marks(["lora"])).axes
    assert [round(float(line.get_xdata()[0]), 6) for line in axes.lines[2:]] == [0.6, 0.2]
    (axes,) = likelihood_lost(losses, marks(["lora"])).axes
    assert points_of(axes.lines[-1]) == [(2.0, 0)]  # (1 + 3) / 2


def test_a_heat_map_prints_its_numbers_and_colours_scores_alone() -> None:
    figure = heat_map(["untouched", "a"], {"a": True, "text": False}, [[0.1, 3.5], [math.nan, 2.25]])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0.10", "3.50", "–", "2.25"]
    shown = axes.images[0].get_array()
    assert shown.mask.tolist() == [[False, True], [True, True]]


def test_a_figure_is_the_same_text_each_time_and_takes_the_pages_colours() -> None:
    panel = Panel("a $x$ <b>", {"lora": [known(0.1, 0.1), known(0.9, 0.1)]})
    one, two = (svg_of(over_time([panel], marks(["lora"]))) for _ in range(2))
    assert one == two
    part = inline(over_time([panel], marks(["lora"])), "x-1", 'says "a" & b')
    assert 'aria-label="says &quot;a&quot; &amp; b"' in part
    assert "a $x$ &lt;b&gt;" in part
    assert not re.search(r"#[0-9a-f]{6}", part.replace("&#", "")), "a colour of its own"
    assert "http" not in part
    ids = re.findall(r'\bid="([^"]+)"', part)
    assert ids
    assert ids[0] == "x-1"
    assert all(name.startswith("x-1-") for name in ids[1:])
    assert {*re.findall(r"url\(#([^)]+)\)", part), *re.findall(r'href="#([^"]+)"', part)} <= {*ids}


def test_the_points_of_a_study_are_those_worked_by_hand(tmp_path: Path) -> None:
    view = View(compare([make_study(tmp_path / "made")])[0])
    forgotten, learnt, seconds = tradeoff_points(view)["lora"]
    assert (forgotten.mean, forgotten.half_width) == (pytest.approx(0.3), pytest.approx(HALF, rel=1e-6))
    assert (learnt.mean, seconds) == (pytest.approx(0.85), 3.0)
    first, second = measured_losses(view)["lora"]
    assert (first.strict, first.lenient, first.nats) == (
        pytest.approx((0.9, 0.6)),
        pytest.approx((0.95, 0.65)),
        pytest.approx((1.1, 1.4)),
    )
    assert second.strict == pytest.approx((0.8, 0.8))
    assert math.isnan(second.lenient[0])
    course = view.course("lora", "default", "a")
    assert [point.mean for point in course] == pytest.approx([0.1, 0.9, 0.6])
    assert course[2].half_width == pytest.approx(HALF, rel=1e-6)


def test_orders_are_averaged_after_their_seeds(tmp_path: Path) -> None:
    study = make_study(tmp_path / "made", ["lora"])
    make_run(study, "lora", 0, order_name="2")  # 0.5 in the end, where the other order's mean is 0.6
    (loss, _) = View(compare([study])[0]).losses("lora")
    assert loss.strict == pytest.approx((0.9, 0.55))


def test_each_figure_is_written_twice(tmp_path: Path) -> None:
    comparisons = compare([make_study(tmp_path / "made", seeds=1)])
    drawn = [name for name, _ in figures(View(comparisons[0]))]
    assert drawn == [
        "stability-plasticity",
        "score-lost",
        "likelihood-lost",
        "domains-over-time-default",
        "probes-over-time-default",
        "matrix-seqft-default",
        "matrix-lora-default",
    ]
    files = write_figures(comparisons, tmp_path / "figures")
    assert {path.name for path in files} == {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")}
    for path in files:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_figures_of_an_earlier_report_go_and_nothing_else_does(tmp_path: Path) -> None:
    study, folder = make_study(tmp_path / "made", ["seqft", "lora", "ewc"], seeds=1), tmp_path / "figures"
    write_figures(compare([study]), folder)
    (folder / "mine.png").write_text("of somebody's own")
    (folder / "matrix-ewc-default.svg").write_text("drawn over by hand")
    outside = tmp_path / "outside.png"
    outside.write_text("elsewhere")
    known = json.loads((folder / "written.json").read_text(encoding="utf-8"))
    known["../outside.png"] = digest_of(outside)
    (folder / "written.json").write_text(json.dumps(known), encoding="utf-8")
    shutil.rmtree(study / "ewc")
    files = write_figures(compare([study]), folder)
    kept = {"mine.png", "matrix-ewc-default.svg", "written.json"}
    assert {path.name for path in folder.iterdir()} == {path.name for path in files} | kept
    assert outside.is_file()
    (folder / "written.json").write_text("[", encoding="utf-8")
    assert write_figures([], folder) == []
    assert {path.name for path in files} <= {path.name for path in folder.iterdir()}
