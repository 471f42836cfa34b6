"""Progress as a live screen in a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from workbench.display.base import Display, ending
from workbench.display.progress import StudyProgress
from workbench.formatting import number, score_table


class LiveDisplay(Display):
    """Live screen.

    Where runs are executed one after another: the current task, its progress, and the score matrix of the run. Where
    they are executed at the same time: a line for each of them. Below, for a study of several runs, the progress of the
    study and the time that it still takes.
    """

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
        self.study: StudyProgress | None = None
        self.runs = Progress(
            TextColumn("[bold]{task.description}"),
            TextColumn("{task.fields[item]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
        )
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

    def study_begins(self, planned: Mapping[str, float], kept: int) -> None:
        self.study = StudyProgress(planned, kept)

    def beside(self, title: str) -> Display:
        return RunLine(title, self)

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str], place: str = "") -> None:
        self._heading, self._title = f"{place}{title}", title
        self._columns, self._matrix = [*tasks, *others], {}

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self._show(f"{place} {name}", None, f"training {trainable}")
        if self.study is not None:
            self.study.item_begins(self._title, place)

    def steps(self, done: int, total: int, loss: float) -> None:
        if self.study is not None:
            self.study.steps(self._title, done, total)
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
        self._end()

    def run_fails(self, reason: str) -> None:
        self.note(reason)
        self._end()

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        if minor and self._bar is not None:
            self._progress.update(self._bar, detail=name)
            return
        self._show(name, total or None, "")
        if self._bar is not None and total:
            self._progress.update(self._bar, completed=number - 1)

    def _end(self) -> None:
        self._columns = []
        if self.study is not None:
            self.study.run_ends(self._title)

    def _show(self, description: str, total: int | None, detail: str) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._bar = self._progress.add_task(description, total=total, detail=detail)

    def _table(self) -> Table:
        table = score_table(self._heading, self._columns, self._console.width)
        for after in sorted({row for row, _ in self._matrix}):
            cells = [self._matrix.get((after, name), math.nan) for name in self._columns]
            table.add_row(str(after), *(number(value, 2) for value in cells))
        return table

    def _render(self) -> Group:
        parts: list[RenderableType] = [self._table()] if self._columns else []
        parts.append(self.runs if self.runs.tasks else self._progress)
        if self.study is not None and self.study.count > 1:
            parts.append(_study_line(self.study))
        return Group(*parts)


def _study_line(study: StudyProgress) -> Table:
    line = Table.grid(padding=(0, 1))
    line.add_row("[bold]study", ProgressBar(total=1.0, completed=study.fraction, width=40), str(study))
    return line


class RunLine(Display):
    """The line of one of several runs that are executed at the same time, on a live screen.

    Args:
        title: Title of the run.
        display: The screen.
    """

    def __init__(self, title: str, display: LiveDisplay) -> None:
        self.title, self.display = title, display
        self._bar: TaskID | None = None
        self._tested: int | None = None

    def note(self, text: str) -> None:
        self.display.note(f"{self.title}: {text.strip()}")

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str], place: str = "") -> None:
        self._tested = len(tasks) + len(others)
        self._show("begins")

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        if self.display.study is not None:
            self.display.study.item_begins(self.title, place)
        self._update(item=f"{place} {name}", completed=0, detail="")

    def steps(self, done: int, total: int, loss: float) -> None:
        if self.display.study is not None:
            self.display.study.steps(self.title, done, total)
        self._update(completed=done, total=total, detail=f"loss {loss:.3f}")

    def scoring(self, after: int) -> None:
        if self._bar is None:  # row 0 of a study, which is no run
            self._show("")
        self._update(completed=0, total=self._tested, detail="scoring")

    def scored(self, after: int, on: str, value: float) -> None:
        self._update(advance=1, detail="scoring")

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        self._update(detail=name)

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        self.note(ending(summary))
        self._end()

    def run_fails(self, reason: str) -> None:
        self.display.note(reason)
        self._end()

    def run_stops(self) -> None:
        if self._bar is not None:
            self.display.runs.remove_task(self._bar)
            self._bar = None

    def _end(self) -> None:
        self.run_stops()
        if self.display.study is not None:
            self.display.study.run_ends(self.title)

    def _update(self, **changes: Any) -> None:
        if self._bar is not None:
            self.display.runs.update(self._bar, **changes)

    def _show(self, detail: str) -> None:
        self.run_stops()
        self._bar = self.display.runs.add_task(self.title, total=None, item="", detail=detail)
