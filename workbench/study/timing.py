"""Estimate how long training and scoring take: a few short steps are timed, and carried over by the work of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
"""What one measurement may take; a batch that would take longer is timed in part."""
SAMPLED_ROWS = 256
"""Rows of a task whose lengths are looked at."""
TIMED_TOKENS = 8
"""Tokens of an answer that are timed beyond the first."""
FEW_ROWS = 2
BEYOND_THE_ANSWER = 1.1
"""Length of an answer as a multiple of the right answer's, of a model that has learnt the task."""
FILLED = 0.85
"""Share of a batch that is being answered, on average, while prompts wait."""
SLOPES = 0.7, 1.0
"""Least and most seconds per unit of work, as a multiple of the larger batch's, to which two measurements may lead."""


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


def sample(backbone: Backbone, task: Task, count: int = SAMPLED_ROWS) -> Dataset:
    """Encode test rows of a task, spread evenly over all of them."""
    return backbone.encode(task.test.select(spread(len(task.test), count)), task.max_new_tokens)


def spread(total: int, count: int) -> range:
    """Return about `count` of the indices 0 … total − 1, evenly spaced.

    >>> list(spread(9, 3)), list(spread(2, 3))
    ([0, 3, 6], [0, 1])
    """
    return range(0, total, max(1, total // count))


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
        batch: Rows that are answered together.
    """

    whole: Lengths
    prompts: list[int]
    limit: int
    share: float
    batch: int

    @classmethod
    def of(cls, backbone: Backbone, task: Task) -> AnswerLengths:
        """Look at a task's test rows."""
        encoded, count = sample(backbone, task), len(task.test)
        whole, share = Lengths.of(encoded), count / max(1, len(spread(count, SAMPLED_ROWS)))
        if task.is_corpus:
            return cls(whole, [], 0, share, 1)
        prompts = [row[:end] for row, end in zip(encoded["input_ids"][:], encoded["prompt_length"][:], strict=True)]
        common = common_prefix(prompts)
        rests = [len(prompt) - common for prompt in prompts]
        limit = backbone.encoder.limits(task.max_new_tokens)[1]
        return cls(whole, rests, limit, share, max(1, min(count, backbone.eval_batch_size)))


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

    Where the larger one is not much larger, or both took as long, seconds are in proportion to the work.

    >>> fit_step((10, Spent(2.0, 0.5)), (30, Spent(5.0, 0.5)))
    StepCost(update=0.5, fixed=0.5, rate=0.15)
    """
    (less, few), (more, many) = small, large
    proportional = many.passes / more
    rate = (many.passes - few.passes) / (more - less) if more > 1.5 * less else proportional
    rate = min(max(rate, SLOPES[0] * proportional), SLOPES[1] * proportional)
    return StepCost(many.update, round(many.passes - rate * more, 9), rate)


def affordable_rows(rows: Sequence[Any], seconds: Callable[[Sequence[Any]], float]) -> Sequence[Any]:
    """Return as many of the first rows as can be timed within `AFFORDABLE_SECONDS`; at least one.

    Args:
        rows: Any.
        seconds: Estimates how long some of them take.
    """
    count = len(rows)
    while count > 1 and (taken := seconds(rows[:count])) > AFFORDABLE_SECONDS:
        count = max(1, min(count - 1, int(count * AFFORDABLE_SECONDS / taken)))
    return rows[:count]


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
        few, typical = order[:FEW_ROWS], [order[row] for row in spread(len(order), backbone.eval_batch_size)]

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
            prompts = [row["input_ids"][: max(1, row["prompt_length"])] for row in order[: backbone.eval_batch_size]]
            many = affordable_rows(prompts, lambda rows: rate * work(len(rows), len(rows[-1]), len(rows)))
            per_step = [_decoding(backbone, some) / work.body for some in (prompts[:FEW_ROWS], many)]
        extra = len(many) - FEW_ROWS
        row = max(0.0, (per_step[1] - per_step[0]) / extra) if extra > 0 else 0.0
        return cls(rate, max(0.0, per_step[1] - row * len(many)), row)

    def seconds(self, work: Work, lengths: AnswerLengths, readings: int, learnt: bool) -> float:
        """Return the seconds of scoring a task once.

        Args:
            work: Of the model.
            lengths: Of the task's test rows.
            readings: How often each prompt is read: 1, or 2 where the task's options are scored too.
            learnt: Whether answers are about as long as the right ones; otherwise they have their maximum length.
        """
        likelihoods = lengths.share * sum(work(1, *pair) for pair in zip(*lengths.whole, strict=True)) * self.rate
        if not lengths.limit:
            return likelihoods
        reading = lengths.share * sum(work(1, prompt, 1) for prompt in lengths.prompts) * self.rate
        right = [min(lengths.limit, math.ceil(BEYOND_THE_ANSWER * tokens)) for tokens in lengths.whole.labelled]
        answers = right if learnt else [lengths.limit] * len(right)
        tokens = lengths.share * sum(answers)
        steps = max(max(answers), tokens / lengths.batch / FILLED)
        decoding = (steps * self.call + tokens * self.row) * work.body
        return likelihoods + readings * reading + decoding


def _decoding(backbone: Backbone, prompts: Sequence[list[int]]) -> float:
    """Return the seconds of a step of decoding, after the prompts have been read; no answer ends early."""
    limit, never = BatchLimit(len(prompts)), -1

    def decode(tokens: int) -> float:
        return _seconds(backbone.device, lambda: greedy(backbone.model, prompts, tokens, limit, never))

    with torch.inference_mode():
        return max(0.0, decode(1 + TIMED_TOKENS) - decode(1)) / TIMED_TOKENS


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    wait(device)
    return time.monotonic() - started


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
