"""How far a study is, and how long it still takes, from the tasks and steps of its runs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.formatting import duration

TRUSTED = 0.1
"""Part of the work from which on the speed is the measured one; before, the plan counts too."""


@dataclass
class _Run:
    """One run: its share of the study's work, and how much of it is done.

    Args:
        weight: Planned seconds, or a number that is the same for all runs.
        began: When its first task began in this process; None: it has not.
        seen: When it was last heard of.
        found: Part of it that was done before.
        done: Part of it that is done.
        task: Number of its task, and number of all.
    """

    weight: float
    began: float | None = None
    seen: float = 0.0
    found: float = 0.0
    done: float = 0.0
    task: tuple[int, int] = (1, 1)


class StudyProgress:
    """Work done and left in a study.

    Runs count as their planned seconds where those are known, and within a run all tasks alike. A run that resumes
    says at once which tasks it had finished: they count as done, and not as work of this process.

    Args:
        planned: Seconds of each run by its title; NaN: not known.
        kept: Number of runs that were finished before.
    """

    def __init__(self, planned: Mapping[str, float], kept: int = 0) -> None:
        known = [value for value in planned.values() if math.isfinite(value) and value > 0]
        usual = sum(known) / len(known) if known else 1.0
        self._runs = {
            title: _Run(value if math.isfinite(value) and value > 0 else usual) for title, value in planned.items()
        }
        self._is_planned = len(known) == len(planned)
        self._kept, self._ended = kept, set[str]()
        self._started = time.monotonic()

    @property
    def count(self) -> int:
        """Number of all runs, with those that were finished before."""
        return len(self._runs) + self._kept

    @property
    def ended(self) -> int:
        """Number of runs that are finished, or have failed."""
        return len(self._ended) + self._kept

    def item_begins(self, title: str, place: str) -> None:
        """Note that a run begins a task, whose position is such as "task 2 of 8"."""
        numbers = [int(text) for text in re.findall(r"\d+", place)]
        if title not in self._runs or len(numbers) != 2:
            return
        run = self._runs[title]
        run.task = numbers[0], max(numbers[1], 1)
        run.done = (run.task[0] - 1) / run.task[1]
        run.seen = time.monotonic()
        if run.began is None:
            run.began, run.found = run.seen, run.done

    def steps(self, title: str, done: int, total: int) -> None:
        """Note the optimizer steps of a run's task."""
        if title in self._runs:
            run = self._runs[title]
            run.done, run.seen = (run.task[0] - 1 + done / max(total, 1)) / run.task[1], time.monotonic()

    def run_ends(self, title: str) -> None:
        """Note that a run is finished, or has failed."""
        if title in self._runs:
            self._runs[title].done = 1.0
            self._ended.add(title)

    @property
    def fraction(self) -> float:
        """Part of the work that is done, of the runs that were not finished before."""
        whole = sum(run.weight for run in self._runs.values())
        return sum(run.weight * run.done for run in self._runs.values()) / whole if whole else 1.0

    @property
    def seconds_left(self) -> float:
        """Seconds until the study's end at the speed so far, or until the end of the slowest run if that is later.

        At first the plan counts too, as the first steps of a task are not yet followed by its scoring. NaN: not known.
        """
        now = time.monotonic()
        gained = sum(run.weight * (run.done - run.found) for run in self._runs.values())
        if gained <= 0:
            return math.nan
        open_runs = [run for title, run in self._runs.items() if run.began is not None and title not in self._ended]
        left = sum(run.weight * (1 - run.done) for run in self._runs.values())
        measured, planned = (now - self._started) / gained * left, left / max(1, len(open_runs))
        alone = [self._seconds_alone(run, now) for run in open_runs if run.done > run.found]
        return max([self._between(planned, measured, gained / (gained + left)), *alone])

    def _seconds_alone(self, run: _Run, now: float) -> float:
        """Return the seconds until a run's end, at its own speed."""
        gained, left = run.done - run.found, 1 - run.done
        measured = (run.seen - (run.began or 0.0)) / gained * left
        return self._between(run.weight * left, measured, gained / (gained + left)) - (now - run.seen)

    def _between(self, planned: float, measured: float, part: float) -> float:
        """Return the planned seconds at the beginning, and the measured ones once enough of the work is done."""
        trust = min(1.0, part / TRUSTED) if self._is_planned else 1.0
        return (1 - trust) * planned + trust * measured

    def __str__(self) -> str:
        left = self.seconds_left
        rest = f", about {duration(left)} left" if math.isfinite(left) and self.ended < self.count else ""
        return f"{self.ended} of {self.count} runs finished{rest}"
