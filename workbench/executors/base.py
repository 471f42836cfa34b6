"""What executors share: the protocols, progress as lines of text, and errors that travel between processes."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from workbench.display import Display
from workbench.formatting import duration, number


class Making(Protocol):
    """A study, as those know it who make its runs. Pickled it is its config, without a model."""

    @property
    def runs(self) -> Sequence[Any]:
        """All of them, in the order in which they are made."""

    def waiting(self, display: Display) -> list[Any]:
        """The runs that are not finished; tells of those that are."""

    def make(self, run: Any, display: Display, place: str = "") -> str | None:
        """Makes a run, or goes on with it; says why it was given up, if it was."""

    def score_untouched(self, display: Display) -> str | None:
        """Scores row 0 of all runs, as far as it is not there; says why it cannot be scored, if it cannot."""

    def release(self) -> None:
        """Lets go of the model."""


class Executor(Protocol):
    """Makes the runs of a study."""

    several_devices: bool
    """Whether a run may be made by several processes in turn (`trainer.devices`)."""

    def make(self, study: Making, display: Display) -> list[str]:
        """Makes all runs that are not finished.

        Args:
            study: Whose runs they are.
            display: What a person sees.

        Returns:
            A sentence for each run that was given up.
        """


class Lines(Display):
    """What is told of a run that is made elsewhere: a line at a time, each with the run's name.

    Args:
        title: Of the run.
        tell: Takes a line.
    """

    def __init__(self, title: str, tell: Callable[[str], object]) -> None:
        self.title, self.tell = title, tell

    def note(self, text: str) -> None:
        self.tell(f"{self.title}: {text.strip()}")

    def item_begins(self, name: str, place: str, trainable: str) -> None:
        self.note(f"{place} {name}")

    def run_ends(self, summary: Mapping[str, Any]) -> None:
        seconds = duration(summary["train_seconds"] + summary["eval_seconds"])
        self.note(f"finished after {seconds}, OP {number(summary['OP'])}")


def done(study: Making, job: Any, tell: Callable[[str], object]) -> tuple[str, Any]:
    """Makes a run, or scores row 0 where the job is None.

    Returns:
        "done" and why the run was given up, or "error" and what stops the study.
    """
    try:
        if job is None:
            return "done", study.score_untouched(Lines("untouched model", tell))
        return "done", study.make(job, Lines(job.title, tell))
    except Exception as error:
        try:
            return "error", pickle.loads(pickle.dumps(error))  # noqa: S301  # whether it can travel
        except Exception:
            return "error", RuntimeError("".join(traceback.format_exception(error)))


def refuse(kind: str, content: Any) -> None:
    """Raises here what has stopped a study elsewhere, as `done` told it."""
    if kind == "error":
        raise content


def none_made(runs: Sequence[Any], why: str, display: Display) -> list[str]:
    """A sentence for each run of a study whose row 0 cannot be scored."""
    failures = [f"{run.title} failed: {why}" for run in runs]
    for failure in failures:
        display.note(failure)
    return failures
