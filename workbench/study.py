"""One YAML is one study: strategies x orders x seeds, each a run in a folder of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from workbench.assembly import Assembly
from workbench.comparison import compare
from workbench.config import (
    ConfigError,
    StudyConfig,
    check,
    check_parts,
    check_surroundings,
    dump,
    for_seed,
    instantiate,
    load,
)
from workbench.course import MakeTrainer, count_bytes, score_untouched
from workbench.data import ContinualDataModule
from workbench.display import Display
from workbench.environment import PeakMemory, describe_environment
from workbench.existing import UNTOUCHED, existing_problems, own_inputs
from workbench.files import only_process
from workbench.loop import learn_in_sequence
from workbench.module import ContinualModule
from workbench.plan import Plan, make_plan
from workbench.processes import is_first, joined, one_after_the_other, world
from workbench.refusals import benchmark_refusal, built_problems
from workbench.report import report_trouble
from workbench.results import RunFolder
from workbench.saving import Intervals
from workbench.strategy import ContinualStrategy


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


class Study:
    """Everything that one config asks for, checked before anything is written.

    Args:
        config: A study's config, or the path or shipped name of one.
        overrides: `key=value` each, laid over it.

    Attributes:
        failures: The runs that `run` gave up, a sentence each: a loss that is not finite, or memory that ran out.
            The others are made all the same.

    Raises:
        ConfigError: All that is wrong, at once.
    """

    def __init__(self, config: StudyConfig | str | Path, overrides: Sequence[str] = ()) -> None:
        self.config = config if isinstance(config, StudyConfig) else _load(config, overrides)
        problems = check_surroundings(self.config) + check(self.config, Trainer)
        problems += built_problems(self.config, problems)
        if problems:
            raise ConfigError(problems)
        self._assembly = Assembly(for_seed(self.config, self.config.seeds[0]))
        self.failures: list[str] = []
        self.folder = Path(self.config.output) / self.config.name

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

    @property
    def runs(self) -> list[Run]:
        """In the order in which they are made."""
        orders = self.assembly.orders
        return [
            Run(strategy, order, seed)
            for strategy in self.config.strategies
            for order in orders
            for seed in self.config.seeds
        ]

    def plan(self) -> Plan:
        """Builds every strategy once, dry, and estimates what the study costs; nothing is written.

        Raises:
            ConfigError: A strategy does not fit the model, or a task its positions.
        """
        kept = self.config.existing != "replace"
        return make_plan(self.assembly, [run for run in self.runs if not (kept and self.results(run).finished)])

    def path(self, run: Run) -> Path:
        """The folder of one run."""
        return self.folder / run.strategy / run.order / f"seed-{run.seed}"

    def results(self, run: Run) -> RunFolder:
        """What is in the folder of one run.

        Raises:
            ConfigError: Its journal is damaged.
        """
        return RunFolder(self.path(run), writes=is_first())

    def check_existing(self) -> None:
        """Compares what is there with what is asked for.

        Raises:
            ConfigError: A folder is there that `existing` does not allow, or one made with another config.
        """
        wanted = {self.path(run): self._narrowed(run) for run in self.runs}
        if problems := existing_problems(self.config, self.folder, wanted, lambda seed: self.assembly_of(seed).inputs):
            raise ConfigError(problems)

    def prepare(self, display: Display) -> None:
        """Makes what the config's `prepare` asks for, seed by seed.

        Raises:
            ConfigError: It cannot be made.
        """
        for seed in self.config.seeds:
            for component in for_seed(self.config, seed).prepare:
                try:
                    made = instantiate(component)
                    if not callable(made):
                        raise ValueError("it cannot be called. Give a class whose objects are called with the display.")
                    made(display)
                except ValueError as error:
                    raise ConfigError([f"prepare: {component.class_path}: {error}"]) from error
        if self.config.prepare and (problems := check_surroundings(replace(self.config, prepare=[]))):
            raise ConfigError(problems)

    def run(self, display: Display | None = None) -> list[dict[str, Any]]:
        """Makes every run that is not finished yet.

        Returns:
            The rows of `summary.csv`, the strategies in the config's order.

        Raises:
            ConfigError: As `check_existing` and `plan`.
            BlockingIOError: Another process works on this study.
        """
        if not is_first():
            self._make_runs(Display())
            return []
        display = display or Display()
        self.prepare(display)
        if fresh := not self.folder.is_dir():
            display.note(str(self.plan()))
        with only_process(self.folder):
            self.check_existing()
            if self.config.existing == "replace":
                for path in [self.folder / UNTOUCHED, *map(self.path, self.runs)]:
                    shutil.rmtree(path, ignore_errors=True)
            if not fresh and not all(self.results(run).finished for run in self.runs):
                display.note(str(self.plan()))
            self._make_runs(display)
            comparisons = compare([self.folder]) if any(self.results(run).finished for run in self.runs) else []
            if comparisons and (trouble := report_trouble(self.folder, comparisons)):
                display.note(trouble)
        return [row for comparison in comparisons for row in comparison.rows]

    def _make_runs(self, display: Display) -> None:
        with joined(self.assembly.trainer(next(iter(self.config.strategies)))):
            runs = self.runs
            for index, run in enumerate(runs):
                self._run_unless_finished(run, f"run {index + 1} of {len(runs)}: {run.title}", display)

    def _run_unless_finished(self, run: Run, title: str, display: Display) -> None:
        with one_after_the_other():
            results = self.results(run)
        if results.finished:
            display.note(f"{run.title}: finished before, kept.")
            return
        if not results.journal.records:
            results.clear()
        display.run_begins(title, *self.assembly_of(run.seed).tested_names(run.order))
        try:
            self._run(run, results, display)
        except (FloatingPointError, torch.OutOfMemoryError) as error:
            if world() > 1 and not isinstance(error, FloatingPointError):
                raise  # the other processes still wait for this one
            self.failures.append(f"{run.title} failed: {error}")
            display.note(self.failures[-1])
            return
        display.run_ends(results.summary())

    def _run(self, run: Run, results: RunFolder, display: Display) -> None:
        assembly = self.assembly_of(run.seed)
        backbone = assembly.backbone
        backbone.restore()
        backbone.to(assembly.device)
        strategy = assembly.strategy(run.strategy)
        module = ContinualModule(backbone, strategy, assembly.optimizer_factory(run.strategy))
        data = assembly.data(run.order, run.seed)
        alone = self._narrowed(run)
        results.write_config(dump(alone))
        inputs = {**assembly.inputs, **own_inputs(alone)}
        stated = {"protocol": assembly.protocol(run.strategy, run.order, run.seed), "inputs": inputs}
        if before := results.environment():
            results.add_to_environment("resumed", {"times": before.get("resumed", {}).get("times", 0) + 1})
        else:
            results.write_environment(describe_environment() | stated)
        make_trainer = assembly.trainer_factory(run.strategy, results.path)
        results.copy_row(0, self._untouched(run, module, data, make_trainer, display))
        memory = PeakMemory(assembly.device, count_bytes(backbone))
        learn_in_sequence(module, data, make_trainer, results, display, _intervals(self.config))
        results.write_environment(results.environment() | {"peak_memory_bytes": memory.bytes()})

    def _untouched(
        self, run: Run, module: ContinualModule, data: ContinualDataModule, make_trainer: MakeTrainer, display: Display
    ) -> RunFolder:
        """The folder with the scores of the model as loaded: made once in a study, then copied into each run.

        It is made again where it was scored from other inputs, under another text policy or in another precision,
        and where it is damaged.
        """
        assembly = self.assembly_of(run.seed)
        path = self.folder / UNTOUCHED
        path = path if self.config == assembly.config else path / f"seed-{run.seed}"
        policy = {
            "precision": make_trainer(data.tasks[0], []).precision,
            "backbone": vars(assembly.config.backbone),
            **vars(assembly.text_policy),
        }
        key = json.dumps({**assembly.inputs, **policy}, sort_keys=True)
        with one_after_the_other():
            results = _whole(path)
        if results.environment().get("scored from") != {"key": key}:
            results.clear()
            results.add_to_environment("scored from", {"key": key})
        for task in data.tested:
            if results.has_cell(0, task.name):
                display.scored(0, task.name, results.value(0, task.name, task.primary))
        asked = ContinualModule(module.backbone, ContinualStrategy(), module.make_optimizer)
        score_untouched(asked, data, make_trainer, results, display)
        return results

    def _narrowed(self, run: Run) -> StudyConfig:
        """The config of one run alone, which runs again by itself."""
        chosen = {run.strategy: self.config.strategies[run.strategy]}
        alone = replace(self.config, strategies=chosen, orders=[run.order], seeds=[run.seed], existing="resume")
        return for_seed(alone, run.seed)


def _whole(path: Path) -> RunFolder:
    """The folder of scores that can be made again; what is damaged in it is gone."""
    try:
        results = RunFolder(path, writes=is_first())
        if is_first():
            results.mend()
    except ConfigError:
        shutil.rmtree(path)
        results = RunFolder(path)
    return results


def _intervals(config: StudyConfig) -> Intervals:
    return Intervals(config.score_every_n_steps, config.save_every_n_steps, config.save_every_seconds)


def _load(source: str | Path, overrides: Sequence[str]) -> StudyConfig:
    """Reads a config; where its shape is wrong, what the rest of it names is looked at all the same."""
    try:
        return load(source, overrides)
    except ConfigError as error:
        problems = error.problems + check_parts(error.raw, Trainer)
        if "benchmark" in error.raw and not any(problem.startswith("benchmark") for problem in problems):
            problems += benchmark_refusal(error.raw["benchmark"])
        raise ConfigError(problems) from error
