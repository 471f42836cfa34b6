"""Progress displays: the lines of a log, and the score matrix of the live screen."""

from __future__ import annotations

import io
from itertools import count

import pytest
from rich.console import Console

from workbench import display
from workbench.display import LiveDisplay, PlainDisplay, choose_display


def one_run(shown: display.Display) -> None:
    """A run of one task and a probe: rows 0 and 1 of its matrix."""
    shown.run_begins("seqft, order default, seed 0", ["alpha"], ["probe"])
    for after, scores in enumerate(({"alpha": 0.0, "probe": 0.25}, {"alpha": 0.875, "probe": 0.5})):
        if after:
            shown.item_begins("alpha", "task 1 of 1", "8 of 8 parameters")
            shown.steps(1, 2, 1.5)
            shown.steps(2, 2, 0.75)
        shown.scoring(after)
        for name, value in scores.items():
            shown.scored(after, name, value)
    shown.run_ends({"OP": 0.875})


def test_a_log_has_a_line_for_each_task_and_each_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count(step=4)
    monkeypatch.setattr(display.time, "monotonic", lambda: next(seconds))
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
    monkeypatch.setattr(display.time, "monotonic", lambda: next(seconds))
    shown = PlainDisplay()
    shown.item_begins("alpha", "task 1 of 1", "8 of 8 parameters")
    shown.steps(2, 6, 1.0)
    assert capsys.readouterr().out.splitlines()[-1] == "  step 2/6  loss 1.000  24 s left"


def test_the_live_screen_leaves_the_score_matrix_of_each_run() -> None:
    file = io.StringIO()
    with LiveDisplay(Console(file=file, force_terminal=True, width=80, color_system=None)) as shown:
        one_run(shown)
        shown.note("a note [not markup]")
    text = file.getvalue()
    assert "seqft, order default," in text  # the title is as wide as the table
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["0", "0.00", "0.25"] in rows
    assert ["1", "0.88", "0.50"] in rows
    assert "a note [not markup]" in text


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(choose_display(), PlainDisplay)
