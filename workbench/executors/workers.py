"""Execute the runs of a study in worker processes on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from workbench.display import Display, quiet
from workbench.executors.base import Lines, Making, done, none_made, refuse
from workbench.runtime.distributed import exit_with_parent

UNGUARDED = 97
"""The status of a process that a worker began with, because it ran the reader's script from its beginning."""
GUARD = (
    'Put what runs the study under `if __name__ == "__main__":` in your script: each worker imports the script first, '
    "and would start the study again."
)
ATTEMPTS = 2
"""How often a run is begun, or gone on with, when its process is lost each time."""


def leave_a_second_start() -> None:
    """Ends this process at once where it is a worker that still imports the reader's script, which has no guard."""
    if getattr(current_process(), "_inheriting", False):  # as multiprocessing itself knows it
        os._exit(UNGUARDED)


def refuse_unguarded(code: int) -> None:
    """Ends the program where a worker came to the start of a study instead of its own work.

    Args:
        code: With which the worker's process ended.

    Raises:
        SystemExit: It did, with what the script has to have.
    """
    if code == UNGUARDED:
        raise SystemExit(f"error: {GUARD}")


@dataclass
class _Worker:
    """A process, and what it does."""

    process: SpawnProcess
    line: Connection
    job: Any = None
    busy: bool = False


class Pool:
    """Processes that wait for jobs.

    Args:
        study: Whose runs they make.
        count: How many there are.
        threads: Of torch in each of them.
        display: What a person sees.
    """

    def __init__(self, study: Making, count: int, threads: int, display: Display) -> None:
        self.study, self.threads, self.display = study, threads, display
        self.failures: list[str] = []
        self._workers: list[_Worker] = []
        self._attempts: dict[Any, int] = {}
        for place in range(count):
            self._workers.append(self._started(place))

    def work(self, jobs: Sequence[Any]) -> None:
        """Has jobs done; those that are given up go to the failures, a sentence each."""
        left = list(jobs)
        while left or any(worker.busy for worker in self._workers):
            for worker in self._workers:
                if left and not worker.busy:
                    worker.job, worker.busy = left.pop(0), True
                    self._attempts[worker.job] = self._attempts.get(worker.job, 0) + 1
                    with suppress(OSError):  # it is lost, which shows as it is waited for
                        worker.line.send(worker.job)
            ready = wait([worker.line for worker in self._workers if worker.busy])
            for place, worker in enumerate(self._workers):
                if worker.line in ready and self._lost(place):
                    left.insert(0, worker.job)

    def _lost(self, place: int) -> bool:
        """Takes what a worker says, or puts another in its place; whether its job has to be done again."""
        worker = self._workers[place]
        try:
            kind, content = worker.line.recv()
        except (EOFError, OSError):
            return self._replaced(place)
        refuse(kind, content)
        if kind == "line" or content:
            self.display.note(content)
        if kind == "done":
            worker.busy = False
            self.failures += [content] if content else []
        return False

    def _replaced(self, place: int) -> bool:
        worker = self._workers[place]
        worker.process.join()
        worker.line.close()
        code = worker.process.exitcode or 0
        refuse_unguarded(code)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        told = f"a worker {how}, which lack of memory may have caused"
        self._workers[place] = self._started(place)
        if self._attempts[worker.job] < ATTEMPTS:
            self.display.note(f"{worker.job.title}: {told}; another one goes on.")
            return True
        self.failures.append(
            f"{worker.job.title} failed: {told}, for the second time. The same command goes on with it."
        )
        self.display.note(self.failures[-1])
        return False

    def end(self) -> None:
        """Ends all workers at once: a run's files are whole at any moment."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()

    def _started(self, place: int) -> _Worker:
        context = get_context("spawn")
        try:
            ours, theirs = context.Pipe()
            given = (self.study, theirs, os.getpid(), self.threads, _device(place))
            process = context.Process(target=_serve, args=given)
            with _no_interrupts():
                process.start()
        except OSError as error:
            told = f"executor: a worker could not be started ({error}), which lack of memory may have caused"
            raise ChildProcessError(f"{told}. Give executor.init_args.count a lower number") from error
        theirs.close()
        return _Worker(process, ours)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Has a process that is started here never hear of Ctrl-C, which reaches all of a terminal's; we end it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _device(place: int) -> str | None:
    """Which of several GPUs is a worker's; None where there is no choice."""
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = list(map(str, range(torch.cuda.device_count()))) if stated is None else stated.split(",")
    return there[place % len(there)] if len(there) > 1 else None


def _serve(study: Making, line: Connection, parent: int, threads: int, device: str | None) -> None:
    """What a worker does: the jobs that it is sent, until it is ended."""
    exit_with_parent(parent)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # nothing has looked at them yet
    torch.set_num_threads(threads)
    quiet()
    with suppress(EOFError, ConnectionError):  # whoever asked is gone
        while True:
            line.send(done(study, line.recv(), lambda text: line.send(("line", text))))


class Workers:
    """Makes runs side by side, in processes of their own on this machine.

    A worker that is lost, such as one that the system has killed for its memory, costs no more than its last steps:
    another one goes on with its run, once. Where there are several GPUs, each worker has one of them.

    Args:
        count: How many there are.
        threads: Of torch in each of them. None: as many as this process would use, so that sums on a CPU are the same
            to the last bit: one for a small model, all cores for a larger one. Several workers that train a larger
            one on a CPU are faster where each has its share of the cores.

    Raises:
        ValueError: A number is below 1.
    """

    several_devices = False

    def __init__(self, count: int = 2, threads: int | None = None) -> None:
        if min(count, threads or 1) < 1 or threads == 0:
            raise ValueError(f"count is {count} and threads {threads}; each has to be at least 1.")
        self.count, self.threads = count, threads

    def make(self, study: Making, display: Display) -> list[str]:
        """Makes all runs of a study that are not finished, and tells the display.

        Where this process is stopped, its workers are too, at once.
        """
        if not (runs := study.waiting(display)):
            return []
        pool = Pool(study, min(self.count, len(runs)), self.threads or torch.get_num_threads(), display)
        try:
            # while they import what they need
            if why := study.score_untouched(Lines("untouched model", display.note)):
                return none_made(runs, why, display)
            study.release()
            pool.work(runs)
        finally:
            pool.end()
        return pool.failures
