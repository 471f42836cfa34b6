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

import torch

from workbench.display import Display, quiet
from workbench.executors.base import Lines, RunnableStudy, RunSpec, execute, fail_all, refuse
from workbench.runtime.distributed import exit_with_parent

UNGUARDED = 97
"""Exit status of a worker that began the user's script from its start, for want of a guard."""
GUARD = (
    'Put what runs the study under `if __name__ == "__main__":` in your script: each worker imports the script first, '
    "and would start the study again."
)
ATTEMPTS = 2
"""How often a run is started or resumed if its worker is lost each time."""


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
        pool = Pool(study, min(self.count, len(runs)), self.threads or torch.get_num_threads(), display)
        try:
            # The workers import their libraries meanwhile.
            if reason := study.score_untouched(Lines("zero-shot model", display.note)):
                return fail_all(runs, reason, display)
            study.release()
            pool.work(runs)
        finally:
            pool.end()
        return pool.failures


@dataclass
class _Worker:
    """A worker process, the connection to it, and its current run."""

    process: SpawnProcess
    line: Connection
    job: RunSpec | None = None
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
                    worker.job, worker.busy = job, True
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
        if kind == "line" or content:
            self.display.note(content)
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
        job = worker.job
        if job is None:
            return None
        if self._attempts[job] < ATTEMPTS:
            self.display.note(f"{job.title}: {message}; another worker resumes the run.")
            return job
        self.failures.append(f"{job.title} failed: {message}, for the second time. The same command resumes it.")
        self.display.note(self.failures[-1])
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
    with suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            line.send(execute(study, line.recv(), lambda text: line.send(("line", text))))


def leave_a_second_start() -> None:
    """End this process at once if it is a worker that still imports the user's script, which has no guard."""
    if getattr(current_process(), "_inheriting", False):  # set by multiprocessing while it prepares a child
        os._exit(UNGUARDED)


def refuse_unguarded(code: int) -> None:
    """End the program if a worker came to the start of a study instead of executing runs.

    Args:
        code: Exit status of the worker.

    Raises:
        SystemExit: The status is `UNGUARDED`; the message says what the script needs.
    """
    if code == UNGUARDED:
        raise SystemExit(f"error: {GUARD}")
