"""Plan of a study, printed before it starts: what trains, how long it takes and how much memory it needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import torch

from workbench.display import Display
from workbench.errors import ConfigError, describe_error, remedy
from workbench.executors import RunSpec
from workbench.formatting import duration
from workbench.runtime.seeding import preserved_random_state, seed_all
from workbench.study.build import Assembly
from workbench.study.costs import Costs
from workbench.study.dry_run import AllRowsNeeded, DryRun, scorer_problems
from workbench.study.measure import (
    Memory,
    choose_sample,
    count_steps,
    free_memory,
    frozen_states_bytes,
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
        score_seconds: Seconds of scoring after each task, if answers are about as long as the right ones; NaN: not
            measured.
        memory: Of one device, at the item that takes most; None: nothing trains, or it was not measured.
        free: Bytes that the device has for it; None: the system does not say.
        too_large: Message about states of frozen layers that are not kept; "" if they are.
        zero_shot_seconds: Seconds of scoring the model as loaded, which all runs share, if every answer is as long as
            it may be.
    """

    trainable: str
    steps: int
    train_seconds: float
    score_seconds: float
    memory: Memory | None = None
    free: int | None = None
    too_large: str = ""
    zero_shot_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of one run; NaN: not measured."""
        return self.train_seconds + self.score_seconds

    def __str__(self) -> str:
        train, score = duration(self.train_seconds), duration(self.score_seconds)
        text = f"trains {self.trainable}; {self.steps} steps; about {train} training, {score} scoring"
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
        cores: Threads that compute; 0: a GPU does.
    """

    runs: dict[str, int]
    tasks: int
    columns: int
    estimates: dict[str, StrategyEstimate]
    reaches: Sequence[Reach] = ()
    cores: int = 0

    @property
    def zero_shot_seconds(self) -> float:
        """Seconds of scoring the model as loaded, once, even if its scores exist from a study before.

        Strategies that add weights estimate it from a larger model, so that the smallest estimate is the closest.
        """
        timed = [estimate for estimate in self.estimates.values() if not math.isnan(estimate.score_seconds)]
        return min((estimate.zero_shot_seconds for estimate in timed), default=0.0)

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of training, and of scoring, of the whole study."""
        train = sum(self.runs[name] * estimate.train_seconds for name, estimate in self.estimates.items())
        score = sum(self.runs[name] * estimate.score_seconds for name, estimate in self.estimates.items())
        return train, self.zero_shot_seconds + score

    def seconds_on(self, workers: int) -> float:
        """Return the seconds until all runs are finished, if so many are executed side by side; NaN: not known.

        Args:
            workers: Number of runs at a time, each as fast as alone.
        """
        each = [self.estimates[name].seconds for name, count in self.runs.items() for _ in range(count)]
        return self.zero_shot_seconds + makespan(each, workers)

    def closing(self, now: datetime, workers: int = 1, threads: int = 0) -> str:
        """Return the sentence that says how long the study takes, and when it is done.

        Args:
            now: The time of day.
            workers: Number of runs at a time.
            threads: Threads of each; 0: those with which the plan was made. Runs that divide these take longer.
        """
        threads = threads or self.cores
        side_by_side = workers * threads // self.cores if self.cores else workers
        seconds = self.seconds_on(max(1, side_by_side))
        if math.isnan(seconds):
            return "How long it takes in all is not known."
        cores = min(workers, sum(self.runs.values())) * threads if self.cores else 0
        place = f" on {cores} {'core' if cores == 1 else 'cores'}" if cores else ""
        done = now + timedelta(seconds=seconds)
        day = "" if done.date() == now.date() else f"{done:%A} " if done - now < timedelta(days=6) else f"{done:%d %B} "
        return f"In all about {rough(seconds)}{place}; done near {day}{done:%H:%M}."

    def __str__(self) -> str:
        total, shape = sum(self.runs.values()), f"{self.tasks + 1} × {self.columns}"
        runs, matrices = ("run", "score matrix") if total == 1 else ("runs", "score matrices")
        train, score = map(duration, self.seconds)
        return "\n".join(
            [
                f"Plan: {total} {runs} of {self.tasks} tasks; {total} {matrices} of {shape}",
                *(f"  {name}: {estimate}" for name, estimate in self.estimates.items()),
                f"  in all about {train} of training and {score} of scoring",
                *(f"  {reach}" for reach in self.reaches),
            ]
        )


def rough(seconds: float) -> str:
    """Format seconds of an estimate: whole minutes, or hours and tens of minutes.

    >>> rough(8.2), rough(95), rough(7600)
    ('8 s', '2 min', '2 h 10 min')
    """
    if seconds < 60:
        return duration(seconds)
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return duration(600 * round(seconds / 600))


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Return the seconds until all runs are finished, where each free worker takes the longest run that is left.

    Args:
        seconds: Of each run.
        workers: Number of runs at a time, at least 1.

    >>> makespan([5, 4, 3, 3, 3], 2), makespan([5, 4], 1), makespan([], 3)
    (10, 9, 0)
    """
    if any(map(math.isnan, seconds)):
        return math.nan
    busy: list[float] = [0] * workers
    for run in sorted(seconds, reverse=True):
        busy[busy.index(min(busy))] += run
    return max(busy)


def make_plan(assembly: Assembly, runs: Sequence[RunSpec], display: Display | None = None) -> Plan:
    """Take every strategy through a dry run on the real model, and put the model back.

    Args:
        assembly: Objects of the study.
        runs: The runs that are not finished.
        display: Where it is shown what is tried; None: nowhere.

    Raises:
        ConfigError: All that the strategies and optimizers refuse, and all that would fail later in a run.
    """
    display = display or Display()
    display.stage(f"loading the model {assembly.config.backbone.path}")
    data = assembly.data(next(iter(assembly.orders)), 0)
    estimates, problems = {}, assembly.length_problems()
    if refused := assembly.trainer_problems():
        raise ConfigError([*problems, *refused])
    timed, costs, names = not problems, Costs(), list(assembly.config.strategies)
    with preserved_random_state():
        display.stage("checking the scorers")
        problems += scorer_problems(data.tested)
        for number, name in enumerate(names, 1):
            display.stage(f"checking {name}", number, len(names))
            try:
                with torch.enable_grad():  # whatever a hook of the strategy before has left behind
                    estimates[name] = _estimate(assembly, name, timed, costs)
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
    display.stage("tokenising the test rows")
    counts = Counter(run.strategy for run in runs)
    estimates = {name: estimate for name, estimate in estimates.items() if name in counts}
    cores = torch.get_num_threads() if assembly.device.type == "cpu" else 0
    return Plan(dict(counts), len(data.tasks), len(data.tested), estimates, assembly.reaches, cores)


def _estimate(assembly: Assembly, name: str, timed: bool, costs: Costs) -> StrategyEstimate:
    """Estimate a strategy's cost from a dry run.

    A hook that fails on a few rows of an item gets them all before the strategy is refused. A model that is to be
    sharded, and does not fit on one device, is not timed.
    """
    lenient = (torch.OutOfMemoryError,) if isinstance(assembly.trainer(name).strategy, Sharded) else ()
    try:
        return _dry_run(assembly, name, timed, costs)
    except AllRowsNeeded:
        assembly.backbone.restore()
        return _dry_run(assembly, name, timed, costs, all_rows=True)
    except lenient:
        assembly.backbone.restore()
        return _dry_run(assembly, name, False, costs)


def _dry_run(assembly: Assembly, name: str, timed: bool, costs: Costs, all_rows: bool = False) -> StrategyEstimate:
    """Take a strategy through its curriculum.

    Args:
        assembly: Objects of the study.
        name: Of the strategy.
        timed: Call the hooks with rows and take steps; otherwise only structure and settings are tried.
        costs: What was measured before; what is measured here is added.
        all_rows: Give the hooks all rows of each item.
    """
    seed_all(0, "plan")
    dry_run = DryRun(assembly, name, all_rows)
    backbone, strategy = dry_run.backbone, dry_run.strategy
    items = dry_run.setup()
    free, limit = free_memory(backbone), assembly.config.data.frozen_states_gb
    steps, seconds, problems = 0, 0.0, dict[str, None]()
    memory, states, trainable = list[Memory](), [0], ""
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
            step_seconds, step_memory = costs.train(dry_run, task, sample)
            seconds += count * step_seconds
            kept = states[-1] if states[-1] <= limit * 1e9 else 0
            memory.append(replace(step_memory, frozen_states=kept))
        problems |= dict.fromkeys(dry_run.try_scheduler(task, count))
        if learns and not problems:
            dry_run.end()
    if problems:
        raise ConfigError(problems)
    trainable = trainable or describe_trainable(backbone, strategy)
    most = max(memory, key=lambda item: item.total, default=None)
    message = too_large(max(states), limit) if max(states) > limit * 1e9 else ""
    if not timed:
        return StrategyEstimate(trainable, steps, math.nan, math.nan, most, free, message)
    with dry_run.module.scoring_context():
        zero_shot, row = (costs.score(dry_run, learnt) for learnt in (False, True))
    dry_run.finish(not costs.finished)
    costs.finished = True
    rows = len(dry_run.data.tasks) * row
    return StrategyEstimate(trainable, steps, seconds, rows, most, free, message, zero_shot)
