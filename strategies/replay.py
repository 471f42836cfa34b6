"""Experience replay: a few rows of each task are kept and learnt again among the rows of all later ones."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from workbench.strategy import ContinualStrategy

if TYPE_CHECKING:
    from workbench.backbone import Backbone, Batch
    from workbench.benchmark import Task


class Replay(ContinualStrategy):
    """Keeps rows of each task, chosen at random, and mixes them into each later task's rows.

    Every epoch of a later task passes over each kept row once, with the answer limit of the row's own task. Texts
    are mixed into texts and answers into answers, and nothing into a task that has no rows to train on. Nothing is
    said of what trains: alone this is fine-tuning of all weights; after LoRA or block expansion in a list, theirs.

    Chaudhry et al. see each row of a stream once and draw as many rows from a memory of fixed size for every
    batch; here the memory grows with the tasks. TRACE's replay baseline (arXiv 2310.06762) learns a task alone and
    after it passes once over 10 % of every past task and LIMA; here past rows are mixed in while a task is learnt,
    and no general instructions are added.

    Args:
        share: Of a task's training rows that is kept, in (0, 1], rounded, at least one row.
        rows: How many are kept of each task, in place of a share; all, where there are fewer.

    Attributes:
        memory: The kept rows by the name of their task. It is plain data, and part of the state that a checkpoint
            holds.

    Raises:
        ValueError: A number is out of range.
    """

    reference = "Chaudhry et al., 2019 (arXiv 1902.10486)"
    bibtex = """@misc{chaudhry2019tiny,
  author = {Chaudhry, Arslan and others},
  title = {On Tiny Episodic Memories in Continual Learning},
  year = {2019},
  eprint = {1902.10486},
  archivePrefix = {arXiv}
}"""

    def __init__(self, share: float = 0.1, rows: int | None = None) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share={share} is out of range; it has to be more than 0 and at most 1.")
        if rows is not None and rows < 1:
            raise ValueError(f"rows={rows} is out of range; it has to be at least 1.")
        self.share = share
        self.rows = rows
        self.memory: dict[str, list[dict[str, Any]]] = {}
        self.seed = 0

    def setup(self, backbone: Backbone) -> None:
        """Takes the run's seed; of the model it changes nothing.

        What is kept then depends on the run and the task alone, and not on dropout or on how many processes train.
        """
        self.seed = torch.initial_seed()

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        """The task's rows, and after them all that is kept of other tasks of its kind."""
        past = [row for name, kept in self.memory.items() if name != task.name for row in kept]
        past = [row for row in past if ("text" in row) == task.is_corpus]
        if not past or not len(rows):
            return rows
        columns = dict.fromkeys([*rows.column_names, *past[0]])
        together = [*rows, *past]
        return Dataset.from_dict({name: [row.get(name) for row in together] for name in columns})

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Keeps rows of this task; what was kept when it was learnt before is replaced."""
        candidates = task.rows_to_mix()
        wanted = self.rows or max(1, round(self.share * len(candidates)))
        generator = torch.Generator().manual_seed((self.seed + zlib.crc32(task.name.encode())) % 2**63)
        chosen = torch.randperm(len(candidates), generator=generator)[:wanted].tolist()
        self.memory[task.name] = [candidates[index] for index in sorted(chosen)]

    def get_extra_state(self) -> dict[str, list[dict[str, Any]]]:
        """The memory, for `state_dict`."""
        return {name: list(kept) for name, kept in self.memory.items()}

    def set_extra_state(self, state: Any) -> None:
        """The memory, from `load_state_dict`."""
        self.memory = {name: list(kept) for name, kept in state.items()}
