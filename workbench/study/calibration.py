"""What steps, answers and memory cost here: counted where that is enough, else tried on the real model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from workbench.backbone import Backbone
from workbench.backbone.adapters import merged_to_score
from workbench.benchmark import Task
from workbench.errors import ConfigError, in_words
from workbench.strategy import ContinualStrategy, checked_penalties, trainable_parameters
from workbench.study.build import Assembly, counting_arguments
from workbench.study.memory import Memory, step_memory
from workbench.train import Sharded
from workbench.train.activation_cache import constant_parts, states_size
from workbench.train.data import EpochBatches
from workbench.train.module import accumulated_batches

CALIBRATION_STEPS = 3
CALIBRATION_TOKENS = 8
SAMPLE_ROWS = 64
LONGEST_ROWS = 8
MOST_TRIED = 10_000  # steps of a scheduler: a fraction of a second


def steps_of(assembly: Assembly, name: str, task: Task) -> tuple[int, bool]:
    """Optimizer steps of an item, whose texts count as many rows as they have parts; and whether rows come again.

    Raises:
        ConfigError: `limit_train_batches` leaves no batch.
    """
    trainer = assembly.trainer(name, task)
    limit = assembly.config.settings(name, task.name).trainer.get("limit_train_batches")
    batches = _limited(_batches(assembly, task)[0], limit, task.name)
    epochs, most = assembly.length(name, task)
    per_epoch = [-(-batches // accumulated_batches(trainer, epoch)) for epoch in range(max(epochs, 1))]
    total = sum(per_epoch) if epochs > 0 else max(most, per_epoch[0])
    total = min(total, most) if most > 0 else total
    return total, total > per_epoch[0]


def frozen_states(assembly: Assembly, name: str, task: Task) -> int:
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


def _limited(batches: int, limit: Any, task: str) -> int:
    """Batches of an epoch that are trained on: at most so many, or a share of them."""
    limited = batches if limit is None else min(batches, limit if isinstance(limit, int) else int(batches * limit))
    if not limited:
        told = f"trainer.limit_train_batches: {limit} of the {batches} batches of {task} is less than one"
        raise ConfigError([f"{told}. Choose at least {1 / batches:.2g}, or a number of batches."])
    return limited


def _encoded(assembly: Assembly, task: Task, rows: Dataset) -> Dataset:
    return assembly.backbone.encode(rows, task.max_new_tokens, task.packed)


def optimizer_problems(
    assembly: Assembly, name: str, task: Task, parameters: Sequence[Parameter], steps: int
) -> list[str]:
    """Builds an item's optimizer and scheduler once, and steps the scheduler as often as the item will, at most.

    So what is wrong with them is known before a folder is made.
    """
    chosen = assembly.config.settings(name, task.name).scheduler
    epochs, most = assembly.length(name, task)
    if chosen and epochs < 0 and most < 0 and (counted := counting_arguments(chosen)):
        told = f"{counted[0]} is the number of a task's steps, which nobody knows where max_time alone limits them"
        return [f"scheduler: {told}. Give scheduler.init_args.{counted[0]}, or trainer.max_steps."]
    if not parameters:
        return []
    try:
        _, scheduler = assembly.optimizer_factory(name)(task.name, list(parameters), lambda: steps)
    except ConfigError as error:
        return error.problems
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing steps the optimizer
            for _ in range(min(steps, MOST_TRIED) if scheduler else 0):
                scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    except Exception as error:
        return in_words(error, "scheduler", chosen.class_path if chosen else "")
    return []


class Sample(NamedTuple):
    """What is tried of an item: its first texts, the rows of a batch that they make, and a device's rows of a batch."""

    texts: int
    rows: int
    share: int


def sample_of(assembly: Assembly, name: str, task: Task) -> Sample:
    """How much of an item is tried to tell what its steps take."""
    share = -(-_batches(assembly, task)[1] // assembly.trainer(name).world_size)
    rows = min(share, SAMPLE_ROWS)
    texts = SAMPLE_ROWS * rows if task.packed else rows  # a row may hold many of them
    return Sample(min(texts, len(task.train)), rows, share)


def step_seconds(
    assembly: Assembly, strategy: ContinualStrategy, name: str, task: Task, sample: Sample, warm: bool
) -> tuple[float, Optimizer | None, Any]:
    """Seconds of a step, and the optimizer and the scheduler of the item; no optimizer where nothing trains.

    Times real steps on an item's first rows, with the strategy's penalties and edits of the gradients; they change the
    model, which is put back after the strategy's estimate.

    A step is as many batches as gradients are accumulated over; a large batch, one device's share of it, is carried
    over from a part.
    """
    backbone = assembly.backbone
    parameters = list(trainable_parameters(backbone, strategy).values())
    if not parameters:
        return 0.0, None, None
    optimizer, scheduler = assembly.optimizer_factory(name)(task.name, parameters, lambda: CALIBRATION_STEPS)
    rows = _encoded(assembly, task, task.train.select(range(sample.texts))).to_list()[: sample.rows]
    batch = backbone.collate(rows).to(backbone.device)
    spent = 0.0
    for _ in range(1 if warm else CALIBRATION_STEPS):  # the first step of all also warms up
        started = time.monotonic()
        optimizer.zero_grad()
        output = backbone(batch)
        penalties = checked_penalties(strategy, strategy.penalties(backbone, batch, output))
        sum(penalties.values(), output.loss).backward()
        strategy.edit_gradients(backbone)
        _step(assembly, name, task, optimizer)
        _wait(backbone.device)
        spent = time.monotonic() - started
    accumulated = accumulated_batches(assembly.trainer(name, task), 0)
    return spent * accumulated * sample.share / sample.rows, optimizer, scheduler


def _step(assembly: Assembly, name: str, task: Task, optimizer: Optimizer) -> None:
    """Steps an optimizer, whose failure is the config's fault unless there is too little memory."""
    try:
        optimizer.step()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        class_path = assembly.config.settings(name, task.name).optimizer.class_path
        raise ConfigError(in_words(error, "optimizer", class_path)) from error


def memory_of(assembly: Assembly, name: str, task: Task, optimizer: Optimizer) -> Memory:
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
    step = step_memory(backbone, optimizer, row, count)
    return step.over(trainer.world_size, shared is not None)


def scoring_seconds(assembly: Assembly, tested: Sequence[Task]) -> float:
    """Times a batch of answers, short and longer, and carries it over to all prompts at their longest."""
    backbone = assembly.backbone
    generated = [task for task in tested if not task.is_corpus]
    if not generated:
        return 0.0
    limits = {task.name: backbone.encoder.limits(task.max_new_tokens)[1] for task in generated}
    prompts = generated[0].test["prompt"][: backbone.eval_batch_size]
    with merged_to_score(backbone.model):
        most = min(1 + CALIBRATION_TOKENS, limits[generated[0].name])
        short, longer = (_timed(backbone, prompts, tokens) for tokens in (1, most))
    per_token = max(0.0, longer - short) / max(1, most - 1)
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
