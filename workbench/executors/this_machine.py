"""Execute the runs of a study with all that this machine has: several at a time, or one in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from workbench.display import Display
from workbench.executors.base import RunnableStudy, RunSpec, Shares, fail_all
from workbench.executors.guard import GUARD, can_start_workers
from workbench.executors.in_process import InProcess
from workbench.executors.pool import execute_in_workers
from workbench.runtime.distributed import world
from workbench.runtime.machine import THREADS, usable_cores, usable_memory, using_threads

LIBRARIES_BYTES = 600_000_000
"""Memory of a worker process before it has loaded a model."""
MEMORY_MARGIN = 1.5
"""How much more memory than planned a run may take: the C library holds on to freed memory."""
WORTH_SECONDS = 60.0
"""Planned seconds of the runs beside the longest one from which on workers are started."""


class ThisMachine:
    """Executes as many runs at a time as there are cores, and as fit into memory; the default.

    A small model (below 20 million parameters) has one thread a run. Several runs of a larger model on a CPU divide
    the cores among them: all runs of a study have the same number of threads, which is decided when its first run
    begins and recorded in `environment.json`, so that a study that is resumed gives the same bits. `OMP_NUM_THREADS`
    determines the threads of each run instead.

    One run, a GPU, and `trainer.devices` above 1 are executed in this process, one run after another; so are runs
    that are planned to take less than a minute beside the longest one, for which workers would start in vain, and
    those of a script that has no `if __name__ == "__main__":`.
    """

    several_devices = True

    def make(self, study: RunnableStudy, display: Display) -> list[str]:
        """Execute all runs that are not finished; return a sentence for each run that failed."""
        shares = self.shares(study)
        if shares.workers > 1:
            if can_start_workers():
                runs = study.waiting(display)
                return execute_in_workers(study, runs, shares.workers, shares.threads, display)
            display.note(f"executor: the runs are executed one after another. {GUARD}")
        runs = study.waiting(Display())
        if shares.threads != torch.get_num_threads() and (reason := study.score_untouched(display)):
            return fail_all(runs, reason, display)
        with using_threads(shares.threads):
            return InProcess().make(study, display)

    def shares(self, study: RunnableStudy) -> Shares:
        """Return how many runs are executed at a time; one, in this process, where workers gain nothing."""
        if world() > 1 or not study.on_cpu or not (runs := study.waiting(Display())):
            return InProcess().shares(study)
        shares = _shares(study, runs)
        if shares.divided or worth_workers([study.planned_seconds(run) for run in runs]):
            return shares
        return replace(shares, workers=1)


def choose_shares(cores: int, threads: int, *, divided: bool, runs: int, left: int, fitting: int) -> Shares:
    """Decide how many runs are executed at a time, and with how many threads.

    The threads do not depend on how many runs are left.

    >>> choose_shares(8, 1, divided=False, runs=20, left=20, fitting=100)
    Shares(workers=8, threads=1, divided=False)
    >>> choose_shares(8, 8, divided=True, runs=3, left=3, fitting=100)
    Shares(workers=3, threads=2, divided=True)

    Args:
        cores: Cores that may be used.
        threads: Threads of a run that is executed alone.
        divided: Whether runs of a study divide these threads among them; otherwise each run has all of them.
        runs: Number of runs of the study.
        left: Number of those that are not finished.
        fitting: Number of runs whose memory fits at a time.
    """
    if divided:
        threads = min(threads, cores)
        threads = max(1, threads // max(1, min(threads, runs, fitting)))
    return Shares(max(1, min(cores // threads, left, fitting)), threads, divided)


def worth_workers(seconds: Sequence[float]) -> bool:
    """Return True if runs take long enough, the longest one left out, for workers to be started."""
    return sum(seconds) - max(seconds, default=0.0) >= WORTH_SECONDS


def fitting_runs(free: int | None, planned: int, runs: int) -> int:
    """Return how many runs fit into memory at a time; at least 1.

    Args:
        free: Free bytes; None: not known, so all fit.
        planned: Bytes that a run is expected to need beside the libraries.
        runs: Number of runs.
    """
    return runs if free is None else max(1, int(free / (LIBRARIES_BYTES + MEMORY_MARGIN * planned)))


def _shares(study: RunnableStudy, runs: Sequence[RunSpec]) -> Shares:
    threads, begun = torch.get_num_threads(), None if THREADS in os.environ else study.threads
    fitting = fitting_runs(usable_memory(), max(map(study.planned_memory, runs)), len(study.runs))
    return choose_shares(
        usable_cores(),
        begun or threads,
        divided=threads > 1 and begun is None and THREADS not in os.environ,
        runs=len(study.runs),
        left=len(runs),
        fitting=fitting,
    )
