"""Which rows make a batch: orders that only a seed and an epoch decide, by number of rows or by number of tokens."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch.utils.data import Sampler

from workbench.processes import share
from workbench.seeding import derived_seed

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
