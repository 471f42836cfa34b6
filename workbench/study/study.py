"""A study: strategies x orders x seeds, each combination a run; from its config to its comparison."""

from __future__ import annotations

import gc
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from workbench.config import Component, StrategyConfig, StudyConfig, instantiate
from workbench.config.loading import examine
from workbench.config.orders import Entry
from workbench.config.schema import for_run, for_seed
from workbench.config.validation import check, check_surroundings, check_trainer
from workbench.display import Display
from workbench.errors import ConfigError, in_words
from workbench.executors import Executor, InProcess, RunSpec
from workbench.executors.guard import leave_a_second_start
from workbench.report import Comparison, compare
from workbench.report.write import report_trouble
from workbench.results import RunFolder
from workbench.runtime.distributed import barrier, first_rank_first, is_first, join
from workbench.runtime.files import only_process
from workbench.runtime.seeding import preserved_kernel_settings
from workbench.study.build import Assembly
from workbench.study.plan import Plan, make_plan
from workbench.study.preflight import benchmark_refusal, built_problems
from workbench.study.resume import UNTOUCHED, existing_problems
from workbench.study.run import error_of_run, execute_run, failure_reason, recorded_threads, run_parts
from workbench.study.zero_shot import zero_shot_folder, zero_shot_row
from workbench.train.loop import count_bytes

LOG = logging.getLogger(__name__)
STRATEGIES = "strategies"
"""The package in which bounds are looked for."""
MODELS_IN_A_RUN = 6
"""Memory of a run whose steps were not measured, in sizes of its model: weights, gradients, moments, activations."""


class Study:
    """All runs of one config, which is checked before anything is written.

    Pickled, it is its config: workers receive no model.

    Args:
        config: A study's config, or the path or shipped name of one.
        overrides: `key=value` each, laid over the config.
        checked: `config` is a `StudyConfig` that has passed all checks.

    Attributes:
        failures: A sentence for each run that failed: a loss that is not finite, memory that ran out, or an error of a
            strategy or a scorer, whose traceback is in the run's `failure.txt`. The other runs are executed all the
            same.

    Raises:
        ConfigError: All problems of the config at once.
    """

    def __init__(
        self, config: StudyConfig | str | Path, overrides: Sequence[str] = (), *, checked: bool = False
    ) -> None:
        if not checked or not isinstance(config, StudyConfig):
            config = _checked_config(config, overrides)
        self.config = with_bounds(config)
        self.folder = Path(self.config.output) / self.config.name
        self.failures: list[str] = []
        self._assembly: Assembly | None = None
        self._plan: Plan | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Study, checked=True), (self.config,)

    @cached_property
    def runs(self) -> list[RunSpec]:
        """All runs, in the order of execution."""
        known = self.assembly.benchmark.orders
        specs = []
        for strategy, chosen in self.config.strategies.items():
            for order, tasks in self.assembly.orders.items():
                entry: Entry = order if order in known else {order: tasks}  # a drawn order is written out
                for seed in self.config.seeds:
                    folder = self.folder / strategy / order / f"seed-{seed}"
                    config = for_run(self.config, {strategy: chosen}, [entry], seed)
                    specs.append(RunSpec(strategy, order, seed, folder, config))
        return specs

    @property
    def assembly(self) -> Assembly:
        """Objects of the runs with the first seed."""
        return self.assembly_of(self.config.seeds[0])

    def assembly_of(self, seed: int) -> Assembly:
        """Objects of the runs with a seed: the same for all seeds, unless the config contains `{seed}`.

        One set of them is held at a time.
        """
        config = for_seed(self.config, seed)
        if self._assembly is None or self._assembly.config != config:
            self._assembly = Assembly(config)
        return self._assembly

    def results(self, run: RunSpec) -> RunFolder:
        """Read the folder of a run.

        Raises:
            ConfigError: Its journal is damaged.
        """
        return RunFolder(run.folder, writes=is_first())

    # -- from the config to the comparison

    def run(self, display: Display | None = None) -> list[dict[str, Any]]:
        """Execute every run that is not finished yet; like `execute`, but return the rows of `summary.csv`.

        Args:
            display: Where progress is shown; None: nowhere.

        Returns:
            One row per finished run, the strategies in the config's order.
        """
        return [row for comparison in self.execute(display) for row in comparison.rows]

    @preserved_kernel_settings()
    def execute(self, display: Display | None = None) -> list[Comparison]:
        """Execute every run that is not finished yet, and write the report.

        Args:
            display: Where progress is shown; None: nowhere, but the log warns of answers that cannot be generated.

        Returns:
            The comparisons of the report; empty where no run is finished, and on every rank but the first.

        Raises:
            ConfigError: As `check_existing` and `plan`.
            BlockingIOError: Another process works on this study.
        """
        leave_a_second_start()
        if not is_first():
            self._execute_runs(Display())
            return []
        log = LOG.warning if display is None else LOG.debug
        display = display or Display()
        self.prepare(display)
        if is_new := not self.folder.is_dir():
            self._show_plan(display, log)
        self._checked_trainer()
        with only_process(self.folder):
            self.check_existing()
            if self.config.existing == "replace":
                for path in [self.folder / UNTOUCHED, *(run.folder for run in self.runs)]:
                    shutil.rmtree(path, ignore_errors=True)
            if not is_new and not all(self.results(run).finished for run in self.runs):
                self._show_plan(display, log)
            self._execute_runs(display)
            if not any(self.results(run).finished for run in self.runs):
                return []
            display.stage("comparing the strategies")
            comparisons = compare([self.folder])
            display.stage("writing the report")
            if comparisons and (trouble := report_trouble(self.folder, comparisons)):
                display.note(trouble)
        return comparisons

    def prepare(self, display: Display) -> None:
        """Call the components of the config's `prepare`, seed by seed.

        Args:
            display: Where progress is shown.

        Raises:
            ConfigError: A component cannot be built or called, or refuses; or a model is still missing afterwards.
        """
        for seed in self.config.seeds:
            for component in for_seed(self.config, seed).prepare:
                _call(component, display)
        if self.config.prepare and (problems := check_surroundings(replace(self.config, prepare=[]))):
            raise ConfigError(problems)

    def _show_plan(self, display: Display, log: Callable[[object], None]) -> None:
        """Show the plan before anything is learnt."""
        plan = self._plan = self.plan(display)
        shares = getattr(self._executor, "shares", InProcess().shares)(self)  # a stranger's may not say
        display.note(f"{plan}\n{plan.closing(datetime.now(), shares.workers, shares.threads)}")
        for reach in plan.reaches:
            log(reach)

    @preserved_kernel_settings()
    def plan(self, display: Display | None = None) -> Plan:
        """Build every strategy once in a dry run, and estimate what the study costs; nothing is written.

        Args:
            display: Where it is shown what is tried; None: nowhere.

        Raises:
            ConfigError: A strategy does not fit the model, or a task its positions.
        """
        kept = self.config.existing != "replace"
        waiting = [run for run in self.runs if not (kept and self.results(run).finished)]
        return make_plan(self.assembly, waiting, display)

    def _checked_trainer(self) -> Trainer:
        """Build a Trainer, which knows how many processes execute a run together.

        Raises:
            ConfigError: There are several, and the executor does not support that.
        """
        trainer = self.assembly.trainer(next(iter(self.config.strategies)))
        if trainer.world_size > 1 and not self._executor.several_devices:
            name = type(self._executor).__name__
            message = f"{name} executes each run in one process, and trainer.devices asks for {trainer.world_size}"
            raise ConfigError([f"executor: {message}. Leave the executor out, or give trainer.devices=1."])
        return trainer

    @cached_property
    def _executor(self) -> Executor:
        executor: Executor = instantiate(self.config.executor)
        return executor

    def check_existing(self) -> None:
        """Compare the study's folder with what the config asks for.

        Raises:
            ConfigError: A run is there that `existing` does not allow, or that was made with another config.
        """
        wanted = {run.folder: run.config for run in self.runs}
        if problems := existing_problems(self.config, self.folder, wanted, lambda seed: self.assembly_of(seed).inputs):
            raise ConfigError(problems)

    def _execute_runs(self, display: Display) -> None:
        """Execute the runs on all ranks: by the executor, which calls the methods below."""
        join(self._checked_trainer())
        self.failures += self._executor.make(self, display)
        barrier()

    # -- what executors call

    def waiting(self, display: Display) -> list[RunSpec]:
        """Return the runs that are not finished, and name the finished ones in the display."""
        finished = [run for run in self.runs if self.results(run).finished]
        for run in finished:
            display.note(f"{run.title}: finished before, kept.")
        return [run for run in self.runs if run not in finished]

    def score_untouched(self, display: Display) -> str | None:
        """Score row 0, the zero-shot model, of all runs that are not finished, as far as it is missing.

        Args:
            display: Where progress is shown.

        Returns:
            The reason if a scorer failed, so that no run can be executed.
        """
        seen = set()
        for run in sorted(self.waiting(Display()), key=lambda run: run.seed):
            folder = self._zero_shot_folder(run)
            if (folder, run.order) in seen:
                continue
            seen.add((folder, run.order))
            assembly = self.assembly_of(run.seed)
            if error := error_of_run(partial(zero_shot_row, folder, assembly, *run_parts(run, assembly), display)):
                return failure_reason(error)
        return None

    def make(self, run: RunSpec, display: Display, place: str = "") -> str | None:
        """Execute or resume a run, unless it is finished.

        Args:
            run: One of this study's runs.
            display: Where progress is shown.
            place: Text before the run's title in the display.

        Returns:
            The reason if the run failed.
        """
        with first_rank_first():
            results = self.results(run)
        if results.finished:
            display.note(f"{run.title}: finished before, kept.")
            return None
        return execute_run(run, self.assembly_of(run.seed), self._zero_shot_folder(run), results, display, place)

    def release(self) -> None:
        """Free the memory of the model, for example for workers."""
        self._assembly = None
        gc.collect()
        torch.cuda.empty_cache()  # does nothing if no GPU was used

    @property
    def on_cpu(self) -> bool:
        """Whether the Trainers put the model on a CPU."""
        return self.assembly.device.type == "cpu"

    @property
    def threads(self) -> int | None:
        """Threads of torch with which the first of the runs was begun; None: none has begun."""
        return next(filter(None, (recorded_threads(self.results(run)) for run in self.runs)), None)

    def planned_seconds(self, run: RunSpec) -> float:
        """Return the seconds of a run by the plan; NaN: there is none."""
        estimate = self._plan.estimates.get(run.strategy) if self._plan else None
        return estimate.seconds if estimate else math.nan

    def planned_memory(self, run: RunSpec) -> int:
        """Return the bytes of a step of a run by the plan, or a rough bound from the model's size."""
        estimate = self._plan.estimates.get(run.strategy) if self._plan else None
        if estimate is None or estimate.memory is None:
            return MODELS_IN_A_RUN * count_bytes(self.assembly.backbone)
        return estimate.memory.total

    def _zero_shot_folder(self, run: RunSpec) -> Path:
        assembly = self.assembly_of(run.seed)
        own_seed = None if assembly.config == self.config else run.seed
        return zero_shot_folder(self.folder, assembly, run.strategy, own_seed)


def _checked_config(source: StudyConfig | str | Path, overrides: Sequence[str]) -> StudyConfig:
    """Read a config and run all checks.

    Raises:
        ConfigError: All problems at once.
    """
    config, problems = examine(source, overrides)
    problems += late_problems(config, problems)
    if problems or not isinstance(config, StudyConfig):
        raise ConfigError(problems)
    return config


@preserved_kernel_settings()
def late_problems(config: StudyConfig | Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """Run the checks of a config that `config.loading.examine` leaves out: they need Lightning, or built objects.

    Args:
        config: The config, or what could be read of it where its keys are wrong.
        known: Problems found by `examine`. The parts of the config that they are about are not built.

    Returns:
        The problems that are not known yet.
    """
    problems = check_trainer(config, Trainer)
    if isinstance(config, StudyConfig):
        bounds = _bounds(config)
        problems += check(replace(config, strategies=bounds)) if bounds else []
        problems += built_problems(with_bounds(config), [*known, *problems])
    elif "benchmark" in config and not any(problem.startswith("benchmark") for problem in [*known, *problems]):
        problems += benchmark_refusal(config["benchmark"])
    return [problem for problem in dict.fromkeys(problems) if problem not in known]


def with_bounds(config: StudyConfig) -> StudyConfig:
    """Return the config with the bounds that `bounds: true` asks for, each under the name of its file.

    Bounds are the strategies that call themselves one (`ContinualStrategy.bound`); they learn with the study's
    settings. A bound that the config names itself, for example with a learning rate of its own, is not added.
    """
    return replace(config, bounds=False, strategies=config.strategies | _bounds(config))


def _bounds(config: StudyConfig) -> dict[str, StrategyConfig]:
    """Return the bounds to be added to a config."""
    if not config.bounds:
        return {}
    package = import_module(STRATEGIES)
    named = {component.class_path for strategy in config.strategies.values() for component in strategy.components}
    bounds: dict[str, StrategyConfig] = {}
    for name in package.__all__:
        strategy, class_path = getattr(package, name), f"{STRATEGIES}.{name}"
        file = strategy.__module__.rpartition(".")[2]
        if strategy.bound and class_path not in named and file not in config.strategies:
            bounds.setdefault(file, StrategyConfig([Component(class_path)]))
    return bounds


def _call(component: Component, display: Display) -> None:
    """Build a component of `prepare` and call it.

    Raises:
        ConfigError: It cannot be built or called, or it refuses.
    """
    at = f"prepare: {component.class_path}"
    try:
        prepares = instantiate(component)
    except Exception as error:
        raise ConfigError(in_words(error, at)) from error
    if not callable(prepares):
        raise ConfigError([f"{at}: it cannot be called. Give a class whose objects are called with the display."])
    try:
        prepares(display)
    except ValueError as error:
        raise ConfigError([f"{at}: {error}"]) from error
