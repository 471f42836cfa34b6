"""Measure the cost of training and scoring: optimizer steps, seconds and memory."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch.optim import Optimizer

from workbench.backbone import Backbone, Batch
from workbench.backbone.adapters import merged_to_score
from workbench.backbone.batch import IGNORED
from workbench.benchmark import Task
from workbench.errors import ConfigError
from workbench.runtime.environment import PeakMemory
from workbench.strategy import trainable_parameters
from workbench.study.build import Assembly
from workbench.study.dry_run import DryRun, size_of, state_tensors
from workbench.train import Sharded
from workbench.train.activation_cache import constant_parts, states_size
from workbench.train.data import EpochBatches
from workbench.train.module import accumulated_batches

MEMORY = Path("/proc/meminfo")
WARM_UP_STEPS = 1
CALIBRATION_TOKENS = 8
SAMPLE_ROWS = 64
FEWEST_TEXTS = 4
LONGEST_TEXTS = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a training step.

    Lightning clears the gradients of the step before only after the forward, so that all parts are held together then.
    What scoring takes is not among them.

    Args:
        weights: Parameters and buffers of the model, tied ones once.
        gradients: Of what trains.
        optimizer: Its state.
        activations: The rest of the measured peak: what the forward keeps for the backward, the loss, and temporary
            tensors. None: it cannot be measured here.
        frozen_states: States of frozen layers that are kept for a task's rows (`train.activation_cache`).
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int | None = 0
    frozen_states: int = 0

    @property
    def total(self) -> int:
        """Sum of the parts that are known."""
        return sum(filter(None, vars(self).values()))

    def __str__(self) -> str:
        size, unit, digits = (1e9, "GB", 1) if self.total >= 1e9 else (1e6, "MB", 0)
        known = {name: value for name, value in vars(self).items() if value is not None}
        if not self.frozen_states:
            del known["frozen_states"]
        parts = ", ".join(f"{name.replace('_', ' ')} {value / size:.{digits}f}" for name, value in known.items())
        about, rest = ("about", "") if self.activations is not None else ("at least", ", and the activations")
        return f"{about} {self.total / size:.{digits}f} {unit}: {parts}{rest}"

    def on_one_of(self, devices: int, sharded: bool) -> Memory:
        """Return one device's share of a model that trains on several; the activations are its own already.

        Sharded training divides gradients and optimizer state; the weights are whole on each device between its
        tasks. Otherwise each device has a second copy of the gradients, in which they are summed.
        """
        if devices == 1:
            return self
        if sharded:
            gradients, optimizer = -(-self.gradients // devices), -(-self.optimizer // devices)
            return replace(self, gradients=gradients, optimizer=optimizer)
        return replace(self, gradients=2 * self.gradients)


def count_steps(assembly: Assembly, name: str, task: Task) -> tuple[int, bool]:
    """Count the optimizer steps of an item.

    A text of a corpus counts as many rows as it has parts. Rows that the strategy mixes in are not counted.

    Returns:
        The steps, and whether rows come more than once.

    Raises:
        ConfigError: `limit_train_batches` leaves no batch.
    """
    trainer = assembly.trainer(name, task)
    batches = _batches(assembly, task)[0]
    limit = assembly.config.settings(name, task.name).trainer.get("limit_train_batches")
    if limit is not None:
        limited = min(batches, limit if isinstance(limit, int) else int(batches * limit))
        if not limited:
            message = f"trainer.limit_train_batches: {limit} of the {batches} batches of {task.name} is less than one"
            raise ConfigError([f"{message}. Choose at least {1 / batches:.2g}, or a number of batches."])
        batches = limited
    epochs, max_steps = assembly.length(name, task)
    per_epoch = [-(-batches // accumulated_batches(trainer, epoch)) for epoch in range(max(epochs, 1))]
    steps = sum(per_epoch) if epochs > 0 else max(max_steps, per_epoch[0])
    steps = min(steps, max_steps) if max_steps > 0 else steps
    return steps, steps > per_epoch[0]


def _batches(assembly: Assembly, task: Task) -> tuple[int, int]:
    """Batches of an epoch, and rows of one; where tokens decide, as if all rows were like the first ones."""
    data, rows = assembly.config.data, len(task.train)
    if not task.is_corpus and data.batch_tokens is None:
        return -(-rows // data.batch_size), data.batch_size
    sample = _first_encoded(assembly, task)
    if task.is_corpus:
        rows = max(1, round(rows * len(sample) / min(SAMPLE_ROWS, rows)))
    lengths = list(map(len, sample["input_ids"][:])) or [1]
    repeated = [lengths[row % len(lengths)] for row in range(rows)]
    batches = len(EpochBatches(repeated, data.batch_size, 0, data.bucket, data.batch_tokens))
    return batches, data.batch_size if data.batch_tokens is None else -(-rows // batches)


def _first_encoded(assembly: Assembly, task: Task) -> Dataset:
    first = task.train.select(range(min(SAMPLE_ROWS, len(task.train))))
    return assembly.backbone.encode(first, task.max_new_tokens, task.packed)


def frozen_states_bytes(assembly: Assembly, name: str, task: Task) -> int:
    """Estimate the bytes of frozen layers' states of an item's rows from the first ones; 0 where none are kept."""
    trainer = assembly.trainer(name)
    if trainer.world_size > 1 or isinstance(trainer.strategy, Sharded) or not assembly.config.data.frozen_states_gb:
        return 0
    encoded = _first_encoded(assembly, task)
    tokens = torch.cat([torch.tensor(row) for row in encoded["input_ids"]])
    size = states_size(constant_parts(assembly.backbone), tokens.to(assembly.backbone.device))
    return round(size * len(task.train) / min(SAMPLE_ROWS, len(task.train)))


class Sample(NamedTuple):
    """What the dry run uses of an item.

    Args:
        texts: Indices of the training rows: the first ones, and the longest ones.
        rows: Rows of the batch whose step is timed.
        share: One device's rows of a whole batch.
    """

    texts: list[int]
    rows: int
    share: int


def choose_sample(assembly: Assembly, name: str, task: Task) -> Sample:
    """Choose rows of an item whose steps cost as much as those of a run, and which hold its longest ones."""
    share = -(-_batches(assembly, task)[1] // assembly.trainer(name).world_size)
    rows = min(share, SAMPLE_ROWS)
    count = SAMPLE_ROWS * rows if task.packed else max(rows, FEWEST_TEXTS)  # a packed row may hold many texts
    columns = [task.train[name] for name in (("text",) if task.is_corpus else ("prompt", "answer"))]
    characters = [sum(map(len, texts)) for texts in zip(*columns, strict=True)]
    longest = heapq.nlargest(LONGEST_TEXTS, range(len(characters)), key=characters.__getitem__)
    first = range(min(count, len(characters)))
    return Sample([*first, *sorted(set(longest) - set(first))], rows, share)


def step_seconds(dry_run: DryRun, task: Task, sample: Sample) -> float:
    """Time an optimizer step on an item's first rows.

    A step has as many batches as gradients are accumulated over. One device's share of a batch is timed; of a large
    one a part is timed, and the seconds are in proportion to its rows.
    """
    backbone, rows = dry_run.backbone, _rows(dry_run)
    batch = backbone.collate(rows[: sample.rows]).to(backbone.device)
    for _ in range(0 if dry_run.warm else WARM_UP_STEPS):
        dry_run.step(batch)
    started = time.monotonic()
    dry_run.step(batch)
    _wait(backbone.device)
    spent = time.monotonic() - started
    accumulated = accumulated_batches(dry_run.assembly.trainer(dry_run.name, task), 0)
    return spent * accumulated * sample.share / sample.rows


def counted_memory(backbone: Backbone, optimizer: Optimizer) -> Memory:
    """Count weights, gradients and optimizer state.

    Args:
        backbone: The model.
        optimizer: After a step, so that its state exists.
    """
    trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return Memory(_model_bytes(backbone), size_of(trained), size_of(state_tensors(optimizer)))


Measured = dict[tuple[frozenset[str], int, int], int | None]
"""Activations of the items measured so far, by names of trainable parameters, tokens and labelled tokens."""


def step_memory(dry_run: DryRun, measured: Measured) -> Memory:
    """Return the memory of a step on a batch of rows as long as the item's longest.

    Weights, gradients and optimizer state are counted. The rest of the peak is measured in a real step, unless an item
    was measured before that trains the same parameters on at least as many tokens, labelled or not.

    Args:
        dry_run: After a step of the item, so that gradients and optimizer state exist.
        measured: Earlier items of the strategy; this one is added.
    """
    backbone, counted = dry_run.backbone, counted_memory(dry_run.backbone, dry_run.optimizer)
    batch, names = _longest_batch(dry_run), frozenset(trainable_parameters(backbone, dry_run.strategy))
    load = names, batch.labels.numel(), int((batch.labels != IGNORED).sum())
    covering = [item for item in measured if item[0] == names and item[1] >= load[1] and item[2] >= load[2]]
    if not covering:
        peak = PeakMemory(backbone.device, counted.total, collect=False)
        dry_run.step(batch)
        size = peak.bytes()
        measured[load] = None if size is None else max(0, size - counted.total)
    trainer = dry_run.assembly.trainer(dry_run.name)
    share = counted.on_one_of(trainer.world_size, isinstance(trainer.strategy, Sharded))
    return replace(share, activations=measured[covering[0] if covering else load])


def _model_bytes(backbone: Backbone) -> int:
    return size_of([*backbone.parameters(), *backbone.buffers()])


def _rows(dry_run: DryRun) -> list[dict[str, Any]]:
    encoded = dry_run.data.rows
    return [encoded[index] for index in range(len(encoded))] if encoded else []


def _longest_batch(dry_run: DryRun) -> Batch:
    """One device's share of a batch, all of whose rows are the longest one that the dry run has."""
    data, backbone = dry_run.assembly.config.data, dry_run.backbone
    longest = max(_rows(dry_run), key=lambda row: (len(row["input_ids"]), -row["prompt_length"]))
    count = data.batch_size
    if data.batch_tokens is not None:
        count = min(count, -(-data.batch_tokens // len(longest["input_ids"])))
    share = -(-count // dry_run.assembly.trainer(dry_run.name).world_size)
    return backbone.collate([longest] * share).to(backbone.device)


def free_memory(backbone: Backbone) -> int | None:
    """Bytes of the model's device that are free or taken by the model; None where the system does not say."""
    device = backbone.device
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused + _model_bytes(backbone)
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return None if free is None else free + _model_bytes(backbone)


def scoring_seconds(backbone: Backbone, tested: Sequence[Task]) -> float:
    """Time a batch of answers, one token each and several, and extend it to all prompts at their longest answers."""
    generated = [task for task in tested if not task.is_corpus]
    if not generated:
        return 0.0
    limits = {task.name: backbone.encoder.limits(task.max_new_tokens)[1] for task in generated}
    prompts = generated[0].test["prompt"][: backbone.eval_batch_size]
    most = min(1 + CALIBRATION_TOKENS, limits[generated[0].name])
    seconds = []
    with merged_to_score(backbone.model):
        for tokens in (1, most):
            started = time.monotonic()
            backbone.generate(prompts, tokens)
            _wait(backbone.device)
            seconds.append(time.monotonic() - started)
    first, all_tokens = seconds
    per_token = max(0.0, all_tokens - first) / max(1, most - 1)
    batches = [(-(-len(task.test) // backbone.eval_batch_size), limits[task.name]) for task in generated]
    # one pass for the first token, one for the likelihood of the right answer, and one for each further token
    return sum(count * (2 * first + tokens * per_token) for count, tokens in batches)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
