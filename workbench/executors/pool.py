"""Worker processes on this machine, each of which executes one run after another."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from workbench.display import Display, Relay, quiet
from workbench.executors.base import (
    ZERO_SHOT,
    RunnableStudy,
    RunSpec,
    announce,
    execute,
    fail_all,
    longest_first,
    refuse,
)
from workbench.executors.guard import refuse_unguarded
from workbench.runtime.distributed import exit_with_parent

ATTEMPTS = 2
"""How often a run is started or resumed if its worker is lost each time."""


def execute_in_workers(
    study: RunnableStudy, runs: Sequence[RunSpec], count: int, threads: int, display: Display
) -> list[str]:
    """Execute runs side by side, the longest first, after row 0 has been scored in this process.

    If this process is stopped, its workers end at once.

    Args:
        study: The study.
        runs: Its runs that are not finished.
        count: Number of workers.
        threads: Threads of torch in each worker.
        display: Where progress is shown.

    Returns:
        A sentence for each run that failed.
    """
    announce(study, runs, display)
    pool = Pool(study, min(count, len(runs)), threads, display)
    try:
        # The workers import their libraries meanwhile.
        untouched = display.beside(ZERO_SHOT)
        if reason := study.score_untouched(untouched):
            return fail_all(runs, reason, display)
        untouched.run_stops()
        runs = longest_first(study, runs)
        study.release()
        pool.work(runs)
    finally:
        pool.end()
    return pool.failures


@dataclass
class _Worker:
    """A worker process, the connection to it, its current run, and where that is shown."""

    process: SpawnProcess
    line: Connection
    job: RunSpec | None = None
    view: Display | None = None
    busy: bool = False


class Pool:
    """Worker processes that wait for runs. A worker that is lost is replaced, and its run is resumed.

    Args:
        study: The study whose runs are executed.
        count: Number of workers.
        threads: Threads of torch in each worker.
        display: Where progress is shown.

    Attributes:
        failures: A sentence for each run that failed.
    """

    def __init__(self, study: RunnableStudy, count: int, threads: int, display: Display) -> None:
        self.study, self.threads, self.display = study, threads, display
        self.failures: list[str] = []
        self._workers: list[_Worker] = []
        self._attempts: dict[RunSpec, int] = {}
        for place in range(count):
            self._workers.append(self._start(place))

    def work(self, jobs: Sequence[RunSpec]) -> None:
        """Execute runs; each worker takes the next one as soon as it is free."""
        waiting = list(jobs)
        while waiting or any(worker.busy for worker in self._workers):
            for worker in self._workers:
                if waiting and not worker.busy:
                    job = waiting.pop(0)
                    worker.job, worker.busy, worker.view = job, True, self.display.beside(job.title)
                    self._attempts[job] = self._attempts.get(job, 0) + 1
                    with suppress(OSError):  # a lost worker shows when its answer is read
                        worker.line.send(job)
            ready = wait([worker.line for worker in self._workers if worker.busy])
            for place, worker in enumerate(self._workers):
                if worker.line in ready and (again := self._receive(place)):
                    waiting.insert(0, again)

    def _receive(self, place: int) -> RunSpec | None:
        """Read a worker's message, or replace the worker if it is lost; return the run to be resumed, if any."""
        worker = self._workers[place]
        try:
            kind, content = worker.line.recv()
        except (EOFError, OSError):
            return self._replace(place)
        refuse(kind, content)
        if kind == "event" and worker.view is not None:
            event, arguments = content
            getattr(worker.view, event)(*arguments)
        if kind == "done":
            worker.busy = False
            self.failures += [content] if content else []
        return None

    def _replace(self, place: int) -> RunSpec | None:
        """Start another worker in the place of a lost one; return the run to be resumed unless it has failed."""
        worker = self._workers[place]
        worker.process.join()
        worker.line.close()
        code = worker.process.exitcode or 0
        refuse_unguarded(code)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        message = f"a worker {how}, perhaps for lack of memory"
        self._workers[place] = self._start(place)
        job, view = worker.job, worker.view
        if job is None or view is None:
            return None
        if self._attempts[job] < ATTEMPTS:
            view.run_stops()
            view.note(f"{message}; another worker resumes the run.")
            return job
        self.failures.append(f"{job.title} failed: {message}, for the second time. The same command resumes it.")
        view.run_fails(self.failures[-1])
        return None

    def end(self) -> None:
        """Kill all workers; the files of a run are whole at any moment."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.line.close()

    def _start(self, place: int) -> _Worker:
        context = get_context("spawn")
        try:
            ours, theirs = context.Pipe()
            arguments = (self.study, theirs, os.getpid(), self.threads, _device(place))
            process = context.Process(target=_serve, args=arguments)
            with _interrupts_blocked():
                process.start()
        except OSError as error:
            message = f"executor: a worker could not be started ({error}), perhaps for lack of memory"
            raise ChildProcessError(f"{message}. Give executor.init_args.count a lower number") from error
        theirs.close()
        return _Worker(process, ours)


def _device(place: int) -> str | None:
    """Return the GPU of a worker (a value of CUDA_VISIBLE_DEVICES); None where there are not several."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = list(map(str, range(torch.cuda.device_count()))) if visible is None else visible.split(",")
    return devices[place % len(devices)] if len(devices) > 1 else None


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start a process that ignores Ctrl-C, which a terminal sends to all its processes; the parent ends it instead."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(study: RunnableStudy, line: Connection, parent: int, threads: int, device: str | None) -> None:
    """Execute the runs that a worker is sent, until it is killed."""
    exit_with_parent(parent)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before CUDA is first used
    torch.set_num_threads(threads)
    quiet()
    display = Relay(lambda event, arguments: line.send(("event", (event, arguments))))
    with suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            line.send(execute(study, line.recv(), display))
