"""Where the runs of a study are made: one after the other in this process, in workers beside it, or on a Ray cluster.

It changes no number: a run is made whole by one process, with the same threads, from its seed alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import torch

from workbench.components import ConfigError
from workbench.display import Display, quiet
from workbench.pool import Lines, Making, Pool, done, refuse


class Executor(Protocol):
    """Makes the runs of a study."""

    several_devices: bool
    """Whether a run may be made by several processes in turn (`trainer.devices`)."""

    def make(self, study: Making, display: Display) -> list[str]:
        """Makes all runs that are not finished.

        Args:
            study: Whose runs they are.
            display: What a person sees.

        Returns:
            A sentence for each run that was given up.
        """


class InProcess:
    """Makes one run after the other, in this process."""

    several_devices = True

    def make(self, study: Making, display: Display) -> list[str]:
        """Makes all runs of a study that are not finished, and tells the display."""
        runs = study.runs
        told = [study.make(run, display, f"run {place} of {len(runs)}: ") for place, run in enumerate(runs, 1)]
        return [failure for failure in told if failure]


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
                return _none_made(runs, why, display)
            study.release()
            pool.work(runs)
        finally:
            pool.end()
        return pool.failures


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
                return _none_made(runs, why[0], display)
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


def _none_made(runs: Sequence[Any], why: str, display: Display) -> list[str]:
    """A sentence for each run of a study whose row 0 cannot be scored."""
    failures = [f"{run.title} failed: {why}" for run in runs]
    for failure in failures:
        display.note(failure)
    return failures


def _far(study: Making, folder: str, threads: int, job: Any) -> tuple[str, Any, list[str]]:
    """What a task does: a job, in the folder of the one who asks for it; also what was told of it."""
    os.chdir(folder)
    torch.set_num_threads(threads)
    quiet()
    lines: list[str] = []
    kind, content = done(study, job, lines.append)
    return kind, content, lines
