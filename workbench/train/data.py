"""The data of the task that is being learned: batches, sampler and LightningDataModule."""

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
from workbench.runtime.files import let_go
from workbench.runtime.seeding import derived_seed

SLACK = 1.02
WINDOW = 16


class EpochBatches(Sampler[list[int]]):
    """Batches of rows in an order that depends on the seed and the epoch alone.

    The rows are permuted and cut into windows of `bucket` batches; within a window they are sorted by length, and
    the batches are then permuted again. A window of one batch is plain shuffling. A wider one saves padding and
    makes batches less alike: where a row's length says something of its answer, that costs learning. Of several
    processes each gets its share of every batch.

    With `tokens` a batch holds as many neighbours of a window as fit into rows times longest row. Each epoch then
    cuts other rows together, but all have as many batches, as Lightning asks only once: 2 % more than the first
    epoch would need. An epoch that needs fewer has its largest batches halved; for one that needs more, the budget of
    that epoch is the least with which it does not. So the first epoch always keeps the budget.

    Args:
        lengths: Of the rows, in tokens.
        batch_size: Rows in a batch, and with `tokens` the most; the last one of an epoch may have fewer.
        seed: Of the order.
        bucket: Batches of `batch_size` in a window; with `tokens`, 1 stands for 16.
        tokens: The most in a batch of several rows, padding among them; None: not limited.

    Attributes:
        start: Batches of the current epoch that a run which is resumed has had before.
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
        self._made: tuple[int, list[list[int]]] | None = None  # the latest epoch's batches

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order comes next; another one than the current begins at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.whole_batches(self.epoch)[self.start :]:
            yield [batch[place] for place in share(len(batch))]

    def whole_batches(self, epoch: int) -> list[list[int]]:
        """The rows of each batch of an epoch, in order, before they are divided among processes."""
        if self._made is None or self._made[0] != epoch:
            generator = self._generator(epoch)
            batches = self._same_number(self._windows(generator))
            order = torch.randperm(len(batches), generator=generator).tolist()
            self._made = epoch, [batches[index] for index in order]
        return self._made[1]

    @cached_property
    def _count(self) -> int:
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
        """Cuts windows into as many batches as every epoch has."""
        batches = self._cut(windows, self.tokens)
        if self.tokens is None:
            return batches
        if len(batches) > self._count:
            batches = self._cut(windows, self._least_budget(windows, self.tokens))
        return halved(batches, self.lengths, self._count)

    def _least_budget(self, windows: list[list[int]], tokens: int) -> int:
        """A larger budget never needs more batches, and without one each epoch needs the same few."""
        low, high = tokens, self.batch_size * max(self.lengths)
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(self._cut(windows, middle)) <= self._count else (middle, high)
        return high


def cut(rows: Sequence[int], lengths: Sequence[int], most: int, tokens: int | None) -> Iterator[list[int]]:
    """Cuts rows, in their order, into batches as large as may be.

    Args:
        rows: Indices.
        lengths: Of all rows, in tokens.
        most: Rows in a batch.
        tokens: The most of rows times longest row, which one row alone may exceed; None: not limited.
    """
    batch: list[int] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if batch and (len(batch) == most or (tokens is not None and (len(batch) + 1) * longest > tokens)):
            yield batch
            batch, longest = [], lengths[row]
        batch.append(row)
    if batch:
        yield batch


def halved(batches: list[list[int]], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Halves those batches that hold most tokens, padding among them, until there are `count`."""
    waiting = [(-len(batch) * max(lengths[row] for row in batch), batch) for batch in batches if len(batch) > 1]
    heapq.heapify(waiting)
    done = [batch for batch in batches if len(batch) == 1]
    while waiting and len(done) + len(waiting) < count:
        _, batch = heapq.heappop(waiting)
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            size = -len(half) * max(lengths[row] for row in half)
            heapq.heappush(waiting, (size, half)) if len(half) > 1 else done.append(half)
    return done + [batch for _, batch in waiting]


class EncodedRows(TorchDataset[dict[str, Any]]):
    """Encoded rows held as one flat tensor: a row costs its tokens, not a Python list.

    Args:
        encoded: What `Backbone.encode` returns.
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

    @property
    def fingerprint(self) -> str:
        """Of all tokens, of where rows and prompts end, and of which rows these are."""
        digest = hashlib.sha256()
        for numbers in (self._tokens, *map(torch.tensor, (self.lengths, self._prompt_lengths, self._rows))):
            digest.update(numbers.numpy().tobytes())
        return digest.hexdigest()[:16]

    def without(self, begin: int | None, end: int) -> dict[str, int]:
        """How many rows had no room for the begin token, for the end token, or for either."""
        first, last = (
            [int(self.tokens(index)[place]) != token for index in range(len(self))]
            for place, token in ((0, begin), (-1, end))
        )
        return {"begin": sum(first), "end": sum(last), "both": sum(a and b for a, b in zip(first, last, strict=True))}

    def tokens(self, index: int) -> Tensor:
        """(time,) ids of a row."""
        return self._tokens[self._ends[index] - self.lengths[index] : self._ends[index]]

    def distinct(self) -> list[int]:
        """The rows that differ in their tokens, the first of each kind, longest first."""
        first = {self.tokens(index).numpy().tobytes(): index for index in reversed(range(len(self)))}
        return sorted(first.values(), key=lambda index: (-self.lengths[index], index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_ids": self.tokens(index),
            "prompt_length": self._prompt_lengths[index],
            "row": self._rows[index],
        }


class ContinualDataModule(LightningDataModule):
    """The tasks of one run, and the batches of the one that is being learnt.

    Args:
        tasks: The benchmark's tasks in the order of this run.
        probes: Tasks that are only tested.
        general: A corpus of general text, or None.
        batch_size: Rows in a training batch.
        bucket: Batches whose rows are sorted by length together; 1: plain shuffling.
        seed: Of every order of rows.
        num_workers: Processes that make batches beside this one; they change no number.
        batch_tokens: The most in a batch, padding among them (`EpochBatches`); None: not limited.
        frozen_states_gb: What the states of frozen layers may take, where they are kept (`train.activation_cache`).
        score_options: Whether tasks that have options are also scored by the likeliest of them.
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
        """Makes `rows` the training data, encoded.

        Args:
            backbone: Encodes them.
            position: Of the task in the curriculum; it enters the order of rows.
            task: Whose limits apply, but to rows that carry their own in a column "max_new_tokens".
            rows: Text; no rows means that nothing is trained.
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
        """Of the current task's encoded rows: a run is resumed with the rows that it began with, or not at all."""
        return "" if self.rows is None else self.rows.fingerprint

    def state_dict(self) -> dict[str, int]:
        """Where training stands: epochs done, and batches of the current one."""
        loop: Any = self.trainer.fit_loop  # type: ignore[union-attr]
        return {
            "epoch": loop.epoch_progress.current.processed,
            "batch": loop.epoch_loop.batch_progress.current.ready,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on where training stood; Lightning calls this before it asks for batches."""
        self._resumed = dict(state_dict)

    def cut_rows(self) -> dict[str, int]:
        """How many prompts and answers of the current task were too long and lost a part."""
        rows = self.rows
        return {"prompts": rows.prompts_cut if rows else 0, "answers": rows.answers_cut if rows else 0}

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the current task.

        Raises:
            ValueError: There are no rows.
        """
        if self.rows is None:
            raise ValueError("There is nothing to train on: `begin` was given no rows. Give it some.")
        order = self._order()
        order.epoch, order.start = self._resumed["epoch"], self._resumed["batch"]
        return DataLoader(
            self.rows,
            batch_sampler=order,
            collate_fn=self._collate,
            num_workers=self.num_workers,
            worker_init_fn=let_go if self.num_workers else None,
        )

    def labelled_tokens(self, epoch: int) -> list[int]:
        """The labelled tokens of each training batch of an epoch, over all processes."""
        if self.rows is None:
            return []
        if self._counted is None or self._counted[0] != epoch:
            own = self.rows.labelled
            batches = self._order().whole_batches(epoch)
            self._counted = epoch, [sum(own[row] for row in batch) for batch in batches]
        return self._counted[1]

    def _order(self) -> EpochBatches:
        lengths = self.rows.lengths if self.rows else []
        return EpochBatches(lengths, self.batch_size, self._task_seed, self.bucket, self.batch_tokens)

    def batches(self) -> TaskBatches:
        """The current task's batches for a strategy: once through, in a fixed order, as often as wanted."""
        return self._in_order(range(len(self.rows or ())))

    def distinct_batches(self) -> TaskBatches:
        """Each distinct row of the current task once, those of similar length together: with the least padding."""
        return self._in_order(self.rows.distinct() if self.rows else ())

    def _in_order(self, rows: Sequence[int]) -> TaskBatches:
        lengths = self.rows.lengths if self.rows else []
        order = list(cut(rows, lengths, self.batch_size, self.batch_tokens))
        return TaskBatches(self.rows, order, lambda rows: self._collate(rows).to(self._device))


class TaskBatches:
    """A re-iterable pass over rows of the current task in a fixed order, on the backbone's device.

    Args:
        rows: The encoded rows; None where there are none.
        order: Of each batch its rows.
        collate: Rows to a batch on the backbone's device.
    """

    def __init__(self, rows: EncodedRows | None, order: list[list[int]], collate: Callable[[list[Any]], Batch]) -> None:
        self._rows = rows
        self._order = order
        self._collate = collate

    def __iter__(self) -> Iterator[Batch]:
        if self._rows is None:
            return
        for batch in self._order:
            yield self._collate([self._rows[index] for index in batch])

    def __len__(self) -> int:
        return len(self._order)
