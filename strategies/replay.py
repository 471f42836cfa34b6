"""Experience replay: some rows of each task are kept and mixed into the rows of all later tasks."""

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
    """Keep random rows of each task and mix them into the rows of each later task   (Chaudhry et al., 2019).

        D_t' = D_t ∪ M_1 ∪ ... ∪ M_{t-1}   with M_i ⊂ D_i drawn uniformly, |M_i| = max(1, round(share · |D_i|))

    Each epoch of a later task contains each kept row once, with the answer limit of its own task. Corpora are mixed
    into corpora and rows with answers into rows with answers; a task without training rows gets none. The strategy
    does not choose the trainable parameters: alone, all weights are trained; in a list after LoRA or block expansion,
    those that they train.

    Chaudhry et al. pass over a stream once and add to each batch as many rows from a memory of fixed size; here the
    memory grows with the tasks. TRACE's replay baseline (arXiv 2310.06762) trains on a task alone and then passes
    once over 10 % of every past task and LIMA; here past rows are mixed in during training, without LIMA.

    Args:
        share: Share of a task's training rows to keep, in (0, 1]; rounded, at least one row.
        rows: Number of rows to keep of each task, instead of a share; all if there are fewer.

    Attributes:
        memory: Kept rows by task name; part of the state in a checkpoint.

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
        """Store the run's seed; the model is not changed.

        The kept rows then depend only on this seed and the task, not on dropout or the number of processes.
        """
        self.seed = torch.initial_seed()

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        """Return the task's rows followed by the kept rows of other tasks of its kind (corpus or answers)."""
        past = [row for name, kept in self.memory.items() if name != task.name for row in kept]
        past = [row for row in past if ("text" in row) == task.is_corpus]
        if not past or not len(rows):
            return rows
        columns = dict.fromkeys([*rows.column_names, *past[0]])
        together = [*rows, *past]
        return Dataset.from_dict({name: [row.get(name) for row in together] for name in columns})

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        """Keep rows of this task; they replace those kept when it was trained before."""
        candidates = task.rows_to_mix()
        wanted = self.rows or max(1, round(self.share * len(candidates)))
        generator = torch.Generator().manual_seed((self.seed + zlib.crc32(task.name.encode())) % 2**63)
        chosen = torch.randperm(len(candidates), generator=generator)[:wanted].tolist()
        self.memory[task.name] = [candidates[index] for index in sorted(chosen)]

    def get_extra_state(self) -> dict[str, list[dict[str, Any]]]:
        """Return the memory for `state_dict`."""
        return {name: list(kept) for name, kept in self.memory.items()}

    def set_extra_state(self, state: Any) -> None:
        """Restore the memory from `load_state_dict`."""
        self.memory = {name: list(kept) for name, kept in state.items()}
