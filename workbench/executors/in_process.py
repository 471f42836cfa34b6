"""Execute the runs of a study one after another in this process."""

from __future__ import annotations

import torch

from workbench.display import Display
from workbench.executors.base import RunnableStudy, Shares, announce
from workbench.runtime.distributed import is_first


class InProcess:
    """Executes one run after another in this process."""

    several_devices = True

    def make(self, study: RunnableStudy, display: Display) -> list[str]:
        """Execute all runs that are not finished; return a sentence for each run that failed."""
        runs = study.runs
        if is_first():
            announce(study, study.waiting(Display()), display)
        failures = [study.make(run, display, f"run {place} of {len(runs)}: ") for place, run in enumerate(runs, 1)]
        return [failure for failure in failures if failure]

    def shares(self, study: RunnableStudy) -> Shares:
        """Return one run at a time, with the threads of this process."""
        return Shares(1, torch.get_num_threads())
