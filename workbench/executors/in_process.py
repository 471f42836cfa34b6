"""Execute the runs of a study one after another in this process."""

from __future__ import annotations

from workbench.display import Display
from workbench.executors.base import Making


class InProcess:
    """Makes one run after the other, in this process."""

    several_devices = True

    def make(self, study: Making, display: Display) -> list[str]:
        """Makes all runs of a study that are not finished, and tells the display."""
        runs = study.runs
        told = [study.make(run, display, f"run {place} of {len(runs)}: ") for place, run in enumerate(runs, 1)]
        return [failure for failure in told if failure]
