"""Progress as lines of a log: of one run after another, and of runs that share the time."""

from __future__ import annotations

from itertools import count

import pytest
from helpers.progress import one_run

from workbench.display import PlainDisplay, choose_display, plain, progress


def test_a_log_has_a_line_for_each_task_and_each_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count(step=4)
    monkeypatch.setattr(plain.time, "monotonic", lambda: next(seconds))
    one_run(PlainDisplay())
    assert capsys.readouterr().out.splitlines() == [
        "",
        "== seqft, order default, seed 0",
        "  scores after 0: alpha 0.000  probe 0.250",
        "task 1 of 1 alpha: training 8 of 8 parameters",
        "  step 2/2  loss 0.750  0 s left",  # step 1 came 4 s after the beginning: too soon for a line
        "  scores after 1: alpha 0.875  probe 0.500",
    ]


def test_a_log_says_how_long_a_task_still_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of six steps in 12 s: four more take 24 s."""
    seconds = iter([0.0, 12.0])
    monkeypatch.setattr(plain.time, "monotonic", lambda: next(seconds))
    shown = PlainDisplay()
    shown.item_begins("alpha", "task 1 of 1", "8 of 8 parameters")
    shown.steps(2, 6, 1.0)
    assert capsys.readouterr().out.splitlines()[-1] == "  step 2/6  loss 1.000  24 s left"


def test_a_log_of_runs_that_share_the_time_names_them_and_tells_of_the_study(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of 100 planned seconds, one kept. After 40 s each has made half of its first of two tasks."""
    now = [0.0]
    for module in (plain, progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown = PlainDisplay()
    shown.study_begins({"one": 100.0, "two": 100.0}, kept=1)
    views = [shown.beside("one"), shown.beside("two")]
    for view in views:
        view.run_begins("its own title is in the view", ["alpha", "beta"], [])
        view.item_begins("alpha", "task 1 of 2", "8 of 8 parameters")
    now[0] = 10.0
    for view in views:
        view.steps(1, 10, 1.0)
    now[0] = 40.0
    for view in views:
        view.steps(5, 10, 0.5)
    views[0].run_ends({"train_seconds": 60.0, "eval_seconds": 5.0, "OP": 0.5})
    now[0] = 80.0
    views[1].run_fails("two failed: no memory")
    assert capsys.readouterr().out.splitlines() == [
        "one: task 1 of 2 alpha",
        "two: task 1 of 2 alpha",
        "one: task 1 of 2 alpha, step 5/10  loss 0.500",
        "1 of 3 runs finished, about 3 min 47 s left",  # 0.25 + 0.05 of 2 runs in 40 s, so 1.7 in 227 s
        "two: task 1 of 2 alpha, step 5/10  loss 0.500",
        "one: finished after 1 min 5 s, OP 0.500",
        "two failed: no memory",
    ]


def test_a_study_of_one_run_has_no_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count(step=40)
    monkeypatch.setattr(plain.time, "monotonic", lambda: next(seconds))
    shown = PlainDisplay()
    shown.study_begins({"seqft, order default, seed 0": 10.0}, kept=0)
    one_run(shown)
    assert "runs finished" not in capsys.readouterr().out


def test_runs_one_after_another_tell_of_the_study_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    for module in (plain, progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown = PlainDisplay()
    shown.study_begins({"seqft, order default, seed 0": 10.0, "lora": 30.0}, kept=0)
    now[0] = 50.0
    one_run(shown)
    lines = capsys.readouterr().out.splitlines()
    assert lines[5] == "0 of 2 runs finished, about 2 min 30 s left"  # 10 of 40 planned seconds took 50
    assert sum("runs finished" in line for line in lines) == 1  # the next one half a minute later


def test_a_log_names_each_stage_and_leaves_out_minor_ones_that_follow_soon(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count(step=4)
    monkeypatch.setattr(plain.time, "monotonic", lambda: next(seconds))
    shown = PlainDisplay()
    shown.stage("loading the model mini")
    shown.stage("checking lora", 2, 4)
    for number in (1, 2, 3, 4):  # 4, 8, 12 and 4 s after the last line
        shown.stage("scoring alpha", number, 4, minor=True)
    assert capsys.readouterr().out.splitlines() == [
        "loading the model mini …",
        "checking lora (2 of 4) …",
        "  scoring alpha (3 of 4) …",
    ]


def test_what_runs_that_share_the_time_are_at_is_named_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count(start=20.0, step=10.0)
    monkeypatch.setattr(plain.time, "monotonic", lambda: next(seconds))
    line = PlainDisplay().beside("zero-shot model")
    for number in (1, 2, 3):  # at 20 s, too soon; at 30 s; at 50 s, too soon after 40 s
        line.stage("scoring alpha", number, 3)
    assert capsys.readouterr().out.splitlines() == ["zero-shot model: scoring alpha (2 of 3)"]


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(choose_display(), PlainDisplay)
