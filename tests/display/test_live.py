"""The live screen: score matrices of runs one after another, a line for each of those that share the time."""

from __future__ import annotations

import io
import sys

import pytest
from helpers.progress import one_run
from rich.console import Console

from workbench.display import LiveDisplay


def screen(width: int = 80) -> tuple[LiveDisplay, io.StringIO]:
    """A live display, and what it writes."""
    file = io.StringIO()
    return LiveDisplay(Console(file=file, force_terminal=True, width=width, color_system=None)), file


def shown_now(display: LiveDisplay, width: int = 120) -> list[str]:
    """The lines that stand on the screen now."""
    file = io.StringIO()
    Console(file=file, width=width).print(display._render())
    return [" ".join(line.split()) for line in file.getvalue().splitlines() if line.strip()]


def test_the_live_screen_leaves_the_score_matrix_of_each_run() -> None:
    display, file = screen()
    with display as shown:
        one_run(shown)
        shown.note("a note [not markup]")
    text = file.getvalue()
    assert "seqft, order default," in text  # the title is as wide as the table
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["0", "0.00", "0.25"] in rows
    assert ["1", "0.88", "0.50"] in rows
    assert "a note [not markup]" in text


def test_runs_that_share_the_time_have_a_line_each() -> None:
    display, file = screen()
    display.study_begins({"one": 10.0, "two": 30.0}, kept=0)
    one, two = display.beside("one"), display.beside("two")
    for view in (one, two):
        view.run_begins("", ["alpha", "beta"], ["probe"])
    one.item_begins("alpha", "task 1 of 2", "8 of 8 parameters")
    one.steps(3, 4, 1.25)
    two.item_begins("beta", "task 2 of 2", "8 of 8 parameters")
    two.scoring(2)
    two.scored(2, "alpha", 0.5)
    first, second, study = shown_now(display)
    assert first.startswith("one task 1 of 2 alpha")
    assert first.endswith("3/4 loss 1.250")
    assert second.startswith("two task 2 of 2 beta")
    assert second.endswith("1/3 scoring")
    assert study.startswith("study")
    assert "0 of 2 runs finished" in study
    assert display.study is not None
    assert display.study.fraction == (10 * 3 / 8 + 30 / 2) / 40
    two.run_ends({"train_seconds": 3.0, "eval_seconds": 1.0, "OP": 0.5})
    assert "two: finished after 4 s, OP 0.500" in file.getvalue()
    assert [line.split()[0] for line in shown_now(display)] == ["one", "study"]
    one.run_stops()  # its worker was lost
    assert not [line for line in shown_now(display) if line.startswith("one")]
    one.run_begins("", ["alpha", "beta"], ["probe"])
    one.run_fails("one failed: no memory")
    assert "one failed: no memory" in file.getvalue()
    assert "2 of 2 runs finished" in shown_now(display)[-1]


def test_row_0_has_a_line_while_it_is_scored() -> None:
    display, _ = screen()
    view = display.beside("zero-shot model")
    view.scoring(0)
    view.scored(0, "alpha", 0.5)
    assert shown_now(display)[0].startswith("zero-shot model")
    view.run_stops()
    assert not [line for line in shown_now(display) if "zero-shot" in line]


def test_the_status_line_disappears_and_errors_stay_on_their_stream(capsys: pytest.CaptureFixture[str]) -> None:
    display, file = screen()
    with display as shown:
        shown.stage("checking lora", 2, 4)
        shown.stage("scoring alpha", 1, 2, minor=True)
        display._live.refresh()
        print("wrong", file=sys.stderr)
    assert capsys.readouterr().err == "wrong\n"
    text = file.getvalue()
    assert "checking lora" in text
    assert "1/4" in text
    assert "scoring alpha" in text
    assert text.rstrip().endswith("\x1b[2K")  # the last thing is that the line is erased
