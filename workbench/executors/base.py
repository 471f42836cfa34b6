"""What executors share: run specs, protocols, progress as lines of text, and errors sent between processes."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from workbench.config import StudyConfig
from workbench.display import Display
from workbench.formatting import duration, number


@dataclass(frozen=True)
class RunSpec:
    """One run of a study: a strategy, an order of the tasks and a seed. It holds no model and can be pickled.

    Args:
        strategy: Name of the strategy in the config.
        order: Name of the order of the tasks.
        seed: Seed of the run.
        folder: Folder of the results.
        config: Config of this run alone; executed by itself, it gives the same run.
    """

    strategy: str
    order: str
    seed: int
    folder: Path
    config: StudyConfig = field(repr=False, compare=False)

    @property
    def title(self) -> str:
        """Name of the run in messages."""
        return f"{self.strategy}, order {self.order}, seed {self.seed}"


class RunnableStudy(Protocol):
    """A study as executors see it. Pickled, it is its config without a model."""

    @property
    def runs(self) -> Sequence[RunSpec]:
        """All runs, in the order of execution."""

    def waiting(self, display: Display) -> list[RunSpec]:
        """Return the runs that are not finished, and name the finished ones in the display."""

    def score_untouched(self, display: Display) -> str | None:
        """Score row 0 (the zero-shot model) of all waiting runs; return the reason if it cannot be scored."""

    def make(self, run: RunSpec, display: Display, place: str = "") -> str | None:
        """Execute or resume a run; return the reason if it failed."""

    def release(self) -> None:
        """Free the memory of the model."""


class Executor(Protocol):
    """Executes the runs of a study."""

    several_devices: bool
    """Whether several processes may execute one run together (`trainer.devices`)."""

    def make(self, study: RunnableStudy, display: Display) -> list[str]:
        """Execute all runs that are not finished.

        Args:
            study: The study.
            display: Where progress is shown.

        Returns:
            A sentence for each run that failed.
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
        seconds = duration(summary["train_seconds"] + summary["eval_seconds"])
        self.note(f"finished after {seconds}, OP {number(summary['OP'])}")


def execute(study: RunnableStudy, job: RunSpec | None, tell: Callable[[str], object]) -> tuple[str, Any]:
    """Execute a run in a worker, or score row 0.

    Args:
        study: The study.
        job: The run; None: row 0.
        tell: Receives lines of progress.

    Returns:
        "done" and the reason if the run failed, or "error" and the exception that ends the study.
    """
    try:
        if job is None:
            return "done", study.score_untouched(Lines("zero-shot model", tell))
        return "done", study.make(job, Lines(job.title, tell))
    except Exception as error:
        try:
            return "error", pickle.loads(pickle.dumps(error))  # noqa: S301  # some exceptions cannot be pickled
        except Exception:
            return "error", RuntimeError("".join(traceback.format_exception(error)))


def refuse(kind: str, content: Any) -> None:
    """Raise the error with which `execute` ended in a worker, if it did.

    Args:
        kind: First part of its result.
        content: Second part of its result.

    Raises:
        Exception: `kind` is "error"; it is `content`.
    """
    if kind == "error":
        raise content


def fail_all(runs: Sequence[RunSpec], reason: str, display: Display) -> list[str]:
    """Return and show a sentence for each run of a study whose row 0 cannot be scored."""
    failures = [f"{run.title} failed: {reason}" for run in runs]
    for failure in failures:
        display.note(failure)
    return failures
