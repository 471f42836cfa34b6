"""Work done and left in a study."""

from __future__ import annotations

import math

import pytest

from workbench.display import progress
from workbench.display.progress import StudyProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in an only element that can be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_runs_count_as_their_planned_seconds_and_unknown_ones_as_the_mean(clock: list[float]) -> None:
    study = StudyProgress({"short": 10.0, "long": 30.0, "unknown": math.nan})
    study.run_ends("long")
    assert study.fraction == 30 / 60  # 20 for the unknown one
    assert str(StudyProgress({"one": math.nan})) == "0 of 1 runs finished"


def test_time_left_is_that_of_the_work_at_the_speed_so_far(clock: list[float]) -> None:
    """Two runs at a time: in 20 s one ended and another did half; the third is left: 1.5 of 3 at 1.5 in 20 s."""
    study = StudyProgress({"one": 5.0, "two": 5.0, "three": 5.0}, kept=2)
    for title in ("one", "two"):
        study.item_begins(title, "task 1 of 2")
    clock[0] = 20.0
    study.run_ends("one")
    study.item_begins("two", "task 2 of 2")
    assert study.seconds_left == 20.0
    assert str(study) == "3 of 5 runs finished, about 20 s left"


def test_a_study_takes_as_long_as_its_slowest_run(clock: list[float]) -> None:
    """One run is left, a quarter of which took 20 s: the other, which is done, does not make it faster."""
    study = StudyProgress({"one": 5.0, "two": 5.0})
    for title in ("one", "two"):
        study.item_begins(title, "task 1 of 2")
    clock[0] = 20.0
    study.steps("two", 5, 10)
    study.run_ends("one")
    assert study.seconds_left == 60.0


def test_the_plan_counts_until_a_tenth_of_the_work_is_done(clock: list[float]) -> None:
    """One twentieth of 100 planned seconds took 20 s: half of the measured 380 s left, half of the planned 95."""
    study, unplanned = StudyProgress({"one": 100.0}), StudyProgress({"one": math.nan})
    for progress_of in (study, unplanned):
        progress_of.item_begins("one", "task 1 of 2")
    clock[0] = 20.0
    for progress_of in (study, unplanned):
        progress_of.steps("one", 1, 10)
    assert study.seconds_left == pytest.approx((380 + 95) / 2)
    assert unplanned.seconds_left == pytest.approx(380)
    clock[0] = 30.0
    study.steps("one", 2, 10)
    assert study.seconds_left == pytest.approx(270)


def test_tasks_that_were_finished_before_say_nothing_of_the_speed(clock: list[float]) -> None:
    """A run resumes with the last of four tasks, half of which takes 10 s."""
    study = StudyProgress({"one": 5.0, "two": 5.0})
    study.item_begins("one", "task 4 of 4")
    assert math.isnan(study.seconds_left)
    clock[0] = 10.0
    study.steps("one", 1, 2)
    assert study.fraction == (3.5 / 4) / 2
    assert study.seconds_left == 10 / (1 / 8) * (1 + 1 / 8)


def test_other_titles_and_places_are_passed_over(clock: list[float]) -> None:
    study = StudyProgress({"one": 5.0})
    study.item_begins("one", "model 1")
    study.item_begins("zero-shot model", "task 1 of 2")
    study.steps("zero-shot model", 1, 2)
    study.run_ends("zero-shot model")
    assert (study.ended, study.count, study.fraction) == (0, 1, 0.0)
