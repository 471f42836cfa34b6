"""What a study will do and how long that may take, told before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from datasets import Dataset
from torch.optim import Optimizer

from workbench.assembly import Assembly
from workbench.backbone import Backbone
from workbench.batches import EpochBatches
from workbench.benchmark import Task
from workbench.config import ConfigError
from workbench.course import describe_trainable
from workbench.display import duration
from workbench.frozen import constant_parts, states_size, too_large
from workbench.memory import Memory, free_memory, size_of, step_memory
from workbench.seeding import seed_all, untouched_randomness
from workbench.sharding import Sharded

CALIBRATION_STEPS = 3
CALIBRATION_TOKENS = 8
SAMPLE_ROWS = 64
LONGEST_ROWS = 8


class PlannedRun(Protocol):
    """What a plan has to know of a run."""

    @property
    def strategy(self) -> str: ...


@dataclass(frozen=True)
class StrategyEstimate:
    """One strategy's share of the work.

    Args:
        trainable: What trains, in words.
        steps: Optimizer steps of one run, without those over rows that the strategy mixes in.
        train_seconds: Of one run.
        score_seconds: Of one run, if every answer were as long as it may be.
        memory: Of one device, at the item that takes most; None: nothing trains, or it was not measured.
        free: Bytes that the device has for it; None: it does not tell.
        too_large: What a person is told of states of frozen layers that are not kept.
    """

    trainable: str
    steps: int
    train_seconds: float
    score_seconds: float
    memory: Memory | None = None
    free: int | None = None
    too_large: str = ""

    @property
    def remarks(self) -> str:
        """The memory, and a warning where there is less."""
        if self.memory is None:
            return ""
        told = f"; memory about {self.memory}" + (f"; {self.too_large}" if self.too_large else "")
        if self.free is None or self.memory.total <= self.free:
            return told
        remedy = (
            "Lower data.batch_size (or data.batch_tokens) and raise trainer.accumulate_grad_batches by the same factor."
        )
        return f"{told}. That is more than the {self.free / 1e9:.1f} GB that are free. {remedy}"


@dataclass(frozen=True)
class Plan:
    """All runs of a study that are still to be made.

    Args:
        runs: How many of each strategy.
        tasks: In one run.
        columns: Tasks, probes and corpora that are scored.
        estimates: By strategy.
    """

    runs: dict[str, int]
    tasks: int
    columns: int
    estimates: dict[str, StrategyEstimate]

    @property
    def seconds(self) -> tuple[float, float]:
        """Training, and at most so much scoring, of the whole study."""
        train = sum(self.runs[name] * estimate.train_seconds for name, estimate in self.estimates.items())
        score = sum(self.runs[name] * estimate.score_seconds for name, estimate in self.estimates.items())
        return train, score

    def __str__(self) -> str:
        total = sum(self.runs.values())
        cells = total * self.columns * (self.tasks + 1)
        lines = [f"Plan: {total} runs of {self.tasks} tasks; {cells} cells of {self.tasks + 1} x {self.columns} each"]
        for name, estimate in self.estimates.items():
            train, score = duration(estimate.train_seconds), duration(estimate.score_seconds)
            lines.append(
                f"  {name}: trains {estimate.trainable}; {estimate.steps} steps; "
                f"about {train} training, at most {score} scoring{estimate.remarks}"
            )
        train_total, score_total = self.seconds
        lines.append(
            f"  in all about {duration(train_total)} of training and at most {duration(score_total)} of scoring"
        )
        return "\n".join(lines)


def make_plan(assembly: Assembly, runs: Sequence[PlannedRun]) -> Plan:
    """Sets each strategy up once on the real model, times a few steps, and puts the model back.

    Raises:
        ConfigError: What the strategies and optimizers refuse, all at once.
    """
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.strategy] = counts.get(run.strategy, 0) + 1
    data = assembly.data(next(iter(assembly.orders)), 0)
    estimates, problems = {}, assembly.length_problems()
    if refused := assembly.trainer_problems():
        raise ConfigError([*problems, *refused])
    misfit = bool(problems)
    with untouched_randomness():
        for name in assembly.config.strategies:
            try:
                estimates[name] = _estimate_or_count(assembly, name, timed=not misfit)
            except ConfigError as error:
                problems += error.problems
            except (ValueError, TypeError, torch.OutOfMemoryError) as error:
                problems.append(f"strategies.{name}: {error}")
            assembly.backbone.restore()
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    chosen = {name: estimate for name, estimate in estimates.items() if name in counts}
    return Plan(counts, len(data.tasks), len(data.tested), chosen)


def _estimate_or_count(assembly: Assembly, name: str, timed: bool) -> StrategyEstimate:
    """As `_estimate`; where a model that is to be sharded does not fit on one device, no step is tried on it."""
    sharded = isinstance(assembly.trainer(name).strategy, Sharded)
    mended = (torch.OutOfMemoryError,) if sharded else ()
    try:
        return _estimate(assembly, name, timed)
    except mended:
        assembly.backbone.restore()
        return _estimate(assembly, name, timed=False)


def _estimate(assembly: Assembly, name: str, timed: bool) -> StrategyEstimate:
    precision = assembly.trainer(name).precision_plugin
    backbone = assembly.backbone.to(assembly.device)
    precision.convert_module(backbone)
    seed_all(0, "plan")
    strategy = assembly.strategy(name)
    strategy.setup(backbone)
    data = assembly.data(next(iter(assembly.orders)), 0)
    training = [task for task in strategy.curriculum(data.tasks, data.general) if len(task.train)]
    steps, train, memory, problems, states = 0, 0.0, list[Memory](), dict[str, None](), [0]
    held = size_of([*backbone.parameters(), *backbone.buffers()])
    free, limit = free_memory(backbone.device), assembly.config.data.frozen_states_gb
    for position, task in enumerate(training):
        strategy.before_task(backbone, task, [])
        count, again = _steps(assembly, name, task)
        steps += count
        states.append(_frozen_states(assembly, name, task) if again else 0)
        problems |= dict.fromkeys(_optimizer_problems(assembly, name, task, count))
        if timed and not problems:
            with precision.forward_context():
                seconds, optimizer = _calibrated(assembly, name, task, warm=position > 0)
                train += count * seconds
                kept = states[-1] if states[-1] <= limit * 1e9 else 0
                memory += [replace(_memory(assembly, name, task, optimizer), frozen_states=kept)] if optimizer else []
    if problems:
        raise ConfigError(problems)
    train, score = (train, 0.0) if timed else (math.nan, math.nan)
    if timed:
        with precision.forward_context():
            score = (len(data.tasks) + 1) * _seconds_per_row(assembly, data.tested)
    most = max(memory, key=lambda item: item.total, default=None)
    left = None if free is None else free + held
    told = too_large(max(states), limit) if max(states) > limit * 1e9 else ""
    return StrategyEstimate(describe_trainable(backbone), steps, train, score, most, left, told)


def _steps(assembly: Assembly, name: str, task: Task) -> tuple[int, bool]:
    """Optimizer steps of an item, whose texts count as many rows as they have parts; and whether rows come again."""
    trainer = assembly.config.settings(name, task.name).trainer
    per_epoch = -(-_batches(assembly, task)[0] // int(trainer.get("accumulate_grad_batches") or 1))
    epochs, most = assembly.length(name, task)
    total = per_epoch * epochs if epochs > 0 else max(most, per_epoch)
    total = min(total, most) if most > 0 else total
    return total, total > per_epoch


def _frozen_states(assembly: Assembly, name: str, task: Task) -> int:
    """Bytes of what frozen layers make of an item's rows, told from some of them; 0 where nobody wants to keep it."""
    trainer = assembly.trainer(name)
    if trainer.world_size > 1 or isinstance(trainer.strategy, Sharded) or not assembly.config.data.frozen_states_gb:
        return 0
    sample = task.train.select(range(min(SAMPLE_ROWS, len(task.train))))
    tokens = torch.cat([torch.tensor(row) for row in _encoded(assembly, task, sample)["input_ids"]])
    size = states_size(constant_parts(assembly.backbone), tokens.to(assembly.backbone.device))
    return round(size * len(task.train) / len(sample))


def _batches(assembly: Assembly, task: Task) -> tuple[int, int]:
    """Batches of an epoch, and rows of one; by number of tokens, as if all rows were like the first ones."""
    data, rows = assembly.config.data, len(task.train)
    if not task.is_corpus and data.batch_tokens is None:
        return -(-rows // data.batch_size), data.batch_size
    sample = _encoded(assembly, task, task.train.select(range(min(SAMPLE_ROWS, rows))))
    if task.is_corpus:
        rows = max(1, round(rows * len(sample) / min(SAMPLE_ROWS, rows)))
    lengths = list(map(len, sample["input_ids"][:])) or [1]
    repeated = [lengths[row % len(lengths)] for row in range(rows)]
    batches = len(EpochBatches(repeated, data.batch_size, 0, data.bucket, data.batch_tokens))
    return batches, data.batch_size if data.batch_tokens is None else -(-rows // batches)


def _encoded(assembly: Assembly, task: Task, rows: Dataset) -> Dataset:
    return assembly.backbone.encode(rows, task.max_new_tokens, task.packed)


def _optimizer_problems(assembly: Assembly, name: str, task: Task, steps: int) -> list[str]:
    """Builds an item's optimizer and scheduler once, so that a wrong one is known before a folder is made."""
    parameters = list(assembly.backbone.trainable().values())
    try:
        if parameters:
            assembly.optimizer_factory(name)(task.name, parameters, lambda: steps)
    except ConfigError as error:
        return error.problems
    return []


def _calibrated(assembly: Assembly, name: str, task: Task, warm: bool) -> tuple[float, Optimizer | None]:
    """Seconds of a step, and the optimizer that made it; None where nothing trains.

    Times real steps on an item's first rows; they change the model, which is put back after the strategy's estimate.

    A step is as many batches as gradients are accumulated over; a large batch, one device's share of it, is carried
    over from a part.
    """
    backbone = assembly.backbone
    share = -(-_batches(assembly, task)[1] // assembly.trainer(name).world_size)
    size = min(share, SAMPLE_ROWS)
    parameters = list(backbone.trainable().values())
    if not parameters:
        return 0.0, None
    optimizer, _ = assembly.optimizer_factory(name)(task.name, parameters, lambda: CALIBRATION_STEPS)
    texts = SAMPLE_ROWS * size if task.packed else size  # a row may hold many of them
    sample = task.train.select(range(min(texts, len(task.train))))
    batch = backbone.collate(_encoded(assembly, task, sample).to_list()[:size]).to(backbone.device)
    spent = 0.0
    for _ in range(1 if warm else CALIBRATION_STEPS):  # the first step of all also warms up
        started = time.monotonic()
        optimizer.zero_grad()
        backbone(batch).loss.backward()
        optimizer.step()
        _wait(backbone.device)
        spent = time.monotonic() - started
    accumulated = int(assembly.config.settings(name, task.name).trainer.get("accumulate_grad_batches") or 1)
    return spent * accumulated * share / size, optimizer


def _memory(assembly: Assembly, name: str, task: Task, optimizer: Optimizer) -> Memory:
    """What a step takes whose rows are all as long as the item's longest, judged by their characters."""
    backbone, trainer = assembly.backbone, assembly.trainer(name)
    columns = [task.train[name] for name in (("text",) if task.is_corpus else ("prompt", "answer"))]
    lengths = [sum(map(len, texts)) for texts in zip(*columns, strict=True)]
    likely = sorted(range(len(lengths)), key=lengths.__getitem__)[-LONGEST_ROWS:]
    rows = _encoded(assembly, task, task.train.select(likely)).to_list()
    row = max(rows, key=lambda row: len(row["input_ids"]))
    shared = trainer.strategy if isinstance(trainer.strategy, Sharded) else None
    data, longest = assembly.config.data, len(row["input_ids"])
    fitting = data.batch_size if data.batch_tokens is None else min(data.batch_size, -(-data.batch_tokens // longest))
    count = -(-fitting // trainer.world_size)
    step = step_memory(backbone, optimizer, row, count, bool(shared and shared.activation_checkpointing))
    return step.over(trainer.world_size, shared is not None)


def _seconds_per_row(assembly: Assembly, tested: Sequence[Task]) -> float:
    """Times a batch of answers, short and longer, and carries it over to all prompts at their longest."""
    backbone = assembly.backbone
    generated = [task for task in tested if not task.is_corpus]
    if not generated:
        return 0.0
    prompts = generated[0].test["prompt"][: backbone.eval_batch_size]
    with backbone.merged():
        short, longer = (_timed(backbone, prompts, tokens) for tokens in (1, 1 + CALIBRATION_TOKENS))
    per_token = max(0.0, longer - short) / CALIBRATION_TOKENS
    limits = {task.name: backbone.encoder.limits(task.max_new_tokens)[1] for task in generated}
    batches = [(-(-len(task.test) // backbone.eval_batch_size), limits[task.name]) for task in generated]
    # one pass for the first token, one for the likelihood of the right answer, and one for each further token
    return sum(count * (2 * short + tokens * per_token) for count, tokens in batches)


def _timed(backbone: Backbone, prompts: Sequence[str], tokens: int) -> float:
    started = time.monotonic()
    backbone.generate(prompts, tokens)
    _wait(backbone.device)
    return time.monotonic() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
