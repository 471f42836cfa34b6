"""Progress display of a study: plain lines in a log, a live screen in a terminal."""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from workbench.formatting import duration, number, score_table

SECONDS_BETWEEN_LINES = 10.0
"""Between two lines of `PlainDisplay` on a task's steps."""


def quiet() -> None:
    """Silence the libraries' progress bars and notes, errors excepted, and turn garbage collection on again."""
    gc.enable()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import_module("transformers.utils.logging").disable_progress_bar()
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")


class Display:
    """Base class of the displays: receives the events of a study and shows none of them."""

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        """Show a line of text that stays on the screen."""

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str]) -> None:
        """Announce a run over `tasks`; `others` are tested and not trained."""

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        """Announce a task: its position, such as "task 2 of 8", and a description of what is trainable."""

    def steps(self, done: int, total: int, loss: float) -> None:
        """Report `done` of `total` optimizer steps of the task; `loss` in nats per token, penalties included."""

    def scoring(self, after: int) -> None:
        """Announce the scoring after `after` tasks, a row of the score matrix."""

    def scored(self, after: int, on: str, value: float) -> None:
        """Report a cell of the score matrix: the score on `on` after `after` tasks."""

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        """Report the end of a run with its row of `summary.csv`."""

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        """Announce what begins now and may take long; what was announced before has ended.

        Args:
            name: What begins, such as "loading the model mini".
            number: Which of several such things it is, from 1; 0: there is only one.
            total: How many there are.
            minor: A log leaves it out where its last line is recent.
        """


class PlainDisplay(Display):
    """One line per event, for pipes and log files."""

    def __init__(self) -> None:
        self._row: dict[str, float] = {}
        self._last_line = 0.0

    def note(self, text: str) -> None:
        print(text, flush=True)

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str]) -> None:
        self._tasks, self._others = list(tasks), list(others)
        self.note(f"\n== {title}")

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self._started = self._last_line = time.monotonic()
        self._name = name
        self.note(f"{place} {name}: training {trainable}")

    def steps(self, done: int, total: int, loss: float) -> None:
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and done < total:
            return
        self._last_line = now
        left = (now - self._started) / max(done, 1) * (total - done)
        self.note(f"  step {done}/{total}  loss {loss:.3f}  {duration(left)} left")

    def scored(self, after: int, on: str, value: float) -> None:
        self._row[on] = value
        if len(self._row) == len(self._tasks) + len(self._others):
            cells = "  ".join(f"{name} {number(self._row[name])}" for name in self._tasks + self._others)
            self.note(f"  scores after {after}: {cells}")
            self._row = {}

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        now = time.monotonic()
        if minor and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        self.note(f"{'  ' if minor else ''}{name}{f' ({number} of {total})' if total else ''} …")


class LiveDisplay(Display):
    """Live screen: the current task, its progress, and the score matrix of the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar: TaskID | None = None
        self._title = ""
        self._columns: list[str] = []
        self._matrix: dict[tuple[int, str], float] = {}
        self._live = Live(
            console=console,
            refresh_per_second=4,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # errors stay where a shell has sent them
            get_renderable=self._render,
        )

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str]) -> None:
        self._title, self._columns, self._matrix = title, [*tasks, *others], {}

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self._show(f"{place} {name}", None, f"training {trainable}")

    def steps(self, done: int, total: int, loss: float) -> None:
        if self._bar is not None:
            self._progress.update(self._bar, completed=done, total=total, detail=f"loss {loss:.3f}")

    def scoring(self, after: int) -> None:
        self._show(f"scoring after {after}", len(self._columns), "")

    def scored(self, after: int, on: str, value: float) -> None:
        self._matrix[after, on] = value
        if self._bar is not None:
            self._progress.update(self._bar, advance=1, detail=on)

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        self._console.print(self._table())
        self._columns = []

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        if minor and self._bar is not None:
            self._progress.update(self._bar, detail=name)
            return
        self._show(name, total or None, "")
        if self._bar is not None and total:
            self._progress.update(self._bar, completed=number - 1)

    def _show(self, description: str, total: int | None, detail: str) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._bar = self._progress.add_task(description, total=total, detail=detail)

    def _table(self) -> Table:
        table = score_table(self._title, self._columns, self._console.width)
        for after in sorted({row for row, _ in self._matrix}):
            cells = [self._matrix.get((after, name), math.nan) for name in self._columns]
            table.add_row(str(after), *(number(value, 2) for value in cells))
        return table

    def _render(self) -> Group:
        return Group(*([self._table()] if self._columns else []), self._progress)


def choose_display() -> Display:
    """Return a live screen in a terminal, and plain lines on a pipe or in a file."""
    console = Console()
    return LiveDisplay(console) if sys.stdout.isatty() and console.is_terminal else PlainDisplay()
