"""Execute the runs of a study as tasks of a Ray cluster."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from workbench.display import Display, Lines, quiet
from workbench.errors import ConfigError
from workbench.executors.base import RunnableStudy, RunSpec, Shares, execute, fail_all, refuse, title_of

KEPT_VARIABLES = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
"""Variables of the environment that the tasks inherit."""


class Ray:
    """Executes runs as tasks of a Ray cluster whose machines see this folder, the models and the results at one path.

    The workbench and its dependencies are installed on each machine. If the worker or the machine of a run is lost, the
    run is resumed elsewhere from its last saved state.

    Args:
        address: Address of the cluster, as for `ray.init`; None: the one that the environment names, or else a new
            cluster on this machine.
        cpus: CPUs that a run asks for.
        gpus: GPUs that a run asks for; with a fraction, runs share one.
        resources: Other resources that a run asks for, by their names in the cluster.
        retries: How often a run is resumed after its worker was lost.
        threads: As for `Workers`.

    Raises:
        ValueError: Ray is not installed.
    """

    several_devices = False

    def __init__(
        self,
        address: str | None = None,
        cpus: float = 1,
        gpus: float = 0,
        resources: dict[str, float] | None = None,
        retries: int = 3,
        threads: int | None = None,
    ) -> None:
        self.address, self.retries, self.threads = address, retries, threads
        self.requested: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": resources or {}}
        try:
            self.ray = import_module("ray")
        except ImportError as error:
            raise ValueError("Ray is not installed. Get it by: pip install 'continual-workbench[ray]'") from error

    def shares(self, study: RunnableStudy) -> Shares:
        """Return one run at a time: how many more the cluster executes is not known beforehand."""
        return Shares(1, torch.get_num_threads())

    def make(self, study: RunnableStudy, display: Display) -> list[str]:
        """Execute all runs that are not finished; return a sentence for each run that failed.

        If this process is stopped, the tasks are cancelled.
        """
        if not (runs := study.waiting(display)):
            return []
        threads = self.threads or torch.get_num_threads()
        study.release()
        started_here = not self.ray.is_initialized()
        if started_here:
            self._connect()
        self._note_missing_resources(display)
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        variables = {"PYTHONPATH": os.pathsep.join(sys.path), **kept}
        task = self.ray.remote(_execute_remotely).options(
            max_retries=0, runtime_env={"env_vars": variables}, **self.requested
        )
        arguments = (self.ray.put(study), os.getcwd(), threads)
        self.tasks: dict[Any, tuple[RunSpec | None, int]] = {}
        try:
            if reasons := self._work(task, arguments, [None], display):
                return fail_all(runs, reasons[0], display)
            return self._work(task, arguments, runs, display)
        finally:
            for reference in self.tasks:
                self.ray.cancel(reference, force=True)
            if started_here:
                self.ray.shutdown()

    def _connect(self) -> None:
        """Connect to the cluster, or start one.

        Raises:
            ConfigError: No cluster answers at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
        before = signal.getsignal(signal.SIGTERM)
        try:
            self.ray.init(address=self.address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            advice = "Give its address, or leave it out."
            message = f"executor: no Ray cluster answers at {self.address!r} ({error}). {advice}"
            refuse("error", ConfigError([message]))
        signal.signal(signal.SIGTERM, before)  # Ray has replaced the handler

    def _note_missing_resources(self, display: Display) -> None:
        cpus, gpus, others = (self.requested[name] for name in ("num_cpus", "num_gpus", "resources"))
        requested = {"CPU": cpus, "GPU": gpus, **others}
        available = self.ray.cluster_resources()
        missing = [f"{count:g} {name}" for name, count in requested.items() if count > available.get(name, 0)]
        if missing:
            display.note(f"executor: a run needs {', '.join(missing)}; the cluster has less now, and the runs wait.")

    def _work(
        self, task: Any, arguments: tuple[Any, ...], jobs: Sequence[RunSpec | None], display: Display
    ) -> list[str]:
        """Execute runs, or score row 0 for the job None; return the reasons of those that failed."""
        self.tasks = {task.remote(*arguments, job): (job, 0) for job in jobs}
        failures = []
        while self.tasks:
            ready, _ = self.ray.wait(list(self.tasks), num_returns=1)
            job, lost = self.tasks.pop(ready[0])
            title = title_of(job)
            try:
                kind, content, lines = self.ray.get(ready[0])
            except self.ray.exceptions.RayError as error:
                message = f"{title}: its worker was lost ({str(error).splitlines()[0]})"
                if lost == self.retries:
                    failures.append(f"{message}, {lost + 1} times. The same command resumes it.")
                    display.note(failures[-1])
                    continue
                display.note(f"{message}; another worker resumes the run.")
                self.tasks[task.remote(*arguments, job)] = (job, lost + 1)
                continue
            refuse(kind, content)
            failures += [content] if content else []
            for line in lines[-1:]:
                display.note(line)
        return failures


def _execute_remotely(
    study: RunnableStudy, folder: str, threads: int, job: RunSpec | None
) -> tuple[str, Any, list[str]]:
    """Execute a job in the folder of the process that asked for it; return its result and its lines of progress."""
    os.chdir(folder)
    torch.set_num_threads(threads)
    quiet()
    lines: list[str] = []
    kind, content = execute(study, job, Lines(title_of(job), lines.append))
    return kind, content, lines
