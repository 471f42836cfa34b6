"""Distributed execution: ranks, barriers, reductions, and the start of the other processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed

from workbench.errors import ConfigError
from workbench.runtime.launch import launched_rank

Item = TypeVar("Item")
SECONDS_BETWEEN_CHECKS = 0.5
PARENT = "WORKBENCH_PARENT"
"""Environment variable with the process id of rank 0, which has started the others."""


def world() -> int:
    """Return the number of processes; 1 before the process group is initialised."""
    return distributed.get_world_size() if _is_initialized() else 1


def rank() -> int:
    """Return this process's rank; before the process group is initialised, the one set by the launcher."""
    if _is_initialized():
        return distributed.get_rank()
    return launched_rank()


def is_first() -> bool:
    """Return True on rank 0, which writes files and the progress display."""
    return rank() == 0


def join(trainer: Trainer) -> None:
    """Initialise the process group for the rest of the program, and start the other processes unless a launcher has.

    As Lightning does it, each process executes this program from its beginning.

    Args:
        trainer: Determines the number of processes.

    Raises:
        ConfigError: The Trainer's strategy cannot start processes in this way, or a launcher has started processes
            for a study of one device.
    """
    launcher: Any = trainer.strategy.launcher
    if launcher is None and (rank() or world() > 1):
        started = f"this is process {rank() + 1} of {os.environ.get('WORLD_SIZE', world())}"
        raise ConfigError([f"trainer.devices: {started}, and the study is for one. Give the number of its processes."])
    if launcher is None:
        return
    if launcher.is_interactive_compatible:
        name = type(trainer.strategy).__name__
        raise ConfigError([f"trainer.strategy: {name} forks or spawns, which ends with one task. Give 'ddp'."])
    own_id = str(os.getpid())
    if not launcher.cluster_environment.creates_processes_externally:
        os.environ[PARENT] = own_id
    elif os.environ.get(PARENT, own_id) != own_id:
        exit_with_parent(int(os.environ[PARENT]))
    launcher.launch(trainer.strategy.setup_environment)


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Run the block on rank 0 first, then on all other ranks: rank 0 repairs files that the others read."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()
    barrier()


def barrier() -> None:
    """Wait until all processes have arrived here."""
    if world() > 1:
        gathered([None])


def total(values: Tensor) -> Tensor:
    """Sum a tensor of any shape over all processes, in place."""
    if world() > 1:
        distributed.all_reduce(values)
    return values


def broadcast(value: bool, device: torch.device) -> bool:
    """Return rank 0's value in all processes."""
    if world() == 1:
        return value
    shared = torch.tensor(value, device=device, dtype=torch.uint8)
    distributed.broadcast(shared, 0)
    return bool(shared)


def share(count: int) -> range:
    """Return this process's share of the indices 0 … count − 1."""
    return range(rank(), count, world()) if world() > 1 else range(count)


def gathered(items: Sequence[Item]) -> list[Item]:
    """Combine the results of all processes' shares (`share`), in the order of the indices."""
    if world() == 1:
        return list(items)
    parts: list[Any] = [None] * world()
    distributed.all_gather_object(parts, list(items))
    places = sorted((index, process) for process, part in enumerate(parts) for index in range(len(part)))
    return [parts[process][index] for index, process in places]


def exit_with_parent(parent: int) -> None:
    """Exit this process as soon as its parent process is gone, even while it waits for the parent.

    Args:
        parent: Process id of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_CHECKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()
