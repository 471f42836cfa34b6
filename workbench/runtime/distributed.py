"""Several processes that make one study together: who writes, who waits, and how their shares become one."""

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

Item = TypeVar("Item")
SECONDS_BETWEEN_LOOKS = 0.5
PARENT = "WORKBENCH_PARENT"


def world() -> int:
    """How many processes work together; 1 before they have found each other."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """Which of them this one is; before they have found each other, what its launcher has told it."""
    if _joined():
        return distributed.get_rank()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return 0
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def join(trainer: Trainer) -> None:
    """Has all processes of a study go on together; starts the others first, unless a launcher has.

    They are started as Lightning does it: each runs this program again from its beginning. They stay together until
    the program ends.

    Args:
        trainer: Its devices say how many there are.

    Raises:
        ConfigError: They cannot be started so, or a launcher has started other ones than the study asks for.
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
    own = str(os.getpid())
    if not launcher.cluster_environment.creates_processes_externally:
        os.environ[PARENT] = own
    elif os.environ.get(PARENT, own) != own:
        end_with(int(os.environ[PARENT]))
    launcher.launch(trainer.strategy.setup_environment)


@contextmanager
def one_after_the_other() -> Iterator[None]:
    """Has the first process go through the context before the others: it mends what they then read."""
    if not is_first():
        together()
    yield
    if is_first():
        together()
    together()


def together() -> None:
    """Waits until all processes are here."""
    if world() > 1:
        gathered([None])


def total(values: Tensor) -> Tensor:
    """The sums over all processes of some numbers, on the device where they are."""
    if world() > 1:
        distributed.all_reduce(values)
    return values


def agreed(value: bool, device: torch.device) -> bool:
    """The first process's word."""
    if world() == 1:
        return value
    said = torch.tensor(value, device=device, dtype=torch.uint8)
    distributed.broadcast(said, 0)
    return bool(said)


def share(count: int) -> range:
    """Which of so many rows are this process's."""
    return range(rank(), count, world()) if world() > 1 else range(count)


def gathered(items: Sequence[Item]) -> list[Item]:
    """What all processes have made of their shares, in the order of the rows."""
    if world() == 1:
        return list(items)
    parts: list[Any] = [None] * world()
    distributed.all_gather_object(parts, list(items))
    places = sorted((index, number) for number, part in enumerate(parts) for index in range(len(part)))
    return [parts[number][index] for index, number in places]


def end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, even while it waits for it."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
