"""Processes that do not belong to a study, and what is told of those that make its runs."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress

from bad_inputs import Place, Row
from helpers.studies import trainer

from workbench.display import Display
from workbench.errors import ConfigError
from workbench.executors import Ray
from workbench.executors.base import refuse
from workbench.executors.pool import Pool
from workbench.runtime.distributed import join


def second_of_two(place: Place) -> None:
    """Joins as a launcher's second process a study that is for one."""
    told = {"WORLD_SIZE": "2", "RANK": "1"}
    os.environ.update(told)
    try:
        join(trainer(place.folder, []))
    finally:
        for name in told:
            del os.environ[name]


def without_ray(_: Place) -> None:
    """Asks for Ray where it is not installed."""
    there = sys.modules.get("ray")
    sys.modules["ray"] = None  # type: ignore[assignment]
    try:
        Ray()
    finally:
        sys.modules.pop("ray") if there is None else sys.modules.update(ray=there)


def without_files(place: Place) -> None:
    """Starts a worker where no more files can be opened."""
    opened = max(map(int, os.listdir("/proc/self/fd"))) + 1
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened, limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        Pool(None, 1, 1, Display())  # type: ignore[arg-type]
    finally:
        list(map(os.close, taken))
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


ELSEWHERE = [
    Row(
        "a worker that cannot be started",
        ("executor: a worker could not be started ([Errno 24]", "Give executor.init_args.count a lower number"),
        without_files,
        error=ChildProcessError,
    ),
    Row("no ray", ("Ray is not installed. Get it by: pip install 'continual-workbench[ray]'",), without_ray),
    Row(
        "what stopped a study in a worker",
        ("alpha: no loss. Give",),
        lambda _: refuse("error", ConfigError(["alpha: no loss. Give another rate."])),
        error=ConfigError,
    ),
]
PROCESSES = [
    Row(
        "one process too many",
        ("trainer.devices: this is process 2 of 2, and the study is for one. Give the number of its processes.",),
        second_of_two,
        error=ConfigError,
    ),
    Row(
        "processes that are forked",
        ("trainer.strategy: DDPStrategy forks or spawns, which ends with one task. Give 'ddp'.",),
        lambda place: join(trainer(place.folder, [], devices=2, strategy="ddp_fork")),
        error=ConfigError,
    ),
]
ROWS = [*ELSEWHERE, *PROCESSES]
