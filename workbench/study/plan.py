"""Plan of a study, printed before it starts: what trains, how long it takes and how much memory it needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from workbench.errors import ConfigError, describe_error, remedy
from workbench.executors import RunSpec
from workbench.formatting import duration
from workbench.runtime.seeding import preserved_random_state, seed_all
from workbench.study.build import Assembly
from workbench.study.dry_run import AllRowsNeeded, DryRun, scorer_problems
from workbench.study.measure import (
    Measured,
    Memory,
    choose_sample,
    count_steps,
    free_memory,
    frozen_states_bytes,
    scoring_seconds,
    step_memory,
    step_seconds,
)
from workbench.train import Sharded
from workbench.train.activation_cache import too_large
from workbench.train.evaluation import Reach
from workbench.train.loop import describe_trainable

LESS_MEMORY = (
    "Lower data.batch_size (or data.batch_tokens) and raise trainer.accumulate_grad_batches by the same factor."
)


@dataclass(frozen=True)
class StrategyEstimate:
    """Cost of one run of a strategy.

    Args:
        trainable: What trains, in words.
        steps: Optimizer steps, without those on rows that the strategy mixes in.
        train_seconds: Seconds of training; NaN: not measured.
        score_seconds: Seconds of scoring, if every answer were as long as it may be; NaN: not measured.
        memory: Of one device, at the item that takes most; None: nothing trains, or it was not measured.
        free: Bytes that the device has for it; None: the system does not say.
        too_large: Message about states of frozen layers that are not kept; "" if they are.
    """

    trainable: str
    steps: int
    train_seconds: float
    score_seconds: float
    memory: Memory | None = None
    free: int | None = None
    too_large: str = ""

    def __str__(self) -> str:
        train, score = duration(self.train_seconds), duration(self.score_seconds)
        text = f"trains {self.trainable}; {self.steps} steps; about {train} training, at most {score} scoring"
        if self.memory is None:
            return text
        text += f"; memory {self.memory}" + (f"; {self.too_large}" if self.too_large else "")
        if self.free is None or self.memory.total <= self.free:
            return text
        return f"{text}. That is more than the {self.free / 1e9:.1f} GB that are free. {LESS_MEMORY}"


@dataclass(frozen=True)
class Plan:
    """All runs of a study that are not finished.

    Args:
        runs: Number of runs of each strategy.
        tasks: Number of tasks in a run.
        columns: Number of tasks, probes and corpora that are scored.
        estimates: Cost of a run, by strategy.
        reaches: The tasks of which some right answers cannot be produced, or are compared as the tokenizer writes them.
    """

    runs: dict[str, int]
    tasks: int
    columns: int
    estimates: dict[str, StrategyEstimate]
    reaches: Sequence[Reach] = ()

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of training, and at most of scoring, of the whole study."""
        train = sum(self.runs[name] * estimate.train_seconds for name, estimate in self.estimates.items())
        score = sum(self.runs[name] * estimate.score_seconds for name, estimate in self.estimates.items())
        return train, score

    def __str__(self) -> str:
        total, shape = sum(self.runs.values()), f"{self.tasks + 1} × {self.columns}"
        runs, matrices = ("run", "score matrix") if total == 1 else ("runs", "score matrices")
        train, score = map(duration, self.seconds)
        return "\n".join(
            [
                f"Plan: {total} {runs} of {self.tasks} tasks; {total} {matrices} of {shape}",
                *(f"  {name}: {estimate}" for name, estimate in self.estimates.items()),
                f"  in all about {train} of training and at most {score} of scoring",
                *(f"  {reach}" for reach in self.reaches),
            ]
        )


def make_plan(assembly: Assembly, runs: Sequence[RunSpec]) -> Plan:
    """Take every strategy through a dry run on the real model, and put the model back.

    Args:
        assembly: Objects of the study.
        runs: The runs that are not finished.

    Raises:
        ConfigError: All that the strategies and optimizers refuse, and all that would fail later in a run.
    """
    data = assembly.data(next(iter(assembly.orders)), 0)
    estimates, problems = {}, assembly.length_problems()
    if refused := assembly.trainer_problems():
        raise ConfigError([*problems, *refused])
    timed = not problems
    with preserved_random_state():
        problems += scorer_problems(data.tested)
        for name in assembly.config.strategies:
            try:
                estimates[name] = _estimate(assembly, name, timed)
            except ConfigError as error:
                problems += error.problems
            except torch.OutOfMemoryError as error:
                reason = ". ".join(str(error).split(". ")[:2]).rstrip(".")  # the rest is advice on the allocator
                problems.append(f"strategies.{name}: a step needs more memory than there is: {reason}. {LESS_MEMORY}")
            except Exception as error:  # a stranger's hook may raise anything
                problems.append(f"strategies.{name}: {describe_error(error)}{remedy(error)}")
            assembly.backbone.restore()
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    counts = Counter(run.strategy for run in runs)
    estimates = {name: estimate for name, estimate in estimates.items() if name in counts}
    return Plan(dict(counts), len(data.tasks), len(data.tested), estimates, assembly.reaches)


def _estimate(assembly: Assembly, name: str, timed: bool) -> StrategyEstimate:
    """Estimate a strategy's cost from a dry run.

    A hook that fails on a few rows of an item gets them all before the strategy is refused. A model that is to be
    sharded, and does not fit on one device, is not timed.
    """
    lenient = (torch.OutOfMemoryError,) if isinstance(assembly.trainer(name).strategy, Sharded) else ()
    try:
        return _dry_run(assembly, name, timed)
    except AllRowsNeeded:
        assembly.backbone.restore()
        return _dry_run(assembly, name, timed, all_rows=True)
    except lenient:
        assembly.backbone.restore()
        return _dry_run(assembly, name, timed=False)


def _dry_run(assembly: Assembly, name: str, timed: bool, all_rows: bool = False) -> StrategyEstimate:
    """Take a strategy through its curriculum.

    Args:
        assembly: Objects of the study.
        name: Of the strategy.
        timed: Call the hooks with rows and take steps; otherwise only structure and settings are tried.
        all_rows: Give the hooks all rows of each item.
    """
    seed_all(0, "plan")
    dry_run = DryRun(assembly, name, all_rows)
    backbone, strategy = dry_run.backbone, dry_run.strategy
    items = dry_run.setup()
    free, limit = free_memory(backbone), assembly.config.data.frozen_states_gb
    steps, seconds, problems = 0, 0.0, dict[str, None]()
    memory, states, measured, trainable = list[Memory](), [0], Measured(), ""
    for position, task in enumerate(items):
        sample, learns = choose_sample(assembly, name, task), timed and not problems
        if learns:
            dry_run.begin(position, task, sample.texts)
        else:
            strategy.before_task(backbone, task, [])
        trainable = describe_trainable(backbone, strategy)  # `after_task` may freeze, or merge, what was trained
        count, repeated = count_steps(assembly, name, task)
        steps += count
        states.append(frozen_states_bytes(assembly, name, task) if repeated else 0)
        problems |= dict.fromkeys(dry_run.build_optimizer(task, count))
        learns = learns and not problems
        if learns and dry_run.trains:
            seconds += count * step_seconds(dry_run, task, sample)
            kept = states[-1] if states[-1] <= limit * 1e9 else 0
            memory.append(replace(step_memory(dry_run, measured), frozen_states=kept))
        problems |= dict.fromkeys(dry_run.try_scheduler(task, count))
        if learns and not problems:
            dry_run.end()
    if problems:
        raise ConfigError(problems)
    trainable, scoring = trainable or describe_trainable(backbone, strategy), math.nan
    if timed:
        with dry_run.module.scoring_context():
            scoring = (len(dry_run.data.tasks) + 1) * scoring_seconds(backbone, dry_run.data.tested)
        dry_run.finish()
    most = max(memory, key=lambda item: item.total, default=None)
    message = too_large(max(states), limit) if max(states) > limit * 1e9 else ""
    return StrategyEstimate(trainable, steps, seconds if timed else math.nan, scoring, most, free, message)
