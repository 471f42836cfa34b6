"""Figures of a study: their numbers are those worked by hand, and their files are kept up to date."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from helpers.run_folders import write_example, write_examples

from workbench.report import compare
from workbench.report.figures import figures, measured_losses, tradeoff_points, write_figures
from workbench.report.scores import View
from workbench.runtime.files import digest_of

HALF = 4.302653 * 0.1 / math.sqrt(3)  # of three values 0.1 apart: t of two degrees of freedom, s = 0.1


def test_the_points_of_a_study_are_those_worked_by_hand(tmp_path: Path) -> None:
    view = View(compare([write_examples(tmp_path / "made")])[0])
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
    course = view.over_tasks("lora", "default", "a")
    assert [point.mean for point in course] == pytest.approx([0.1, 0.9, 0.6])
    assert course[2].half_width == pytest.approx(HALF, rel=1e-6)


def test_orders_are_averaged_after_their_seeds(tmp_path: Path) -> None:
    study = write_examples(tmp_path / "made", ["lora"])
    write_example(study, "lora", 0, order_name="2")  # 0.5 in the end, where the other order's mean is 0.6
    (loss, _) = View(compare([study])[0]).losses("lora")
    assert loss.strict == pytest.approx((0.9, 0.55))


def test_each_figure_is_written_twice(tmp_path: Path) -> None:
    comparisons = compare([write_examples(tmp_path / "made", seeds=1)])
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
    study, folder = write_examples(tmp_path / "made", ["seqft", "lora", "ewc"], seeds=1), tmp_path / "figures"
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
