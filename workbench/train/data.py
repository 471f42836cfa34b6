"""Training data of the current task: LightningDataModule, encoded rows, batches."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from workbench.backbone import Backbone, Batch
from workbench.backbone.batch import collate
from workbench.benchmark import Task
from workbench.runtime.distributed import share
from workbench.runtime.files import close_inherited_locks
from workbench.runtime.seeding import derived_seed

SLACK = 1.02
"""Batches per epoch with a token budget, relative to what the first epoch needs."""
WINDOW = 16
"""Default width of a window in batches, with a token budget."""


class ContinualDataModule(LightningDataModule):
    """The tasks of one run, and the training batches of the current one.

    Args:
        tasks: The benchmark's tasks in the order of this run.
        probes: Tasks that are only tested.
        general: A corpus of general text, or None.
        batch_size: Rows per training batch.
        bucket: Number of batches whose rows are sorted by length together; 1: plain shuffling.
        seed: Determines the order of rows.
        num_workers: Processes that prepare batches; they do not change any number.
        batch_tokens: Maximum number of tokens in a batch including padding (`EpochBatches`); None: no limit.
        frozen_states_gb: Memory in GB (10^9 bytes) for cached states of frozen layers (`train.activation_cache`).
        score_options: Whether tasks with options are also scored by their most likely option.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        probes: Sequence[Task] = (),
        general: Task | None = None,
        batch_size: int = 32,
        bucket: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        batch_tokens: int | None = None,
        frozen_states_gb: float = 1.0,
        score_options: bool = False,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.probes = probes
        self.general = general
        self.batch_size = batch_size
        self.bucket = bucket
        self.seed = seed
        self.num_workers, self.batch_tokens = num_workers, batch_tokens
        self.frozen_states_gb, self.score_options = frozen_states_gb, score_options
        self._resumed = {"epoch": 0, "batch": 0}
        self._counted: tuple[int, list[int]] | None = None  # labelled tokens of the latest epoch's batches

    @property
    def tested(self) -> list[Task]:
        """Everything that is scored after each task: the tasks, the probes, the general corpus."""
        return [*self.tasks, *self.probes, *([self.general] if self.general else [])]

    def begin(self, backbone: Backbone, position: int, task: Task, rows: Dataset) -> None:
        """Encode the training data of the next task.

        Args:
            backbone: Encodes the rows.
            position: Index of the task in the curriculum; it enters the order of rows.
            task: Its length limit applies, except to rows with their own in a column "max_new_tokens".
            rows: Text; without rows nothing is trained.
        """
        encoded = backbone.encode(rows, task.max_new_tokens, task.packed) if len(rows) else None
        self.rows = None if encoded is None else EncodedRows(encoded)
        self._collate: Callable[[list[Any]], Batch] = partial(collate, pad_id=backbone.pad_id)
        self._device = backbone.device
        self._task_seed = derived_seed(self.seed, "task", position)
        self._resumed = {"epoch": 0, "batch": 0}
        self._counted = None

    @property
    def fingerprint(self) -> str:
        """Checksum of the current task's encoded rows; a run resumes only with the same rows."""
        return "" if self.rows is None else self.rows.fingerprint

    def state_dict(self) -> dict[str, int]:
        """Return the position in training: finished epochs, and finished batches of the current one."""
        loop: Any = self.trainer.fit_loop  # type: ignore[union-attr]
        return {
            "epoch": loop.epoch_progress.current.processed,
            "batch": loop.epoch_loop.batch_progress.current.ready,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Set the position to resume from; Lightning calls this before it requests batches."""
        self._resumed = dict(state_dict)

    def cut_rows(self) -> dict[str, int]:
        """Return how many prompts and answers of the current task were too long and have been cut."""
        rows = self.rows
        return {"prompts": rows.prompts_cut if rows else 0, "answers": rows.answers_cut if rows else 0}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the current task.

        Raises:
            ValueError: There are no rows.
        """
        if self.rows is None:
            raise ValueError("There is nothing to train on: `begin` was given no rows. Give it some.")
        batches = self._epoch_batches()
        batches.epoch, batches.start = self._resumed["epoch"], self._resumed["batch"]
        return DataLoader(
            self.rows,
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            worker_init_fn=close_inherited_locks if self.num_workers else None,
        )

    def labelled_tokens(self, epoch: int) -> list[int]:
        """Return the number of labelled tokens of each training batch of an epoch, over all processes."""
        if self.rows is None:
            return []
        if self._counted is None or self._counted[0] != epoch:
            labelled = self.rows.labelled
            batches = self._epoch_batches().whole_batches(epoch)
            self._counted = epoch, [sum(labelled[row] for row in batch) for batch in batches]
        return self._counted[1]

    def batches(self) -> TaskBatches:
        """Return the current task's batches for a strategy: one pass in a fixed order, which can be repeated."""
        return self._in_order(range(len(self.rows or ())))

    def distinct_batches(self) -> TaskBatches:
        """Return batches of the current task's distinct rows, sorted by length for the least padding."""
        return self._in_order(self.rows.distinct() if self.rows else ())

    def _epoch_batches(self) -> EpochBatches:
        lengths = self.rows.lengths if self.rows else []
        return EpochBatches(lengths, self.batch_size, self._task_seed, self.bucket, self.batch_tokens)

    def _in_order(self, rows: Sequence[int]) -> TaskBatches:
        lengths = self.rows.lengths if self.rows else []
        batches = list(cut(rows, lengths, self.batch_size, self.batch_tokens))
        return TaskBatches(self.rows, batches, lambda rows: self._collate(rows).to(self._device))


class EncodedRows(TorchDataset[dict[str, Any]]):
    """Encoded rows in one flat tensor, which needs 4 bytes per token and no Python lists.

    Args:
        encoded: As returned by `Backbone.encode`.
    """

    def __init__(self, encoded: Dataset) -> None:
        chunks = encoded.with_format("arrow")[:]["input_ids"].chunks
        sizes = [chunk.value_lengths().to_numpy() for chunk in chunks]
        self.lengths: list[int] = np.concatenate([np.empty(0, int), *sizes]).tolist()
        self._ends = np.cumsum(self.lengths, dtype=int).tolist()
        tokens = [chunk.flatten().to_numpy() for chunk in chunks]
        self._tokens = torch.from_numpy(np.concatenate([np.empty(0, np.int32), *tokens]).astype(np.int32))
        self._prompt_lengths = encoded["prompt_length"][:]
        self._rows = encoded["row"][:]
        # A row's first token is never predicted, whether or not it belongs to a prompt.
        self.labelled = [size - max(prompt, 1) for size, prompt in zip(self.lengths, self._prompt_lengths, strict=True)]
        self.prompts_cut = sum(encoded["prompt_cut"][:])
        self.answers_cut = sum(encoded["answer_cut"][:])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_ids": self.tokens(index),
            "prompt_length": self._prompt_lengths[index],
            "row": self._rows[index],
        }

    @property
    def fingerprint(self) -> str:
        """Checksum of all tokens, the lengths of rows and prompts, and the rows' indices."""
        digest = hashlib.sha256()
        for numbers in (self._tokens, *map(torch.tensor, (self.lengths, self._prompt_lengths, self._rows))):
            digest.update(numbers.numpy().tobytes())
        return digest.hexdigest()[:16]

    def tokens(self, index: int) -> Tensor:
        """Return the token ids of a row, (time,)."""
        return self._tokens[self._ends[index] - self.lengths[index] : self._ends[index]]

    def distinct(self) -> list[int]:
        """Return the first of each group of rows with the same tokens, longest first."""
        first = {self.tokens(index).numpy().tobytes(): index for index in reversed(range(len(self)))}
        return sorted(first.values(), key=lambda index: (-self.lengths[index], index))

    def without(self, begin: int | None, end: int) -> dict[str, int]:
        """Count the rows that had no room for the begin token, for the end token, and for both."""
        first, last = (
            [int(self.tokens(index)[place]) != token for index in range(len(self))]
            for place, token in ((0, begin), (-1, end))
        )
        return {"begin": sum(first), "end": sum(last), "both": sum(a and b for a, b in zip(first, last, strict=True))}


class TaskBatches:
    """A pass over rows of the current task in a fixed order, which can be repeated.

    Args:
        rows: The encoded rows; None if there are none.
        indices: The rows of each batch.
        collate: Makes a batch of rows, on the backbone's device.
    """

    def __init__(
        self, rows: EncodedRows | None, indices: list[list[int]], collate: Callable[[list[Any]], Batch]
    ) -> None:
        self._rows = rows
        self._indices = indices
        self._collate = collate

    def __iter__(self) -> Iterator[Batch]:
        if self._rows is None:
            return
        for batch in self._indices:
            yield self._collate([self._rows[index] for index in batch])

    def __len__(self) -> int:
        return len(self._indices)


class EpochBatches(Sampler[list[int]]):
    """Batches of rows in an order that depends only on the seed and the epoch.

    The rows are permuted and cut into windows of `bucket` batches. Within a window they are sorted by length and cut
    into batches; then the batches are permuted. A window of one batch is plain shuffling. A wider one saves padding
    and makes batches less alike: where the length of a row is related to its answer, this costs learning. With several
    processes, each gets its share of every batch.

    With `tokens`, a batch holds as many neighbours of a window as fit into rows × longest row. Then every epoch has
    the same number of batches, because Lightning asks for it only once: 2 % more than the first epoch needs. An epoch
    that needs fewer has its largest batches halved. An epoch that needs more uses the smallest larger budget with
    which it does not. So the first epoch always stays within the budget.

    Args:
        lengths: Length of each row in tokens.
        batch_size: Rows per batch, and with `tokens` their maximum; an epoch's last batch may have fewer.
        seed: Determines the order.
        bucket: Batches of `batch_size` rows in a window; with `tokens`, 1 stands for 16.
        tokens: Maximum number of tokens in a batch of several rows, including padding; None: no limit.

    Attributes:
        start: Batches of the current epoch to skip, because a resumed run had them before it was stopped.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, bucket: int = 1, tokens: int | None = None
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.bucket = WINDOW if tokens and bucket == 1 else bucket
        self.seed = seed
        self.tokens = tokens
        self.epoch = 0
        self.start = 0
        self.sampler = self  # where Lightning looks for `set_epoch`
        self._latest: tuple[int, list[list[int]]] | None = None  # an epoch and its batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; one other than the current begins at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.whole_batches(self.epoch)[self.start :]:
            yield [batch[place] for place in share(len(batch))]

    def whole_batches(self, epoch: int) -> list[list[int]]:
        """Return the rows of each batch of an epoch, before they are divided among processes."""
        if self._latest is None or self._latest[0] != epoch:
            generator = self._generator(epoch)
            batches = self._same_number(self._windows(generator))
            order = torch.randperm(len(batches), generator=generator).tolist()
            self._latest = epoch, [batches[index] for index in order]
        return self._latest[1]

    @cached_property
    def _count(self) -> int:
        """Batches per epoch."""
        if self.tokens is None:
            return -(-len(self.lengths) // self.batch_size)
        needed = len(self._cut(self._windows(self._generator(0)), self.tokens))
        return min(len(self.lengths), int(-(-SLACK * needed // 1)))

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))

    def _windows(self, generator: torch.Generator) -> list[list[int]]:
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size = self.batch_size * self.bucket
        starts = range(0, len(order), size)
        return [sorted(order[start : start + size], key=self.lengths.__getitem__) for start in starts]

    def _cut(self, windows: list[list[int]], tokens: int | None) -> list[list[int]]:
        return [batch for rows in windows for batch in cut(rows, self.lengths, self.batch_size, tokens)]

    def _same_number(self, windows: list[list[int]]) -> list[list[int]]:
        """Cut windows into as many batches as every epoch has."""
        batches = self._cut(windows, self.tokens)
        if self.tokens is None:
            return batches
        if len(batches) > self._count:
            batches = self._cut(windows, self._smallest_budget(windows, self.tokens))
        return halved(batches, self.lengths, self._count)

    def _smallest_budget(self, windows: list[list[int]], tokens: int) -> int:
        """Search the smallest budget with few enough batches: a larger budget never needs more of them."""
        low, high = tokens, self.batch_size * max(self.lengths)
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self._cut(windows, middle)) <= self._count else (middle, high)
        return high


def cut(rows: Sequence[int], lengths: Sequence[int], batch_size: int, tokens: int | None) -> Iterator[list[int]]:
    """Cut rows, in their order, into the largest batches that the limits allow.

    Args:
        rows: Indices of rows.
        lengths: Length of every row in tokens.
        batch_size: Maximum number of rows in a batch.
        tokens: Maximum of rows × longest row, which a single row may exceed; None: no limit.

    Yields:
        The rows of each batch.
    """
    batch: list[int] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if batch and (len(batch) == batch_size or (tokens is not None and (len(batch) + 1) * longest > tokens)):
            yield batch
            batch, longest = [], lengths[row]
        batch.append(row)
    if batch:
        yield batch


def halved(batches: list[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Halve the batches with the most tokens, including padding, until there are `count`."""
    heap = [(-len(batch) * max(lengths[row] for row in batch), batch) for batch in batches if len(batch) > 1]
    heapq.heapify(heap)
    single = [batch for batch in batches if len(batch) == 1]
    while heap and len(single) + len(heap) < count:
        _, batch = heapq.heappop(heap)
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            size = -len(half) * max(lengths[row] for row in half)
            heapq.heappush(heap, (size, half)) if len(half) > 1 else single.append(half)
    return single + [batch for _, batch in heap]
