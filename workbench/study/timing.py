"""Estimate how long training and scoring take: a few short steps are timed, and carried over by the work of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Any, NamedTuple

import torch
from datasets import Dataset, concatenate_datasets

from workbench.backbone import Backbone, Batch
from workbench.backbone.adapters import merged_to_score
from workbench.backbone.batch import IGNORED
from workbench.backbone.generation import BatchLimit, common_prefix, greedy
from workbench.backbone.loading import blocks
from workbench.backbone.unpadded import skips_padding
from workbench.benchmark import Task

AFFORDABLE_SECONDS = 2.0
"""Most seconds of one measurement; of a batch that would take longer, only some rows are timed."""
LENGTH_ROWS = 256
"""Most rows of a task whose lengths are counted."""
TIMED_TOKENS = 8
"""Tokens of an answer that are timed beyond the first."""
SMALL_BATCH_ROWS = 2
"""Rows of the smaller of two batches that are timed."""
BEYOND_THE_ANSWER = 1.1
"""Length of an answer as a multiple of the right answer's, of a model that has learnt the task."""
FILLED = 0.85
"""Average number of rows that are decoded at once, as a share of the largest number, while prompts wait."""
SLOPES = 0.7, 1.0
"""Bounds of the slope of a line through two batches, as multiples of the larger batch's seconds per unit of work."""


@dataclass(frozen=True)
class Work:
    """Multiplications of a forward pass, by the shape of a batch.

    Args:
        body: Weights of the blocks, each of which every token is multiplied with.
        attention: Layers x width, multiplied with as many tokens as a row has.
        head: Vocabulary x width, for each labelled token.
        padded: Whether padding is computed too.
    """

    body: float
    attention: float
    head: float
    padded: bool = True

    @classmethod
    def of(cls, backbone: Backbone) -> Work:
        """Count a model as it stands."""
        layers = blocks(backbone.model)
        weights = {id(weight): weight.numel() for layer in layers for weight in layer.parameters()}
        width = backbone.model.get_input_embeddings().weight.shape[1]
        vocabulary = backbone.model.get_output_embeddings().weight.shape[0]
        padded = not skips_padding(backbone.decoder)
        return cls(sum(weights.values()), len(layers) * width, vocabulary * width, padded)

    def __call__(self, rows: float, columns: float, labelled: float) -> float:
        """Return the work of a batch of rows of `columns` tokens.

        >>> Work(10, 1, 100)(2, 5, 3)
        450
        """
        return rows * columns * (self.body + columns * self.attention) + labelled * self.head

    def batch(self, batch: Batch) -> float:
        """Return the work of a batch."""
        rows, columns = batch.labels.shape
        tokens = rows * columns if self.padded else int(batch.attention_mask.sum())
        return self(rows, tokens / rows, int((batch.labels != IGNORED).sum()))


class Lengths(NamedTuple):
    """Lengths in tokens of a sample of rows.

    Args:
        rows: Of each whole row.
        labelled: Of its labelled part: the answer with its end token.
    """

    rows: list[int]
    labelled: list[int]

    @classmethod
    def of(cls, encoded: Dataset) -> Lengths:
        """Look at encoded rows; there is at least one length."""
        rows = list(map(len, encoded["input_ids"][:]))
        prompts = encoded["prompt_length"][:]
        labelled = [size - max(1, prompt) for size, prompt in zip(rows, prompts, strict=True)]
        return cls(rows or [1], labelled or [0])


def sample(backbone: Backbone, task: Task, count: int = LENGTH_ROWS) -> Dataset:
    """Encode test rows of a task, spread evenly over all of them."""
    return backbone.encode(task.test.select(spread(len(task.test), count)), task.max_new_tokens)


def spread(total: int, count: int) -> list[int]:
    """Return `count` of the indices 0 … total − 1, evenly spaced; all of them if there are no more.

    >>> spread(9, 3), spread(5, 3), spread(2, 3)
    ([0, 3, 6], [0, 1, 3], [0, 1])
    """
    count = min(count, total)
    return [place * total // count for place in range(count)]


def expected_longest(lengths: Sequence[int], count: int) -> float:
    """Return the expected length of the longest of `count` rows that are drawn at random.

    >>> expected_longest([1, 2], 1), expected_longest([1, 2], 2)
    (1.5, 1.75)
    """
    total = len(lengths)
    steps = [((index + 1) / total) ** count - (index / total) ** count for index in range(total)]
    return sum(length * step for length, step in zip(sorted(lengths), steps, strict=True))


class AnswerLengths(NamedTuple):
    """Lengths in tokens of a sample of a task's test rows.

    Args:
        whole: Of the rows with their right answers.
        prompts: Of the prompts, without their common beginning, which is read once.
        limit: Of an answer; 0: the task is a corpus, and nothing is answered.
        share: Rows of the task for each one of the sample.
        batch: Rows that are answered together: an average where tokens limit them.
    """

    whole: Lengths
    prompts: list[int]
    limit: int
    share: float
    batch: float

    @classmethod
    def of(cls, backbone: Backbone, task: Task) -> AnswerLengths:
        """Look at a task's test rows."""
        encoded, count = sample(backbone, task), len(task.test)
        whole, share = Lengths.of(encoded), count / max(1, len(spread(count, LENGTH_ROWS)))
        if task.is_corpus:
            return cls(whole, [], 0, share, 1)
        prompts = [row[:end] for row, end in zip(encoded["input_ids"][:], encoded["prompt_length"][:], strict=True)]
        common = common_prefix(prompts)
        rests = [len(prompt) - common for prompt in prompts]
        limit = backbone.encoder.limits(task.max_new_tokens)[1]
        together = harmonic_mean([backbone.batch_limit.batch_size(len(prompt) + limit) for prompt in prompts] or [1])
        return cls(whole, rests, limit, share, max(1, min(count, together)))


class Spent(NamedTuple):
    """Seconds of an optimizer step.

    Args:
        passes: Of the forward and backward of its batch, with penalties.
        update: Of the rest: editing the gradients, and the optimizer.
    """

    passes: float
    update: float


@dataclass(frozen=True)
class StepCost:
    """Seconds of an optimizer step as a function of its batches' work.

    Args:
        update: Of the optimizer, once a step.
        fixed: Of each batch, whatever its size.
        rate: For each unit of a batch's work.
    """

    update: float
    fixed: float
    rate: float

    def __call__(self, work: float, batches: int = 1) -> float:
        """Return the seconds of a step that accumulates over batches of this work each.

        >>> StepCost(1.0, 2.0, 0.5)(10, batches=2)
        15.0
        """
        return self.update + batches * (self.fixed + self.rate * work)


def fit_step(small: tuple[float, Spent], large: tuple[float, Spent]) -> StepCost:
    """Draw a line through the seconds of two batches, each given with its work.

    Its slope is at least 0.7 of the larger batch's seconds per unit of work, and at most all of them (`SLOPES`). Where
    the larger batch has at most 1.5 times the work, it alone counts: seconds are in proportion to the work.

    >>> fit_step((10, Spent(2.0, 0.5)), (30, Spent(5.0, 0.5)))
    StepCost(update=0.5, fixed=0.5, rate=0.15)
    """
    (less, few), (more, many) = small, large
    proportional = many.passes / more
    rate = (many.passes - few.passes) / (more - less) if more > 1.5 * less else proportional
    rate = min(max(rate, SLOPES[0] * proportional), SLOPES[1] * proportional)
    return StepCost(many.update, round(many.passes - rate * more, 9), rate)


def affordable_rows(rows: Sequence[Any], seconds: Callable[[Sequence[Any]], float]) -> Sequence[Any]:
    """Return as many rows, evenly spaced, as can be timed within `AFFORDABLE_SECONDS`; at least one.

    Args:
        rows: Any.
        seconds: Estimates how long some of them take.
    """
    some = rows
    while len(some) > 1 and (taken := seconds(some)) > AFFORDABLE_SECONDS:
        count = max(1, min(len(some) - 1, int(len(some) * AFFORDABLE_SECONDS / taken)))
        some = [rows[place] for place in spread(len(rows), count)]
    return some


@dataclass(frozen=True)
class ScoreCost:
    """Seconds of reading and of answering.

    Args:
        rate: For each unit of work of tokens that are read.
        call: Of a step of decoding, whatever the number of rows, for each weight of the blocks.
        row: Of each row in a step of decoding, for each weight of the blocks.
    """

    rate: float
    call: float
    row: float

    @classmethod
    def measure(cls, backbone: Backbone, tested: Sequence[Task]) -> ScoreCost:
        """Time one batch of likelihoods, and one batch of answers at two sizes.

        Args:
            backbone: The model.
            tested: The tasks that are scored; at least one is no corpus.
        """
        work, device = Work.of(backbone), backbone.device
        encoded = [sample(backbone, task, backbone.eval_batch_size) for task in tested if not task.is_corpus]
        order = sorted(concatenate_datasets(encoded).to_list(), key=lambda row: len(row["input_ids"]))
        few, typical = order[:SMALL_BATCH_ROWS], [order[row] for row in spread(len(order), backbone.eval_batch_size)]

        def read(rows: Sequence[Any]) -> float:
            """Return the work of rows without padding: likelihoods read them in passes of similar length."""
            lengths = Lengths.of(Dataset.from_list(list(rows)))
            return sum(work(1, *pair) for pair in zip(*lengths, strict=True))

        with merged_to_score(backbone.model), backbone.evaluating():
            backbone.nats(Dataset.from_list(few))  # the first pass is slower
            rate = _seconds(device, lambda: backbone.nats(Dataset.from_list(few))) / read(few)
            rows = affordable_rows(typical, lambda rows: rate * read(rows))
            if read(rows) > read(few):
                rate = _seconds(device, lambda: backbone.nats(Dataset.from_list(list(rows)))) / read(rows)
            prompts = [row["input_ids"][: max(1, row["prompt_length"])] for row in typical]
            longest = max(map(len, prompts))
            room = backbone.batch_limit.batch_size(longest + 1 + TIMED_TOKENS)
            prompts = [prompts[place] for place in spread(len(prompts), room)]
            many = affordable_rows(prompts, lambda rows: rate * work(len(rows), max(map(len, rows)), len(rows)))
            call, row = _decoding(backbone, many)
        return cls(rate, call / work.body, row / work.body)

    def seconds(self, work: Work, lengths: AnswerLengths, *, once: bool, options: bool, learnt: bool) -> float:
        """Return the seconds of scoring a task once.

        Args:
            work: Of the model.
            lengths: Of the task's test rows.
            once: Whether a prompt is read once for its likelihood and its answer (`Backbone.reads_once`).
            options: Whether the task's options are scored too, for which each prompt is read once more.
            learnt: Whether answers are about as long as the right ones; otherwise they have their maximum length.
        """
        likelihoods = lengths.share * sum(work(1, *pair) for pair in zip(*lengths.whole, strict=True)) * self.rate
        if not lengths.limit:
            return likelihoods
        reading = lengths.share * sum(work(1, prompt, 1) for prompt in lengths.prompts) * self.rate
        if once:
            pairs = zip(lengths.prompts, lengths.whole.labelled, strict=True)
            likelihoods = lengths.share * sum(work(1, prompt + size, size) for prompt, size in pairs) * self.rate
        readings = (not once) + options
        right = [min(lengths.limit, math.ceil(BEYOND_THE_ANSWER * tokens)) for tokens in lengths.whole.labelled]
        answers = right if learnt else [lengths.limit] * len(right)
        tokens = lengths.share * sum(answers)
        steps = max(max(answers), tokens / lengths.batch / FILLED)
        decoding = (steps * self.call + tokens * self.row) * work.body
        return likelihoods + readings * reading + decoding


def _decoding(backbone: Backbone, prompts: Sequence[list[int]]) -> tuple[float, float]:
    """Time a step of decoding at two sizes, after the prompts have been read; no answer ends early.

    Returns:
        Seconds of a step whatever the number of rows, and of each row in it. Where there are too few prompts for two
        sizes, all seconds are the rows'.
    """
    never = -1

    def decode(some: Sequence[list[int]], tokens: int) -> float:
        limit = BatchLimit(len(some))
        return _seconds(backbone.device, lambda: greedy(backbone.model, some, tokens, limit, never))

    def step(some: Sequence[list[int]]) -> float:
        return max(0.0, decode(some, 1 + TIMED_TOKENS) - decode(some, 1)) / TIMED_TOKENS

    few = [prompts[place] for place in spread(len(prompts), SMALL_BATCH_ROWS)]
    with torch.inference_mode():
        decode(few, 2)  # the first one is slower
        small = step(few)
        if len(prompts) <= SMALL_BATCH_ROWS:
            return 0.0, small / len(prompts)
        large = step(prompts)
    row = max(0.0, (large - small) / (len(prompts) - len(few)))
    return max(0.0, large - row * len(prompts)), row


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    wait(device)
    return time.monotonic() - started


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
