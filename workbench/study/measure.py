"""Measure the cost of training and scoring: optimizer steps, seconds and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from torch.optim import Optimizer

from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.errors import ConfigError
from workbench.study.build import Assembly
from workbench.study.dry_run import FIRST_ROWS, shortest, size_of, state_tensors
from workbench.train import Sharded
from workbench.train.activation_cache import constant_parts, states_size
from workbench.train.data import EpochBatches
from workbench.train.module import accumulated_batches

MEMORY = Path("/proc/meminfo")
"""File in which Linux says how much memory is free."""
HOOK_ROWS = 6
"""Rows of an item that the hooks get."""
TIMED_ROWS = 64
"""Most rows of a batch whose step is timed."""
CHARACTERS = 6
"""Of a token, at most, where texts are packed."""


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
        rows = max(1, round(rows * len(sample) / min(FIRST_ROWS, rows)))
    lengths = list(map(len, sample["input_ids"][:])) or [1]
    repeated = [lengths[row % len(lengths)] for row in range(rows)]
    batches = len(EpochBatches(repeated, data.batch_size, 0, data.bucket, data.batch_tokens))
    return batches, data.batch_size if data.batch_tokens is None else -(-rows // batches)


def _first_encoded(assembly: Assembly, task: Task) -> Dataset:
    first = task.train.select(range(min(FIRST_ROWS, len(task.train))))
    return assembly.backbone.encode(first, task.max_new_tokens, task.packed)


def frozen_states_bytes(assembly: Assembly, name: str, task: Task) -> int:
    """Estimate the bytes of frozen layers' states of an item's rows from the first ones; 0 where none are kept."""
    trainer = assembly.trainer(name)
    if trainer.world_size > 1 or isinstance(trainer.strategy, Sharded) or not assembly.config.data.frozen_states_gb:
        return 0
    encoded = _first_encoded(assembly, task)
    tokens = torch.cat([torch.tensor(row) for row in encoded["input_ids"]])
    size = states_size(constant_parts(assembly.backbone), tokens.to(assembly.backbone.device))
    return round(size * len(task.train) / min(FIRST_ROWS, len(task.train)))


class Sample(NamedTuple):
    """What the dry run uses of an item.

    Args:
        texts: Indices of the training rows that the hooks get: a few short ones.
        rows: Rows of the batch whose step is timed.
        share: One device's rows of a whole batch.
    """

    texts: list[int]
    rows: int
    share: int


def choose_sample(assembly: Assembly, name: str, task: Task) -> Sample:
    """Choose a few short rows of an item, and say how many rows one device's share of a batch has."""
    share = -(-_batches(assembly, task)[1] // assembly.trainer(name).world_size)
    texts = shortest(task.train, HOOK_ROWS)
    if task.packed:  # several texts make a row
        encoder = assembly.backbone.encoder
        wanted = HOOK_ROWS * CHARACTERS * (encoder.policy.max_length or encoder.positions)
        ends = accumulate(map(len, task.train["text"][:]))
        texts = list(range(1 + sum(1 for _ in takewhile(lambda end: end < wanted, ends))))[: len(task.train)]
    return Sample(texts, min(share, TIMED_ROWS), share)


def counted_memory(backbone: Backbone, optimizer: Optimizer) -> Memory:
    """Count weights, gradients and optimizer state.

    Args:
        backbone: The model.
        optimizer: After a step, so that its state exists.
    """
    trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return Memory(model_bytes(backbone), size_of(trained), size_of(state_tensors(optimizer)))


def first_step_bytes(optimizer: Optimizer) -> int:
    """Bytes that an optimizer's first step adds to the weights: gradients that do not exist yet, and Adam's moments.

    Args:
        optimizer: Before a step. The state of one whose class is not named after Adam is not known, and not counted.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = 2 * size_of(trained) if "adam" in type(optimizer).__name__.lower() else 0
    return size_of(parameter for parameter in trained if parameter.grad is None) + moments


def model_bytes(backbone: Backbone) -> int:
    """Bytes of the model's parameters and buffers, tied ones once."""
    return size_of([*backbone.parameters(), *backbone.buffers()])


def free_memory(backbone: Backbone) -> int | None:
    """Bytes of the model's device that are free or taken by the model; None where the system does not say."""
    device = backbone.device
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused + model_bytes(backbone)
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return None if free is None else free + model_bytes(backbone)
