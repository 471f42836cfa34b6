"""One YAML is one study: strategies x orders x seeds, each a run in a folder of its own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from workbench.bounds import with_bounds
from workbench.comparison import compare
from workbench.config import (
    ConfigError,
    StudyConfig,
    check,
    check_parts,
    check_surroundings,
    for_seed,
    in_words,
    instantiate,
    load,
)
from workbench.display import Display
from workbench.executors import Executor
from workbench.existing import UNTOUCHED, existing_problems
from workbench.files import only_process
from workbench.plan import Plan, make_plan
from workbench.pool import leave_a_second_start
from workbench.processes import is_first, join, together
from workbench.refusals import benchmark_refusal, built_problems
from workbench.report import report_trouble
from workbench.runs import Runs
from workbench.seeding import untouched_kernels

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

    @untouched_kernels()
    def __init__(self, config: StudyConfig | str | Path, overrides: Sequence[str] = ()) -> None:
        config = with_bounds(config if isinstance(config, StudyConfig) else _load(config, overrides))
        problems = check_surroundings(config) + check(config, Trainer)
        problems += built_problems(config, problems)
        if problems:
            raise ConfigError(problems)
        super().__init__(config)
        self._executor: Executor = instantiate(config.executor)
        self.failures: list[str] = []

    @untouched_kernels()
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

    @untouched_kernels()
    def run(self, display: Display | None = None) -> list[dict[str, Any]]:
        """Makes every run that is not finished yet.

        Args:
            display: What a person sees; None: nothing, but the log warns of right answers that cannot be given.

        Returns:
            The rows of `summary.csv`, the strategies in the config's order.

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
        return [row for comparison in comparisons for row in comparison.rows]

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
        together()


def _load(source: str | Path, overrides: Sequence[str]) -> StudyConfig:
    """Reads a config; where its shape is wrong, what the rest of it names is looked at all the same."""
    try:
        return load(source, overrides)
    except ConfigError as error:
        problems = error.problems + check_parts(error.raw, Trainer)
        if "benchmark" in error.raw and not any(problem.startswith("benchmark") for problem in problems):
            problems += benchmark_refusal(error.raw["benchmark"])
        raise ConfigError(problems) from error
