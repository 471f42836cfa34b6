"""Dry run of a study: what trains, how long it takes and how much memory it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from workbench.errors import ConfigError, describe_error, remedy
from workbench.formatting import duration
from workbench.runtime.seeding import preserved_random_state, seed_all
from workbench.strategy import OWN, checked_items, trainable_parameters
from workbench.study.build import Assembly
from workbench.study.calibration import (
    frozen_states,
    memory_of,
    optimizer_problems,
    sample_of,
    scoring_seconds,
    step_seconds,
    steps_of,
)
from workbench.study.dry_run import AllRowsNeeded, Rehearsal, scorer_problems
from workbench.study.memory import Memory, free_memory, size_of
from workbench.train import Sharded
from workbench.train.activation_cache import too_large
from workbench.train.evaluation import Reach
from workbench.train.loop import describe_trainable


class PlannedRun(Protocol):
    """What a plan has to know of a run."""

    @property
    def strategy(self) -> str:
        """The name of its strategy in the config."""


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
        reaches: The tasks of which some right answers cannot be given, or are compared as the tokenizer writes them.
    """

    runs: dict[str, int]
    tasks: int
    columns: int
    estimates: dict[str, StrategyEstimate]
    reaches: Sequence[Reach] = ()

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
        return "\n".join([*lines, *(f"  {reach}" for reach in self.reaches)])


def make_plan(assembly: Assembly, runs: Sequence[PlannedRun]) -> Plan:
    """Sets each strategy up once on the real model, times a few steps, rehearses the rest, and puts the model back.

    Raises:
        ConfigError: What the strategies and optimizers refuse, and what would fail in a run later, all at once.
    """
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.strategy] = counts.get(run.strategy, 0) + 1
    data = assembly.data(next(iter(assembly.orders)), 0)
    estimates, problems = {}, assembly.length_problems()
    if refused := assembly.trainer_problems():
        raise ConfigError([*problems, *refused])
    misfit = bool(problems)
    with preserved_random_state():
        problems += scorer_problems(data.tested)
        for name in assembly.config.strategies:
            try:
                estimates[name] = _estimate_or_count(assembly, name, timed=not misfit)
            except ConfigError as error:
                problems += error.problems
            except torch.OutOfMemoryError as error:
                problems.append(f"strategies.{name}: {error}")
            except Exception as error:  # a stranger's hook may raise anything
                problems.append(f"strategies.{name}: {describe_error(error)}{remedy(error)}")
            assembly.backbone.restore()
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    chosen = {name: estimate for name, estimate in estimates.items() if name in counts}
    return Plan(counts, len(data.tasks), len(data.tested), chosen, assembly.reaches)


def _estimate_or_count(assembly: Assembly, name: str, timed: bool) -> StrategyEstimate:
    """As `_estimate`; where a model that is to be sharded does not fit on one device, no step is tried on it.

    A hook that fails on a few rows of each task gets them all before it is refused.
    """
    sharded = isinstance(assembly.trainer(name).strategy, Sharded)
    mended = (torch.OutOfMemoryError,) if sharded else ()
    try:
        return _estimate(assembly, name, timed)
    except AllRowsNeeded:
        assembly.backbone.restore()
        return _estimate(assembly, name, timed, whole=True)
    except mended:
        assembly.backbone.restore()
        return _estimate(assembly, name, timed=False)


def _unsharded(assembly: Assembly, name: str, trainable: Iterable[str]) -> list[str]:
    """Parameters of a strategy's own, whose gradients nobody would sum where the backbone alone is sharded."""
    own = [parameter for parameter in trainable if parameter.startswith(f"{OWN}.")]
    if not own or not isinstance(assembly.trainer(name).strategy, Sharded):
        return []
    return [f"strategies.{name}: {own[0]} is the strategy's own and is not sharded. Give trainer.strategy=ddp."]


def _estimate(assembly: Assembly, name: str, timed: bool, whole: bool = False) -> StrategyEstimate:
    precision = assembly.trainer(name).precision_plugin
    seed_all(0, "plan")
    rehearsal = Rehearsal(assembly, name, whole)
    backbone, strategy = rehearsal.backbone, rehearsal.strategy
    strategy.setup(backbone)
    data = rehearsal.data
    items = checked_items(strategy, strategy.curriculum(data.tasks, data.general))
    training = [task for task in items if len(task.train)]
    steps, train, memory, problems, states = 0, 0.0, list[Memory](), dict[str, None](), [0]
    optimizer = scheduler = None
    held = size_of([*backbone.parameters(), *backbone.buffers()])
    free, limit = free_memory(backbone.device), assembly.config.data.frozen_states_gb
    for position, task in enumerate(training):
        sample = sample_of(assembly, name, task)
        if timed and not problems:
            rehearsal.begin(position, task, sample.texts)
        else:
            strategy.before_task(backbone, task, [])
        count, again = steps_of(assembly, name, task)
        steps += count
        states.append(frozen_states(assembly, name, task) if again else 0)
        named = trainable_parameters(backbone, strategy)
        problems |= dict.fromkeys(_unsharded(assembly, name, named))
        parameters = list(named.values())
        problems |= dict.fromkeys(optimizer_problems(assembly, name, task, parameters, count))
        if timed and not problems:
            with precision.forward_context():
                seconds, optimizer, scheduler = step_seconds(assembly, strategy, name, task, sample, position > 0)
                train += count * seconds
                kept = states[-1] if states[-1] <= limit * 1e9 else 0
                memory += [replace(memory_of(assembly, name, task, optimizer), frozen_states=kept)] if optimizer else []
            rehearsal.end()
    if problems:
        raise ConfigError(problems)
    train, score = (train, 0.0) if timed else (math.nan, math.nan)
    trainable = describe_trainable(backbone, strategy)
    if timed:
        with precision.forward_context():
            score = (len(data.tasks) + 1) * scoring_seconds(assembly, data.tested)
        rehearsal.finish(optimizer, scheduler)
    most = max(memory, key=lambda item: item.total, default=None)
    left = None if free is None else free + held
    told = too_large(max(states), limit) if max(states) > limit * 1e9 else ""
    return StrategyEstimate(trainable, steps, train, score, most, left, told)
