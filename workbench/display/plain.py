"""Progress as lines of text, for pipes and log files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.display.base import Display, Lines
from workbench.display.progress import StudyProgress
from workbench.formatting import duration, number

SECONDS_BETWEEN_LINES = 10.0
"""Between two lines on a task's steps, where runs are executed one after another."""
SECONDS_BESIDE = 30.0
"""Between two lines on a task's steps, where runs share the time; between two lines on the whole study."""


class PlainDisplay(Display):
    """One line per event, for pipes and log files."""

    def __init__(self) -> None:
        self._row: dict[str, float] = {}
        self._last_line = self._last_on_study = 0.0
        self._title = ""
        self.study: StudyProgress | None = None

    def note(self, text: str) -> None:
        print(text, flush=True)

    def study_begins(self, planned: Mapping[str, float], kept: int) -> None:
        self.study, self._last_on_study = StudyProgress(planned, kept), time.monotonic()

    def beside(self, title: str) -> Display:
        return RunLines(title, self)

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str], place: str = "") -> None:
        self._title, self._tasks, self._others, self._row = title, list(tasks), list(others), {}
        self.note(f"\n== {place}{title}")

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self._started = self._last_line = time.monotonic()
        self.note(f"{place} {name}: training {trainable}")
        if self.study is not None:
            self.study.item_begins(self._title, place)

    def steps(self, done: int, total: int, loss: float) -> None:
        now = time.monotonic()
        if self.study is not None:
            self.study.steps(self._title, done, total)
        if now - self._last_line < SECONDS_BETWEEN_LINES and done < total:
            return
        self._last_line = now
        left = (now - self._started) / max(done, 1) * (total - done)
        self.note(f"  step {done}/{total}  loss {loss:.3f}  {duration(left)} left")
        self.tell_study()

    def scored(self, after: int, on: str, value: float) -> None:
        self._row[on] = value
        if len(self._row) == len(self._tasks) + len(self._others):
            cells = "  ".join(f"{name} {number(self._row[name])}" for name in self._tasks + self._others)
            self.note(f"  scores after {after}: {cells}")
            self._row = {}

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        if self.study is not None:
            self.study.run_ends(self._title)
        self.tell_study()

    def run_fails(self, reason: str) -> None:
        self.note(reason)
        self.run_ends({})

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        now = time.monotonic()
        if minor and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        self.note(f"{'  ' if minor else ''}{name}{f' ({number} of {total})' if total else ''} …")

    def tell_study(self) -> None:
        """Print a line on the whole study, if it has several runs and the last line is long enough ago."""
        if self.study is None or self.study.count < 2 or self.study.ended == self.study.count:
            return
        if time.monotonic() - self._last_on_study >= SECONDS_BESIDE:
            self._last_on_study = time.monotonic()
            self.note(str(self.study))


class RunLines(Lines):
    """Lines of one of several runs that are executed at the same time, and of the study in between.

    Args:
        title: Title of the run.
        display: Prints the lines.
    """

    def __init__(self, title: str, display: PlainDisplay) -> None:
        super().__init__(title, display.note)
        self.display = display
        self._item, self._last_line = "", 0.0

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        super().item_begins(name, place, trainable)
        self._item, self._last_line = f"{place} {name}", time.monotonic()
        if self.display.study is not None:
            self.display.study.item_begins(self.title, place)
        self.display.tell_study()

    def steps(self, done: int, total: int, loss: float) -> None:
        if self.display.study is not None:
            self.display.study.steps(self.title, done, total)
        if time.monotonic() - self._last_line >= SECONDS_BESIDE:
            self._last_line = time.monotonic()
            self.note(f"{self._item}, step {done}/{total}  loss {loss:.3f}")
        self.display.tell_study()

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        if time.monotonic() - self._last_line >= SECONDS_BESIDE:
            self._last_line = time.monotonic()
            self.note(f"{name}{f' ({number} of {total})' if total else ''}")

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        super().run_ends(summary)
        self._end()

    def run_fails(self, reason: str) -> None:
        super().run_fails(reason)
        self._end()

    def _end(self) -> None:
        if self.display.study is not None:
            self.display.study.run_ends(self.title)
        self.display.tell_study()
