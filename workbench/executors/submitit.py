"""Execute the runs of a study as jobs that submitit submits, to SLURM or on this machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from workbench.display import Display, Relay, quiet
from workbench.errors import ConfigError
from workbench.executors.base import (
    RunnableStudy,
    RunSpec,
    Shares,
    announce,
    execute,
    fail_all,
    longest_first,
    refuse,
    title_of,
)
from workbench.runtime.files import only_process

SECONDS_BETWEEN_CHECKS = 1.0
SECONDS_BETWEEN_LOCKS = 5.0
SHOWN = ("note", "run_ends", "run_fails")
"""Events of a job that are shown when it has ended."""


class Submitit:
    """Executes each run as a job that submitit submits.

    The machines see this folder, the models and the results at one path, and have the workbench installed. A job that
    is preempted or runs out of time is queued again by SLURM, one that is lost is submitted again; the run is resumed
    from its last saved state either way. The process that submits waits for the jobs and writes the report. If it is
    stopped, the jobs are cancelled; if it is killed, they go on, and the same command waits for those that still run.

    Args:
        folder: Logs and pickled jobs; None: `slurm` in the study's folder.
        cluster: "slurm"; "local": processes of this machine; "debug": this process; None: SLURM if it is found.
        timeout_min: Minutes after which a job is stopped, and queued again.
        parameters: Other parameters of submitit, as they are: `gpus_per_node`, `cpus_per_task`, `mem_gb`,
            `slurm_partition`, `slurm_additional_parameters` and so on.
        retries: How often a run is resumed after its job was lost, and how often after it ran out of time.
        threads: Threads of torch in each job; None: `cpus_per_task`, or as many as this process would use. A small
            model has one, unless `OMP_NUM_THREADS` is set.

    Raises:
        ValueError: submitit is not installed.
    """

    several_devices = False

    def __init__(
        self,
        folder: str | None = None,
        cluster: Literal["slurm", "local", "debug"] | None = None,
        timeout_min: int = 60,
        parameters: dict[str, Any] | None = None,
        retries: int = 3,
        threads: int | None = None,
    ) -> None:
        self.folder, self.cluster, self.timeout_min = folder, cluster, timeout_min
        self.parameters, self.retries, self.threads = dict(parameters or {}), retries, threads
        try:
            self.submitit, self.errors = import_module("submitit"), import_module("submitit.core.utils")
        except ImportError as error:
            raise ValueError(
                "submitit is not installed. Get it by: pip install 'continual-workbench[slurm]'"
            ) from error

    def shares(self, study: RunnableStudy) -> Shares:
        """Return one run at a time: how many more the cluster executes is not known beforehand."""
        return Shares(1, torch.get_num_threads())

    def make(self, study: RunnableStudy, display: Display) -> list[str]:
        """Execute all runs that are not finished; return a sentence for each run that failed.

        If this process is stopped, the jobs are cancelled.
        """
        if not (runs := study.waiting(display)):
            return []
        folder = Path(self.folder) if self.folder else runs[0].folder.parents[2] / "slurm"
        self.executor = self._connect(folder)
        display.note(f"executor: the jobs run on {self.executor.cluster}; their logs are in {folder}.")
        announce(study, runs, display)
        threads = self.threads or self.parameters.get("cpus_per_task") or torch.get_num_threads()
        parent = os.getpid() if self.executor.cluster == "local" else None
        job = _Job(study, os.getcwd(), str(folder.absolute()), threads, parent)
        runs = longest_first(study, runs)
        study.release()
        self.jobs: dict[Any, tuple[RunSpec | None, int]] = {}
        try:
            with _path_passed_on():
                if reasons := self._work(job, [None], display):
                    return fail_all(runs, reasons[0], display)
                return self._work(job, runs, display)
        finally:
            for submitted in self.jobs:
                submitted.cancel(check=False)

    def _connect(self, folder: Path) -> Any:
        """Build submitit's executor.

        Raises:
            ConfigError: SLURM is not there, or a parameter is none that submitit knows.
        """
        timeouts = {f"{name}_max_num_timeout": self.retries for name in ("slurm", "local")}
        try:
            executor = self.submitit.AutoExecutor(folder, cluster=self.cluster, **timeouts)
            executor.update_parameters(timeout_min=self.timeout_min, **self.parameters)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ConfigError([f"executor: submitit refuses: {reason}. Fix executor.init_args."]) from error
        return executor

    def _work(self, job: _Job, runs: Sequence[RunSpec | None], display: Display) -> list[str]:
        """Execute runs, or score row 0 for None; return the reasons of those that failed."""
        self.jobs = {self.executor.submit(job, run): (run, 0) for run in runs}
        failures = []
        while self.jobs:
            if not (ended := [submitted for submitted in self.jobs if submitted.done()]):
                time.sleep(SECONDS_BETWEEN_CHECKS)
            for submitted in ended:
                run, lost = self.jobs.pop(submitted)
                view = display.beside(title_of(run))
                try:
                    kind, content, events = submitted.result()
                except self.errors.FailedJobError as error:
                    raise _failed_start(title_of(run), submitted, error) from error
                except self.errors.UncompletedJobError:
                    message = f"job {submitted.job_id} was lost ({submitted.paths.stderr} may say why)"
                    if lost == self.retries:
                        failures.append(
                            f"{title_of(run)} failed: {message}, {lost + 1} times. The same command resumes it."
                        )
                        view.run_fails(failures[-1])
                        continue
                    view.note(f"{message}; another job resumes the run.")
                    self.jobs[self.executor.submit(job, run)] = (run, lost + 1)
                    continue
                refuse(kind, content)
                failures += [content] if content else []
                for event, arguments in events:
                    getattr(view, event)(*arguments)
        return failures


class _Job:
    """A job as submitit pickles it: it executes a run in the folder of the process that submitted it.

    Args:
        study: The study.
        folder: Working folder.
        logs: Folder of the logs, where running jobs are locked.
        threads: Threads of torch.
        parent: Process on this machine with which the job ends; None: it goes on.
    """

    def __init__(self, study: RunnableStudy, folder: str, logs: str, threads: int, parent: int | None) -> None:
        self.study, self.folder, self.logs = study, folder, logs
        self.threads, self.parent = threads, parent

    def __call__(self, run: RunSpec | None) -> tuple[str, Any, list[tuple[str, tuple[Any, ...]]]]:
        """Execute a run, or score row 0 for None; return its result, and the events that are shown."""
        if self.parent is not None:
            _end_with(self.parent)
        os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        quiet()
        events: list[tuple[str, tuple[Any, ...]]] = []

        def keep(event: str, arguments: tuple[Any, ...]) -> None:
            print(event, *arguments, flush=True)  # into the job's log
            if event in SHOWN:
                events.append((event, arguments))

        name = "zero-shot" if run is None else "-".join(run.folder.parts[-3:])
        with ExitStack() as lock:
            _wait_for_others(lock, Path(self.logs) / "locks" / name)
            kind, content = execute(self.study, run, Relay(keep))
        return kind, content, events

    def checkpoint(self, run: RunSpec | None) -> Any:
        """Return the same job for submitit, which calls this before a job is preempted or out of time."""
        return import_module("submitit.helpers").DelayedSubmission(self, run)


def _failed_start(title: str, submitted: Any, error: Exception) -> Exception:
    """Return the error of a job that could not execute its run, for example because a package is missing there."""
    lines = [
        line for line in str(error).splitlines() if line.strip() and not line.startswith(("-", "You can", "or at"))
    ]
    reason = lines[-1].strip() if lines else type(error).__name__
    return ChildProcessError(f"executor: a job could not begin {title}: {reason}. Read {submitted.paths.stderr}")


def _wait_for_others(lock: ExitStack, folder: Path) -> None:
    """Wait until no other job executes the same run, as one may whose submitting process was killed."""
    while True:
        try:
            lock.enter_context(only_process(folder))
            return
        except BlockingIOError:
            time.sleep(SECONDS_BETWEEN_LOCKS)


@contextmanager
def _path_passed_on() -> Iterator[None]:
    """Let jobs find the modules that this process finds."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def _end_with(parent: int) -> None:
    """End this process as soon as another one on this machine is gone."""

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(SECONDS_BETWEEN_CHECKS)

    threading.Thread(target=watch, daemon=True).start()
