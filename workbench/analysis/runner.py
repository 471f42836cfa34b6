"""Run analyses on finished runs and write their results beside the report."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, Trainer

from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.config import Component, dump, instantiate, load
from workbench.config.components import check_component
from workbench.display import Display
from workbench.errors import ConfigError
from workbench.report import Comparison
from workbench.report.analyses import ANALYSES, columns_of, model_of
from workbench.results import RunFolder
from workbench.runtime.files import read_csv, to_csv, write_whole
from workbench.runtime.seeding import preserved_kernel_settings, preserved_random_state, seed_all
from workbench.strategy import ContinualStrategy, answers_itself
from workbench.study.build import Assembly
from workbench.study.trainer import trainer_arguments
from workbench.train import ContinualModule, score_task

STUDY_ONLY = ("strategy", "num_nodes", "logger", "callbacks", "max_time", "min_epochs", "min_steps")
"""Arguments of a study's Trainer that an analysis does not use."""

Note = Callable[[str], None]
"""Receives a line of progress."""


class FinishedRun:
    """A finished run, opened to ask its final model. Nothing is written into its folder.

    Args:
        folder: Its folder.

    Raises:
        ConfigError: Its config, or something that the config names, is missing.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.protocol = folder.protocol
        self.config = load(folder.path / "config.yaml")
        self.seed = self.protocol.seed
        self._assembly = Assembly(self.config)

    @property
    def tasks(self) -> list[Task]:
        """Domains in the order learnt."""
        return [self._assembly.tasks[name] for name in self.protocol.order]

    @property
    def problem(self) -> str:
        """Why the saved model does not give the answers of this run; empty if it does."""
        if not (self.folder.path / "model").is_dir():
            return "its folder `model` is not there any more. Execute the run again."
        if answers_itself(self._assembly.strategy(self.protocol.strategy)):
            return "its strategy overrides `answer`, so that the saved model alone gives other answers."
        if (self.folder.path / "model" / "prompts").is_dir():
            return "its answers need the soft prompts in `model/prompts`, which the saved model alone does not read."
        return ""

    @property
    def training_key(self) -> str:
        """Text on which fine-tuning the base model depends: the run's config without its strategy and order."""
        shared = replace(self.config, strategies={}, orders=None, name="", output="")
        return f"{self.seed} {dump(shared)}"

    def final(self) -> Backbone:
        """Load the final model, adapters folded in as they were saved."""
        path = str(self.folder.path / "model")
        return Assembly(replace(self.config, backbone=replace(self.config.backbone, path=path))).backbone

    def base(self) -> Backbone:
        """Return the model that the run began with, as loaded."""
        backbone = self._assembly.backbone
        backbone.restore()
        return backbone

    def module(self, backbone: Backbone, trainer: Trainer) -> ContinualModule:
        """Return a module that scores a model, or fine-tunes it with the study's optimizer at a constant rate.

        Args:
            backbone: The model.
            trainer: Chooses device and precision.
        """
        module = ContinualModule(
            backbone,
            ContinualStrategy(),
            lambda _, parameters, __: (instantiate(self.config.optimizer, params=parameters), None),
        )
        module.to(trainer.strategy.root_device)
        module.adopt_precision(trainer)
        return module

    def trainer(self, folder: Path, callbacks: Sequence[Callback] = (), max_steps: int = 1) -> Trainer:
        """Return a Trainer with the study's arguments, on one device and without loggers.

        Args:
            folder: Where it may write.
            callbacks: Used in place of the study's.
            max_steps: Optimizer steps.
        """
        given = {key: value for key, value in self.config.trainer.items() if key not in STUDY_ONLY}
        own = {"devices": 1, "callbacks": list(callbacks), "default_root_dir": folder}
        return Trainer(**trainer_arguments(given, (-1, max_steps)) | own)

    def score(self, module: ContinualModule, task: Task) -> float:
        """Return the primary score on a task's test rows, seeded as in a run."""
        with preserved_random_state(), module.scoring_context():
            seed_all(self.seed, "score", task.name)
            return score_task(module.backbone, module.continual_strategy, task).value


class Analysis(ABC):
    """A question to the final model of a finished run, domain by domain.

    Attributes:
        name: Of its key in `lightning report`, and of its CSV file.
        settings: Names of its arguments; each is a column of the file.
    """

    name: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def problems(self, run: FinishedRun) -> Iterator[tuple[str, str]]:
        """Yield (domain, reason) for each domain that cannot be analysed, and ("", reason) if the run cannot.

        Args:
            run: The run.
        """

    def tasks(self, run: FinishedRun) -> list[Task]:
        """Return the domains that the analysis is about.

        Args:
            run: The run.
        """
        return run.tasks

    @abstractmethod
    def measure(self, run: FinishedRun, tasks: Sequence[Task], note: Note) -> Iterator[list[dict[str, Any]]]:
        """Analyse some of a run's domains.

        Args:
            run: The run.
            tasks: Some of `tasks(run)`.
            note: Receives lines of progress.

        Yields:
            For each domain its rows of the CSV file, without the columns that name the run.
        """


def build_analyses(settings: Mapping[str, Any]) -> list[Analysis]:
    """Build the analyses that the `key=value` arguments of a report ask for.

    Args:
        settings: By name: true, false or a mapping of arguments.

    Raises:
        ConfigError: An argument is unknown, of another type or out of range.
    """
    analyses, problems = [], []
    for name, given in settings.items():
        component = Component(ANALYSES[name], given if isinstance(given, dict) else {})
        wrong = [] if isinstance(given, dict | bool) else [f"{name}: expected true or false, got {given!r}."]
        wrong += check_component(component, name)
        try:
            analyses += [] if wrong or given is False else [instantiate(component)]
        except ValueError as error:
            wrong.append(f"{name}: {error}")
        problems += wrong
    if problems:
        raise ConfigError(problems)
    return analyses


@preserved_kernel_settings()
def analyse(
    folder: str | Path, comparisons: Sequence[Comparison], analyses: Sequence[Analysis], display: Display
) -> None:
    """Run analyses on every finished run and write `relearning.csv` or `knock_out.csv` domain by domain.

    Results of the same model with the same settings are reused. The folders of the runs are not changed.

    Args:
        folder: Where the files go.
        comparisons: Of the runs.
        analyses: From `build_analyses`.
        display: Shows progress, and each run or domain that is left out, with the reason.
    """
    for analysis in analyses:
        file = Path(folder) / f"{analysis.name}.csv"
        rows = read_csv(file)
        for strategy, run in [pair for comparison in comparisons for pair in _finished(comparison)]:
            title = f"{analysis.name} of {run.path}"
            display.note(title)
            try:
                identity = _identity(run, strategy, file.parent)
                earlier = [row for row in rows if row["run"] == identity["run"]]
                for measured in _measure(analysis, run, earlier, display):
                    place = (str(identity["run"]), measured[0]["domain"])
                    rows = [row for row in rows if (row["run"], row["domain"]) != place]
                    rows += [_as_text(identity | row) for row in measured]
                    write_whole(file, to_csv(columns_of(analysis.name), rows))
            except (ValueError, OSError, RuntimeError, ArithmeticError) as error:  # the other runs may be fine
                display.note(f"! {title} is left out: {' '.join(str(error).split())}")


def _finished(comparison: Comparison) -> Iterator[tuple[str, RunFolder]]:
    """Yield the finished runs, each with its strategy's name in the comparison."""
    for row, run in zip(comparison.rows, comparison.runs, strict=True):
        yield row["strategy"], run


def _measure(
    analysis: Analysis, folder: RunFolder, earlier: Sequence[Mapping[str, str]], display: Display
) -> Iterator[list[dict[str, Any]]]:
    """Analyse the domains of a run that have no result in the rows of an earlier report; note those left out."""
    run = FinishedRun(folder)
    problems = {"": run.problem} if run.problem else dict(analysis.problems(run))
    for domain, problem in problems.items():
        display.note(f"! {analysis.name} of {folder.path}{domain and f', {domain}'} is left out: {problem}")
    if "" in problems:
        return
    same = {name: str(getattr(analysis, name)) for name in analysis.settings} | {"model": model_of(folder)}
    done = {row["domain"] for row in earlier if all(row.get(name) == value for name, value in same.items())}
    tasks = [task for task in analysis.tasks(run) if task.name not in {*done, *problems}]
    if tasks:
        yield from analysis.measure(run, tasks, lambda text: display.note(f"  {text}"))


def _identity(run: RunFolder, strategy: str, folder: Path) -> dict[str, Any]:
    """Return the columns that name a run; its path is relative to the folder of the report."""
    return {
        "run": Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix(),
        "model": model_of(run),
        "strategy": strategy,
        "order": run.protocol.order_name,
        "seed": run.protocol.seed,
    }


def _as_text(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}
