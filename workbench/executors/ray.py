"""Execute the runs of a study as tasks of a Ray cluster."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

import torch

from workbench.display import Display, quiet
from workbench.errors import ConfigError
from workbench.executors.base import Making, done, none_made, refuse


class Ray:
    """Makes runs as tasks of a Ray cluster, whose machines see this folder, the models and the results at one path.

    The workbench and what it imports are installed on each of them. A run whose worker or machine is lost is gone on
    with elsewhere, from its last saved state.

    Args:
        address: The cluster's, as for `ray.init`; None: the one that the environment names, or else a new one on this
            machine.
        cpus: What a run asks for.
        gpus: What a run asks for; a part of one lets runs share it.
        resources: What else a run asks for, by the names that the cluster gives them.
        retries: How often a run is gone on with after its worker was lost.
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
        self.asked: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": resources or {}}
        try:
            self.ray = import_module("ray")
        except ImportError as error:
            raise ValueError("Ray is not installed. Get it by: pip install 'continual-workbench[ray]'") from error

    def make(self, study: Making, display: Display) -> list[str]:
        """Makes all runs of a study that are not finished, and tells the display.

        Where this process is stopped, their tasks are too.
        """
        if not (runs := study.waiting(display)):
            return []
        threads = self.threads or torch.get_num_threads()
        study.release()
        began = not self.ray.is_initialized()
        if began:
            self._begin()
        self._tell_what_is_missing(display)
        path = os.pathsep.join(sys.path)
        kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM") if name in os.environ}
        task = self.ray.remote(_far).options(
            max_retries=0, runtime_env={"env_vars": {"PYTHONPATH": path, **kept}}, **self.asked
        )
        given = (self.ray.put(study), os.getcwd(), threads)
        self.tasks: dict[Any, Any] = {}
        try:
            if why := self._work(task, given, [None], display):
                return none_made(runs, why[0], display)
            return self._work(task, given, runs, display)
        finally:
            for reference in self.tasks:
                self.ray.cancel(reference, force=True)
            if began:
                self.ray.shutdown()

    def _begin(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        before = signal.getsignal(signal.SIGTERM)
        try:
            self.ray.init(address=self.address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            told = f"executor: no Ray cluster answers at {self.address!r} ({error}). Give its address, or leave it out."
            refuse("error", ConfigError([told]))
        signal.signal(signal.SIGTERM, before)  # which Ray has taken

    def _tell_what_is_missing(self, display: Display) -> None:
        asked = {"CPU": self.asked["num_cpus"], "GPU": self.asked["num_gpus"], **self.asked["resources"]}
        there = self.ray.cluster_resources()
        missing = [f"{count:g} {name}" for name, count in asked.items() if count > there.get(name, 0)]
        if missing:
            display.note(
                f"executor: the cluster does not have the {', '.join(missing)} of a run now; they wait for it."
            )

    def _work(self, task: Any, given: tuple[Any, ...], jobs: list[Any], display: Display) -> list[str]:
        self.tasks = {task.remote(*given, job): (job, 0) for job in jobs}
        failures = []
        while self.tasks:
            ready, _ = self.ray.wait(list(self.tasks), num_returns=1)
            job, lost = self.tasks.pop(ready[0])
            title = getattr(job, "title", "untouched model")
            try:
                kind, content, lines = self.ray.get(ready[0])
            except self.ray.exceptions.RayError as error:
                told = f"{title}: its worker was lost ({str(error).splitlines()[0]})"
                if lost == self.retries:
                    failures.append(f"{told}, {lost + 1} times. The same command goes on with it.")
                    display.note(failures[-1])
                    continue
                display.note(f"{told}; another one goes on.")
                self.tasks[task.remote(*given, job)] = (job, lost + 1)
                continue
            refuse(kind, content)
            failures += [content] if content else []
            for line in lines[-1:]:
                display.note(line)
        return failures


def _far(study: Making, folder: str, threads: int, job: Any) -> tuple[str, Any, list[str]]:
    """What a task does: a job, in the folder of the one who asks for it; also what was told of it."""
    os.chdir(folder)
    torch.set_num_threads(threads)
    quiet()
    lines: list[str] = []
    kind, content = done(study, job, lines.append)
    return kind, content, lines
