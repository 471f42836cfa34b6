"""Events of a study that displays show, and how they reach a display from another process."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any

from workbench.formatting import duration, number


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

    def study_begins(self, planned: Mapping[str, float], kept: int) -> None:
        """Announce the runs that are executed.

        Args:
            planned: Seconds of each run by its title; NaN: not known.
            kept: Number of runs that were finished before.
        """

    def beside(self, title: str) -> Display:
        """Return the display of one of several runs that are executed at the same time."""
        return Lines(title, self.note)

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str], place: str = "") -> None:
        """Announce a run over `tasks`; `others` are tested and not trained; `place` is text before the title."""

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

    def run_fails(self, reason: str) -> None:
        """Report that a run ended by an error, in a sentence with its title."""
        self.note(reason)

    def run_stops(self) -> None:
        """Report that nobody executes the run for now, though it has neither ended nor failed."""

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        """Announce what begins now and may take long; what was announced before has ended.

        Args:
            name: What begins, such as "loading the model mini".
            number: Which of several such things it is, from 1; 0: there is only one.
            total: How many there are.
            minor: A log leaves it out where its last line is recent.
        """


class Lines(Display):
    """Progress of a run that is executed elsewhere, as lines of text that begin with the run's title.

    Args:
        title: Title of the run.
        tell: Receives each line.
    """

    def __init__(self, title: str, tell: Callable[[str], object]) -> None:
        self.title, self.tell = title, tell

    def note(self, text: str) -> None:
        self.tell(f"{self.title}: {text.strip()}")

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self.note(f"{place} {name}")

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        self.note(ending(summary))

    def run_fails(self, reason: str) -> None:
        self.tell(reason)


class Relay(Display):
    """Sends the events of a run to another process, whose display receives them (`Display.beside`).

    Args:
        send: Receives the name of each event, and its arguments.
    """

    def __init__(self, send: Callable[[str, tuple[Any, ...]], object]) -> None:
        self.send = send

    def note(self, text: str) -> None:
        self.send("note", (text,))

    def run_begins(self, title: str, tasks: Sequence[str], others: Sequence[str], place: str = "") -> None:
        self.send("run_begins", (title, tasks, others, place))

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self.send("item_begins", (name, place, trainable))

    def steps(self, done: int, total: int, loss: float) -> None:
        self.send("steps", (done, total, loss))

    def scoring(self, after: int) -> None:
        self.send("scoring", (after,))

    def scored(self, after: int, on: str, value: float) -> None:
        self.send("scored", (after, on, value))

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        self.send("run_ends", (dict(summary),))

    def run_fails(self, reason: str) -> None:
        self.send("run_fails", (reason,))

    def stage(self, name: str, number: int = 0, total: int = 0, *, minor: bool = False) -> None:
        self.send("stage", (name, number, total))


def ending(summary: Mapping[str, Any]) -> str:
    """Describe the end of a run from its row of `summary.csv`."""
    seconds = duration(summary["train_seconds"] + summary["eval_seconds"])
    return f"finished after {seconds}, OP {number(summary['OP'])}"
