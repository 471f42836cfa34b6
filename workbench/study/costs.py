"""Measure what training and scoring cost in a plan: few steps are taken, and carried over to all other items."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from workbench.backbone import Backbone, Batch
from workbench.backbone.batch import IGNORED, logits_held
from workbench.backbone.generation import has_plain_cache
from workbench.backbone.unpadded import skips_padding
from workbench.benchmark import Task
from workbench.runtime.environment import PeakMemory
from workbench.strategy import answers_itself
from workbench.study.dry_run import DryRun, Structure, size_of, state_tensors
from workbench.study.measure import (
    TIMED_ROWS,
    Memory,
    Sample,
    counted_memory,
    first_step_bytes,
    free_memory,
    model_bytes,
)
from workbench.study.timing import (
    AFFORDABLE_SECONDS,
    LENGTH_ROWS,
    SMALL_BATCH_ROWS,
    AnswerLengths,
    Lengths,
    ScoreCost,
    Spent,
    StepCost,
    Work,
    affordable_rows,
    expected_longest,
    fit_step,
    spread,
)
from workbench.train import Sharded
from workbench.train.module import accumulated_batches

LONGEST_TEXTS = 4
"""Texts with the most characters, of which the one with the most tokens is looked for."""
SHORT_TOKENS = 256
"""Tokens above which one row is tried instead of two."""
LOGIT_BYTES = 12
"""Of each logit in float32, its probability and its gradient."""
APART = 1.3
"""How many times as many tokens as the shorter one the longer of two batches has, for a line through both."""
LEAST_SLOPE = 0.4
"""Least bytes for each token, as a multiple of the longer batch's."""
FREE_SHARE = 0.8
"""Share of the free memory that a measurement on a CPU may take."""


class TrainRows(NamedTuple):
    """Encoded rows of an item, without those that the strategy mixes in.

    Args:
        lengths: Of a sample.
        typical: Some of the sample, spread over all of it.
        longest: The longest row.
    """

    lengths: Lengths
    typical: list[dict[str, Any]]
    longest: dict[str, Any]

    @classmethod
    def of(cls, backbone: Backbone, task: Task) -> TrainRows:
        """Encode a sample that is spread over all rows, and the rows with the longest texts."""
        columns = [task.train[name][:] for name in (("text",) if task.is_corpus else ("prompt", "answer"))]
        characters = [sum(map(len, texts)) for texts in zip(*columns, strict=True)]
        most = heapq.nlargest(LONGEST_TEXTS, range(len(characters)), key=characters.__getitem__)

        def encoded(indices: Sequence[int]) -> Dataset:
            return backbone.encode(task.train.select(indices), task.max_new_tokens, task.packed)

        sample, long = encoded(spread(len(task.train), LENGTH_ROWS)), encoded(sorted(most)).to_list()
        longest = max(long, key=lambda row: (len(row["input_ids"]), -row["prompt_length"]))
        typical = sample.select(spread(len(sample), TIMED_ROWS))
        return cls(Lengths.of(sample), typical.to_list(), longest)


class Costs:
    """Measurements of a plan's dry runs, which items and strategies that train alike share.

    Attributes:
        finished: Whether a dry run has been finished, with all that is tested.
    """

    def __init__(self) -> None:
        self.finished = False
        self._steps: dict[Structure, StepCost] = {}
        self._counted: dict[Structure, Memory] = {}
        self._activations: dict[tuple[Structure, int, int], int | None] = {}  # by tokens and labelled tokens
        self._scores: dict[bool, ScoreCost] = {}  # by whether answers need no more than a plain cache
        self._rows: dict[tuple[int, Any], tuple[Dataset, TrainRows]] = {}
        self._answers: dict[tuple[int, Any], tuple[Dataset, AnswerLengths]] = {}

    def train(self, dry_run: DryRun, task: Task, sample: Sample) -> tuple[float, Memory]:
        """Estimate an item's steps: from steps that are timed now, or from those of an item that trains alike.

        One step is taken in any case if the strategy has hooks, or has taken none yet.

        Args:
            dry_run: At the item, with its optimizer.
            task: The item.
            sample: Its rows.

        Returns:
            The seconds of an optimizer step, and the memory of one on the longest rows.
        """
        structure, rows = dry_run.structure(task), self._train_rows(dry_run.backbone, task)
        if structure not in self._steps:
            typical = [rows.typical[place] for place in spread(len(rows.typical), sample.rows)]
            self._measure(dry_run, structure, typical)
        elif dry_run.stepped is None or dry_run.hooked:
            dry_run.step(_short_batch(dry_run))
        return self._step_seconds(dry_run, structure, rows.lengths, task, sample), self._memory(
            dry_run, structure, rows
        )

    def score(self, dry_run: DryRun, learnt: bool) -> float:
        """Return the seconds of scoring everything once.

        Args:
            dry_run: After its last item.
            learnt: Whether the model has learnt how long an answer is.
        """
        backbone, tested = dry_run.backbone, dry_run.data.tested
        if all(task.is_corpus for task in tested):
            return 0.0
        plain = has_plain_cache(backbone.model)
        if plain not in self._scores:
            self._scores[plain] = ScoreCost.measure(backbone, tested)
        cost, work = self._scores[plain], Work.of(backbone)
        once = plain and not answers_itself(dry_run.strategy)
        return sum(
            cost.seconds(
                work,
                self._answer_lengths(backbone, task),
                once=once,
                options=dry_run.data.score_options and bool(task.options),
                learnt=learnt,
            )
            for task in tested
        )

    def _measure(self, dry_run: DryRun, structure: Structure, typical: Sequence[dict[str, Any]]) -> None:
        """Time two batches: a short one, and a batch of the run or as much of it as is affordable."""
        backbone, short = dry_run.backbone, _short_batch(dry_run)
        _check_first_step(dry_run)
        dry_run.step(short)  # the first one is slower
        self._counted[structure] = counted_memory(backbone, dry_run.optimizer)
        work = Work.of(backbone)
        less, few = work.batch(short), self._measured(dry_run, structure, short)

        def seconds(rows: Sequence[Any]) -> float:
            batch = backbone.collate(rows)
            fits = self._fits(backbone, structure, batch)
            return sum(few) * work.batch(batch) / less if fits else 2 * AFFORDABLE_SECONDS

        batch = backbone.collate(affordable_rows(typical, seconds)).to(backbone.device)
        more, many = less, few
        if work.batch(batch) > less and self._fits(backbone, structure, batch):
            more, many = work.batch(batch), self._measured(dry_run, structure, batch)
        self._steps[structure] = fit_step((less, few), (more, many))

    def _measured(self, dry_run: DryRun, structure: Structure, batch: Batch) -> Spent:
        """Take one step if it takes long, and three otherwise; return the median of their seconds."""
        spent = self._measured_once(dry_run, structure, batch)
        steps = [spent] if sum(spent) > AFFORDABLE_SECONDS / 4 else [spent, dry_run.step(batch), dry_run.step(batch)]
        return sorted(steps, key=sum)[len(steps) // 2]

    def _measured_once(self, dry_run: DryRun, structure: Structure, batch: Batch) -> Spent:
        """Take a step, and keep the bytes by which its peak exceeds those that are counted."""
        counted = self._counted[structure].total
        peak = PeakMemory(dry_run.backbone.device, counted, collect=False)
        spent = dry_run.step(batch)
        size, load = peak.bytes(), _load(batch, dry_run.backbone)
        self._activations[(structure, *load)] = None if size is None else max(0, size - counted)
        return spent

    def _step_seconds(
        self, dry_run: DryRun, structure: Structure, lengths: Lengths, task: Task, sample: Sample
    ) -> float:
        """Return the seconds of a step of an item, from the lengths of its rows."""
        data, count = dry_run.assembly.config.data, sample.share
        sorted_rows = data.bucket > 1 or data.batch_tokens is not None  # rows of a batch are about equally long
        work = Work.of(dry_run.backbone)
        unpadded = sorted_rows or not work.padded
        columns = fmean(lengths.rows) if unpadded else expected_longest(lengths.rows, count)
        batches = accumulated_batches(dry_run.assembly.trainer(dry_run.name, task), 0)
        return self._steps[structure](work(count, columns, count * fmean(lengths.labelled)), batches)

    def _memory(self, dry_run: DryRun, structure: Structure, rows: TrainRows) -> Memory:
        """Return the memory of a step on a batch of rows as long as the item's longest.

        Weights, gradients and optimizer state are counted. The rest of the peak was measured in a step on at least as
        many tokens, labelled or not, that trains alike; or it is measured now; or, where that step would take long or
        does not fit into the memory, it is carried over from a shorter one.
        """
        backbone, batch = dry_run.backbone, _longest_batch(dry_run, rows.longest)
        tokens, labelled = _load(batch, backbone)
        trainer = dry_run.assembly.trainer(dry_run.name)
        sharded = isinstance(trainer.strategy, Sharded)
        counted = self._counted[structure].on_one_of(trainer.world_size, sharded)
        known = [
            size
            for (what, more, labels), size in self._activations.items()
            if what == structure and more >= tokens and labels >= labelled
        ]
        if known:
            return replace(counted, activations=min((size for size in known if size is not None), default=None))
        seconds = self._steps[structure](Work.of(backbone).batch(batch))
        if seconds > AFFORDABLE_SECONDS or not self._fits(backbone, structure, batch):
            return replace(counted, activations=self._carried(backbone, structure, batch))
        if not dry_run.optimizer.state:
            dry_run.step(_short_batch(dry_run))
        self._measured_once(dry_run, structure, batch)
        return replace(counted, activations=self._activations[structure, tokens, labelled])

    def _carried(self, backbone: Backbone, structure: Structure, batch: Batch) -> int | None:
        """Estimate the activations of a batch: logits apart, along a line through the two largest measured ones.

        A short batch's peak holds temporary tensors as large as the gradients, which do not grow with the tokens: they
        are left out of the slope where there is one length alone.
        """
        vocabulary = backbone.model.get_output_embeddings().weight.shape[0]

        def logits(labelled: int) -> int:
            return LOGIT_BYTES * logits_held(labelled, vocabulary)

        points = sorted(
            (key[1], max(size - logits(key[2]), 0))
            for key, size in self._activations.items()
            if key[0] == structure and size is not None
        )
        if not points:
            return None
        tokens, labelled = _load(batch, backbone)
        (less, few), (more, many) = points[-2:] if len(points) > 1 else points * 2
        slope = (many - self._counted[structure].gradients) / more
        if more > APART * less:
            slope = (many - few) / (more - less)
        slope = min(max(slope, LEAST_SLOPE * many / more), many / more)
        return round(many + slope * max(0, tokens - more)) + logits(labelled)

    def _fits(self, backbone: Backbone, structure: Structure, batch: Batch) -> bool:
        """Return whether a step on this batch leaves the system some memory; a GPU says itself when it has none."""
        free, needed = free_memory(backbone), self._carried(backbone, structure, batch)
        if backbone.device.type != "cpu" or free is None or needed is None:
            return True
        return needed < FREE_SHARE * (free - model_bytes(backbone))

    def _train_rows(self, backbone: Backbone, task: Task) -> TrainRows:
        key = id(task.train), (task.max_new_tokens, task.packed, backbone.encoder.state)
        if key not in self._rows:
            self._rows[key] = task.train, TrainRows.of(backbone, task)  # the rows are kept, and so is their id
        return self._rows[key][1]

    def _answer_lengths(self, backbone: Backbone, task: Task) -> AnswerLengths:
        key = id(task.test), (task.max_new_tokens, backbone.encoder.state)
        if key not in self._answers:
            self._answers[key] = task.test, AnswerLengths.of(backbone, task)
        return self._answers[key][1]


def _short_batch(dry_run: DryRun) -> Batch:
    """Make a batch of the two shortest rows that the dry run has, or of one of them if it is long."""
    rows = sorted(dry_run.rows, key=lambda row: len(row["input_ids"]))[:SMALL_BATCH_ROWS]
    rows = rows if len(rows[-1]["input_ids"]) * len(rows) <= SHORT_TOKENS else rows[:1]
    return dry_run.backbone.collate(rows).to(dry_run.backbone.device)


def _longest_batch(dry_run: DryRun, own: dict[str, Any]) -> Batch:
    """Make one device's share of a batch, all of whose rows are the longest of an item and of what is mixed in.

    Args:
        dry_run: At the item.
        own: The longest row of the item itself.
    """
    data, backbone = dry_run.assembly.config.data, dry_run.backbone
    longest = max([*dry_run.rows, own], key=lambda row: (len(row["input_ids"]), -row["prompt_length"]))
    count = data.batch_size
    if data.batch_tokens is not None:
        count = min(count, -(-data.batch_tokens // len(longest["input_ids"])))
    share = -(-count // dry_run.assembly.trainer(dry_run.name).world_size)
    return backbone.collate([longest] * share).to(backbone.device)


def _load(batch: Batch, backbone: Backbone) -> tuple[int, int]:
    """Count the tokens of a batch that are computed, padding among them unless the model skips it, and the labelled."""
    tokens = int(batch.attention_mask.sum()) if skips_padding(backbone.decoder) else batch.labels.numel()
    return tokens, int((batch.labels != IGNORED).sum())


def _check_first_step(dry_run: DryRun) -> None:
    """Refuse a first step on a CPU whose gradients and moments alone do not fit: the process would be killed.

    Raises:
        torch.OutOfMemoryError: They take more than is free.
    """
    backbone, optimizer, free = dry_run.backbone, dry_run.optimizer, free_memory(dry_run.backbone)
    if backbone.device.type != "cpu" or free is None:
        return
    freed = size_of(state_tensors(dry_run.stepped)) if dry_run.stepped else 0  # of the item before
    left, needed = free - model_bytes(backbone) + freed, first_step_bytes(optimizer)
    if needed > left:
        name = type(optimizer).__name__
        what = f"gradients and the state of {name} alone take {needed / 1e9:.3g} GB, and {left / 1e9:.3g} GB are free"
        raise torch.OutOfMemoryError(f"{what}; fewer trainable parameters, or an optimizer without moments, take less")
