"""Execute the runs of a study in a given number of worker processes on this machine."""

from __future__ import annotations

import torch

from workbench.display import Display
from workbench.executors.base import RunnableStudy, Shares
from workbench.executors.pool import execute_in_workers


class Workers:
    """Executes runs side by side in processes of their own on this machine.

    A worker that is lost, for example killed by the system for its memory, costs no more than its last steps: another
    worker resumes its run, once. With several GPUs, each worker has one of them.

    Args:
        count: Number of workers.
        threads: Threads of torch in each worker. None: as many as this process would use, so that sums on a CPU are the
            same to the last bit: one for a small model, all cores for a larger one. Several workers that train a larger
            model on a CPU are faster if each has its share of the cores.

    Raises:
        ValueError: `count` or `threads` is below 1.
    """

    several_devices = False

    def __init__(self, count: int = 2, threads: int | None = None) -> None:
        if min(count, threads or 1) < 1 or threads == 0:
            raise ValueError(f"count is {count} and threads {threads}; each has to be at least 1.")
        self.count, self.threads = count, threads

    def make(self, study: RunnableStudy, display: Display) -> list[str]:
        """Execute all runs that are not finished; return a sentence for each run that failed.

        If this process is stopped, its workers end at once.
        """
        if not (runs := study.waiting(display)):
            return []
        return execute_in_workers(study, runs, self.count, self.shares(study).threads, display)

    def shares(self, study: RunnableStudy) -> Shares:
        """Return the number of workers, and the threads of each."""
        return Shares(self.count, self.threads or torch.get_num_threads())
