"""What executors share: run specs, protocols, the order of runs, and errors sent between processes."""

from __future__ import annotations

import math
import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from workbench.config import StudyConfig
from workbench.display import Display


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

    @property
    def on_cpu(self) -> bool:
        """Whether the runs are executed on a CPU."""

    @property
    def threads(self) -> int | None:
        """Threads of torch with which the study's runs were begun; None: none has begun."""

    def planned_seconds(self, run: RunSpec) -> float:
        """Return the seconds that a run is expected to take; NaN: not known."""

    def planned_memory(self, run: RunSpec) -> int:
        """Return the bytes that a run is expected to need beside the libraries."""


@dataclass(frozen=True)
class Shares:
    """How many runs are executed at a time, and with how many threads each.

    Args:
        workers: Number of runs at a time.
        threads: Threads of torch in each.
        divided: Whether the cores were divided among the runs.
    """

    workers: int
    threads: int
    divided: bool = False


ZERO_SHOT = "zero-shot model"
"""Title of row 0 in messages."""


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

    def shares(self, study: RunnableStudy) -> Shares:
        """Return how many of the study's unfinished runs are executed at a time, as far as it is known beforehand."""


def title_of(job: RunSpec | None) -> str:
    """Return the title of a run, or of row 0 for None."""
    return ZERO_SHOT if job is None else job.title


def announce(study: RunnableStudy, runs: Sequence[RunSpec], display: Display) -> None:
    """Announce the runs that are executed, with the seconds that they are expected to take."""
    display.study_begins({run.title: study.planned_seconds(run) for run in runs}, len(study.runs) - len(runs))


def longest_first(study: RunnableStudy, runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Sort runs by their planned seconds, so that none begins late that takes long; unknown ones come last."""
    seconds = {run: study.planned_seconds(run) for run in runs}
    return sorted(runs, key=lambda run: -seconds[run] if math.isfinite(seconds[run]) else 0.0)


def execute(study: RunnableStudy, job: RunSpec | None, display: Display) -> tuple[str, Any]:
    """Execute a run in another process than the study's, or score row 0.

    Args:
        study: The study.
        job: The run; None: row 0.
        display: Receives its progress.

    Returns:
        "done" and the reason if the run failed, or "error" and the exception that ends the study.
    """
    try:
        return "done", study.score_untouched(display) if job is None else study.make(job, display)
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
    for run, failure in zip(runs, failures, strict=True):
        display.beside(run.title).run_fails(failure)
    return failures
