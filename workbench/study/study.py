"""A study: strategies x orders x seeds, each combination a run."""

from __future__ import annotations

import errno
import gc
import logging
import shutil
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from safetensors import SafetensorError

from workbench.config import Component, StrategyConfig, StudyConfig, dump, instantiate, load
from workbench.config.orders import Entry
from workbench.config.schema import DEFAULT_EXECUTOR, for_seed
from workbench.config.validation import check, check_parts, check_surroundings
from workbench.display import Display
from workbench.errors import ConfigError, describe_error, in_words, raised_by_reader
from workbench.executors import Executor
from workbench.executors.workers import leave_a_second_start
from workbench.report import Comparison, compare
from workbench.report.write import report_trouble
from workbench.results import RunFolder
from workbench.runtime.distributed import barrier, first_rank_first, is_first, join, world
from workbench.runtime.environment import PeakMemory, describe_environment
from workbench.runtime.files import only_process, write_whole
from workbench.runtime.seeding import preserved_kernel_settings
from workbench.strategy import HookError
from workbench.study.build import Assembly
from workbench.study.plan import Plan, make_plan
from workbench.study.preflight import benchmark_refusal, built_problems
from workbench.study.resume import UNTOUCHED, existing_problems, own_inputs
from workbench.study.zero_shot import untouched_path, untouched_row
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.checkpoint import Intervals
from workbench.train.loop import MakeTrainer, count_bytes
from workbench.train.optimizer_state import Moments

PACKAGE = "strategies"


def with_bounds(config: StudyConfig) -> StudyConfig:
    """The config with the yardsticks that it asks for and does not have, each under the name of its file.

    They are found by what they say of themselves (`ContinualStrategy.bound`), and learn with the study's settings. A
    config that names one itself, with a rate of its own, keeps that one alone.
    """
    if not config.bounds:
        return config
    package = import_module(PACKAGE)
    there = {component.class_path for strategy in config.strategies.values() for component in strategy.components}
    strategies = dict(config.strategies)
    for name in package.__all__:
        found, path = getattr(package, name), f"{PACKAGE}.{name}"
        if found.bound and path not in there:
            strategies.setdefault(found.__module__.rpartition(".")[2], StrategyConfig([Component(path)]))
    return replace(config, bounds=False, strategies=strategies)


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
FAILURE = "failure.txt"
"""The traceback of what ended a run, in its folder until the run goes on."""


@dataclass(frozen=True)
class Run:
    """One cell of a study: a strategy, an order of the tasks, a seed."""

    strategy: str
    order: str
    seed: int

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.strategy}, order {self.order}, seed {self.seed}"


class Runs:
    """All runs of a study whose config was found to be right.

    Pickled it is the config, and no model goes along.

    Args:
        config: The study's.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self._assembly = Assembly(for_seed(config, config.seeds[0]))
        self.folder = Path(config.output) / config.name

    def __reduce__(self) -> tuple[Any, ...]:
        return Runs, (self.config,)

    @property
    def assembly(self) -> Assembly:
        """The objects of the first seed's runs."""
        return self.assembly_of(self.config.seeds[0])

    def assembly_of(self, seed: int) -> Assembly:
        """The objects of a seed's runs: the same for all seeds, unless the config leaves room for a seed in them.

        One set of them is held at a time.
        """
        config = for_seed(self.config, seed)
        if self._assembly.config != config:
            self._assembly = Assembly(config)
        return self._assembly

    @cached_property
    def orders(self) -> dict[str, Entry]:
        """By name, as the config of a run alone says them: those that the benchmark does not have, task by task."""
        own = self.assembly.benchmark.orders
        return {name: name if name in own else {name: tasks} for name, tasks in self.assembly.orders.items()}

    @property
    def runs(self) -> list[Run]:
        """In the order in which they are made."""
        return [
            Run(strategy, order, seed)
            for strategy in self.config.strategies
            for order in self.orders
            for seed in self.config.seeds
        ]

    def path(self, run: Run) -> Path:
        """The folder of one run."""
        return self.folder / run.strategy / run.order / f"seed-{run.seed}"

    def results(self, run: Run) -> RunFolder:
        """What is in the folder of one run.

        Raises:
            ConfigError: Its journal is damaged.
        """
        return RunFolder(self.path(run), writes=is_first())

    def waiting(self, display: Display) -> list[Run]:
        """The runs that are not finished; tells of those that are."""
        finished = [run for run in self.runs if self.results(run).finished]
        for run in finished:
            display.note(f"{run.title}: finished before, kept.")
        return [run for run in self.runs if run not in finished]

    def make(self, run: Run, display: Display, place: str = "") -> str | None:
        """Makes a run unless it is finished, or goes on with it.

        Args:
            run: One of this study's.
            display: What a person sees.
            place: Stands before the run's title there.

        Returns:
            Why it was given up, if it was.
        """
        with first_rank_first():
            results = self.results(run)
        if results.finished:
            display.note(f"{run.title}: finished before, kept.")
            return None
        if not results.journal.records:
            results.clear()
        display.run_begins(f"{place}{run.title}", *self.assembly_of(run.seed).tested_names(run.order))
        if (error := what_ended(lambda: self._run(run, results, display))) is None:
            display.run_ends(results.summary())
            return None
        failure = f"{run.title} failed: {_why(error)}"
        if is_first():
            write_whole(results.path / FAILURE, "".join(traceback.format_exception(error)))
        display.note(failure)
        return failure

    def _run(self, run: Run, results: RunFolder, display: Display) -> None:
        assembly = self.assembly_of(run.seed)
        module, data, make_trainer = self._parts(run)
        alone = self.narrowed(run)
        if is_first():
            (results.path / FAILURE).unlink(missing_ok=True)
        results.write_config(dump(alone))
        inputs = {**assembly.inputs, **own_inputs(alone)}
        stated = {"protocol": assembly.protocol(run.strategy, run.order, run.seed), "inputs": inputs}
        if before := results.environment():
            results.add_to_environment("resumed", {"times": before.get("resumed", {}).get("times", 0) + 1})
        else:
            answers = {one.task: one.stated for one in assembly.reaches}
            results.write_environment(describe_environment() | stated | ({"answers": answers} if answers else {}))
        row = untouched_row(self._untouched_path(run), assembly, module, data, make_trainer, display)
        results.copy_row(0, row, [task.name for task in data.tested])
        memory = PeakMemory(assembly.device, count_bytes(assembly.backbone))
        learn_in_sequence(module, data, make_trainer, results, display, _intervals(self.config))
        results.write_environment(results.environment() | {"peak_memory_bytes": memory.bytes()})

    def _parts(self, run: Run) -> tuple[ContinualModule, ContinualDataModule, MakeTrainer]:
        """What a run is made of, the model as loaded."""
        assembly = self.assembly_of(run.seed)
        gc.collect()  # a Trainer and its model hold each other, and so the memory of the run before
        assembly.backbone.restore()
        assembly.backbone.to(assembly.device)
        module = ContinualModule(
            assembly.backbone, assembly.strategy(run.strategy), assembly.optimizer_factory(run.strategy)
        )
        module.carried = Moments() if assembly.carries_optimizer else None
        data = assembly.data(run.order, run.seed, run.strategy)
        return module, data, assembly.trainer_factory(run.strategy, self.path(run))

    def score_untouched(self, display: Display) -> str | None:
        """Scores row 0 of all runs that are not finished, as far as it is not there.

        Returns:
            Why it cannot be scored, and so no run be made, if a scorer failed.
        """
        seen = set()
        for run in sorted(self.waiting(Display()), key=lambda run: run.seed):
            path = self._untouched_path(run)
            if (path, run.order) in seen:
                continue
            seen.add((path, run.order))
            parts = (path, self.assembly_of(run.seed), *self._parts(run), display)
            if error := what_ended(partial(untouched_row, *parts)):
                return _why(error)
        return None

    def _untouched_path(self, run: Run) -> Path:
        assembly = self.assembly_of(run.seed)
        return untouched_path(self.folder, assembly, run.strategy, None if self.config == assembly.config else run.seed)

    def release(self) -> None:
        """Lets go of the model, for others that need the room."""
        self._assembly = Assembly(self._assembly.config)
        gc.collect()
        torch.cuda.empty_cache()  # nothing where no GPU was used

    def narrowed(self, run: Run) -> StudyConfig:
        """The config of one run alone, which runs again by itself."""
        chosen = {run.strategy: self.config.strategies[run.strategy]}
        alone = replace(self.config, strategies=chosen, orders=[self.orders[run.order]], seeds=[run.seed])
        alone = replace(alone, existing="resume", executor=Component(DEFAULT_EXECUTOR))
        return for_seed(alone, run.seed)


def what_ended(work: Callable[[], object]) -> Exception | None:
    """Do a run's work; an error that ends it and not its study is returned.

    What a hook that failed has switched in torch is as before: the next run is made as if it stood alone.
    """
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        work()
    except Exception as error:  # a stranger's hook or scorer may raise anything
        if not ends_the_run(error):
            raise
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        return error
    return None


def ends_the_run(error: Exception) -> bool:
    """Whether an error ends one run and not its study.

    Of several processes only what all of them raise alike does: the others would wait for one that is gone. A disk that
    fails ends the study, as does a config that cannot be; not so a file that a strategy or a scorer itself asks for.
    """
    if world() > 1:
        return isinstance(error, FloatingPointError | HookError | MisconfigurationException)
    if isinstance(error, OSError | SafetensorError):
        return raised_by_reader(error) and getattr(error, "errno", None) not in DISK
    return not isinstance(error, ConfigError)


def _why(error: Exception) -> str:
    """What is told of an error; a loss that is not finite and memory that ran out have words of their own."""
    plain = isinstance(error, FloatingPointError | HookError | torch.OutOfMemoryError) and not raised_by_reader(error)
    return str(error) if plain else f"{describe_error(error)}. Mend it; the same command goes on with this run"


def _intervals(config: StudyConfig) -> Intervals:
    return Intervals(config.score_every_n_steps, config.save_every_n_steps, config.save_every_seconds)


LOG = logging.getLogger(__name__)


class Study(Runs):
    """Everything that one config asks for, checked before anything is written.

    Args:
        config: A study's config, or the path or shipped name of one.
        overrides: `key=value` each, laid over it.

    Attributes:
        failures: The runs that `run` gave up, a sentence each: a loss that is not finite, memory that ran out, or what
            a strategy or a scorer raised, whose traceback is in the run's `failure.txt`. The others are made all the
            same.

    Raises:
        ConfigError: All that is wrong, at once.
    """

    @preserved_kernel_settings()
    def __init__(self, config: StudyConfig | str | Path, overrides: Sequence[str] = ()) -> None:
        config = with_bounds(config if isinstance(config, StudyConfig) else _load(config, overrides))
        problems = check_surroundings(config) + check(config, Trainer)
        problems += built_problems(config, problems)
        if problems:
            raise ConfigError(problems)
        super().__init__(config)
        self._executor: Executor = instantiate(config.executor)
        self.failures: list[str] = []

    @preserved_kernel_settings()
    def plan(self) -> Plan:
        """Builds every strategy once, dry, and estimates what the study costs; nothing is written.

        Raises:
            ConfigError: A strategy does not fit the model, or a task its positions.
        """
        kept = self.config.existing != "replace"
        return make_plan(self.assembly, [run for run in self.runs if not (kept and self.results(run).finished)])

    def check_existing(self) -> None:
        """Compares what is there with what is asked for.

        Raises:
            ConfigError: A folder is there that `existing` does not allow, or one made with another config.
        """
        wanted = {self.path(run): self.narrowed(run) for run in self.runs}
        if problems := existing_problems(self.config, self.folder, wanted, lambda seed: self.assembly_of(seed).inputs):
            raise ConfigError(problems)

    def prepare(self, display: Display) -> None:
        """Makes what the config's `prepare` asks for, seed by seed.

        Args:
            display: What a person sees.

        Raises:
            ConfigError: It cannot be made.
        """
        for seed in self.config.seeds:
            for component in for_seed(self.config, seed).prepare:
                at = f"prepare: {component.class_path}"
                try:
                    made = instantiate(component)
                except Exception as error:
                    raise ConfigError(in_words(error, at)) from error
                if not callable(made):
                    told = "it cannot be called. Give a class whose objects are called with the display."
                    raise ConfigError([f"{at}: {told}"])
                try:
                    made(display)
                except ValueError as error:
                    raise ConfigError([f"{at}: {error}"]) from error
        if self.config.prepare and (problems := check_surroundings(replace(self.config, prepare=[]))):
            raise ConfigError(problems)

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
            self._make_runs(Display())
            return []
        log = LOG.warning if display is None else LOG.debug
        display = display or Display()
        self.prepare(display)
        if fresh := not self.folder.is_dir():
            self._announce(display, log)
        self._trainer()
        with only_process(self.folder):
            self.check_existing()
            if self.config.existing == "replace":
                for path in [self.folder / UNTOUCHED, *map(self.path, self.runs)]:
                    shutil.rmtree(path, ignore_errors=True)
            if not fresh and not all(self.results(run).finished for run in self.runs):
                self._announce(display, log)
            self._make_runs(display)
            comparisons = compare([self.folder]) if any(self.results(run).finished for run in self.runs) else []
            if comparisons and (trouble := report_trouble(self.folder, comparisons)):
                display.note(trouble)
        return comparisons

    def run(self, display: Display | None = None) -> list[dict[str, Any]]:
        """Execute every run that is not finished yet; like `execute`, but returns the rows of `summary.csv`.

        Args:
            display: Where progress is shown; None: nowhere.

        Returns:
            One row per finished run, the strategies in the config's order.
        """
        return [row for comparison in self.execute(display) for row in comparison.rows]

    def _announce(self, display: Display, log: Callable[[object], None]) -> None:
        """Tell the plan before anything is learnt."""
        plan = self.plan()
        display.note(str(plan))
        for reach in plan.reaches:
            log(reach)

    def _trainer(self) -> Trainer:
        """Knows how many processes make a run together.

        Raises:
            ConfigError: There are several, and the executor is not for that.
        """
        trainer = self.assembly.trainer(next(iter(self.config.strategies)))
        if trainer.world_size > 1 and not self._executor.several_devices:
            name = type(self._executor).__name__
            told = f"{name} makes each run in one process, and trainer.devices asks for {trainer.world_size}"
            raise ConfigError([f"executor: {told}. Leave the executor out, or give trainer.devices=1."])
        return trainer

    def _make_runs(self, display: Display) -> None:
        join(self._trainer())
        self.failures += self._executor.make(self, display)
        barrier()


def _load(source: str | Path, overrides: Sequence[str]) -> StudyConfig:
    """Reads a config; where its shape is wrong, what the rest of it names is looked at all the same."""
    try:
        return load(source, overrides)
    except ConfigError as error:
        problems = error.problems + check_parts(error.raw, Trainer)
        if "benchmark" in error.raw and not any(problem.startswith("benchmark") for problem in problems):
            problems += benchmark_refusal(error.raw["benchmark"])
        raise ConfigError(problems) from error
