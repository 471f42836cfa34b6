"""Run analyses on finished runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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

OF_THE_STUDY_ALONE = ("strategy", "num_nodes", "logger", "callbacks", "max_time", "min_epochs", "min_steps")


class Reopened:
    """What a finished run was made of, and its final model; nothing is written into its folder.

    Args:
        run: Its folder.

    Raises:
        ConfigError: Its config, or what that names, is not there any more.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.protocol: dict[str, Any] = run.environment()["protocol"]
        self.config = load(run.path / "config.yaml")
        self.seed = int(self.protocol["seed"])
        self._assembly = Assembly(self.config)

    @property
    def tasks(self) -> list[Task]:
        """The domains in the order in which they were learnt."""
        return [self._assembly.tasks[name] for name in self.protocol["order"]]

    @property
    def problem(self) -> str:
        """Why the saved model alone is not what answered in this run; empty: it is."""
        if not (self.run.path / "model").is_dir():
            return "its folder `model` is not there any more. Make the run again."
        if answers_itself(self._assembly.strategy(self.protocol["strategy"])):
            return "its strategy answers in a way of its own, which the saved model alone does not have."
        return ""

    @property
    def base(self) -> str:
        """What the untouched model's learning depends on, as text: the run's config but for method and order."""
        plain = replace(self.config, strategies={}, orders=None, name="", output="")
        return f"{self.seed} {dump(plain)}"

    def final(self) -> Backbone:
        """The final model, with any adapter folded in as it was saved."""
        path = str(self.run.path / "model")
        return Assembly(replace(self.config, backbone=replace(self.config.backbone, path=path))).backbone

    def untouched(self) -> Backbone:
        """The model that the run began with."""
        backbone = self._assembly.backbone
        backbone.restore()
        return backbone

    def module(self, backbone: Backbone, trainer: Trainer) -> ContinualModule:
        """A model that is asked, or fine-tuned, plainly: with the study's optimizer at a constant rate."""
        module = ContinualModule(
            backbone,
            ContinualStrategy(),
            lambda _, parameters, __: (instantiate(self.config.optimizer, params=parameters), None),
        )
        module.to(trainer.strategy.root_device)
        module.adopt_precision(trainer)
        return module

    def trainer(self, folder: Path, callbacks: Sequence[Callback] = (), max_steps: int = 1) -> Trainer:
        """A Trainer as the study asks for, on one device, without its loggers.

        Args:
            folder: Where it may write.
            callbacks: Its own are left out.
            max_steps: Optimizer steps.
        """
        given = {key: value for key, value in self.config.trainer.items() if key not in OF_THE_STUDY_ALONE}
        own = {"devices": 1, "callbacks": list(callbacks), "default_root_dir": folder}
        return Trainer(**trainer_arguments(given, (-1, max_steps)) | own)

    def score(self, module: ContinualModule, task: Task) -> float:
        """The primary score on a task's test rows, seeded as in a run."""
        with preserved_random_state(), module.scoring_context():
            seed_all(self.seed, "score", task.name)
            return score_task(module.backbone, module.continual_strategy, task).value


def built(asked: Mapping[str, Any]) -> list[Any]:
    """The analyses that a report's `key=value` arguments ask for.

    Args:
        asked: By name, true or a mapping of settings.

    Raises:
        ConfigError: A setting is not known, of another type or out of range.
    """
    made, problems = [], []
    for name, settings in asked.items():
        component = Component(ANALYSES[name], settings if isinstance(settings, dict) else {})
        wrong = [] if isinstance(settings, dict | bool) else [f"{name}: expected true or false, got {settings!r}."]
        wrong += check_component(component, name)
        try:
            made += [] if wrong or settings is False else [instantiate(component)]
        except ValueError as error:
            wrong.append(f"{name}: {error}")
        problems += wrong
    if problems:
        raise ConfigError(problems)
    return made


@preserved_kernel_settings()
def analyse(folder: str | Path, comparisons: Sequence[Comparison], analyses: Sequence[Any], display: Display) -> None:
    """Asks every finished run, and writes `relearning.csv` or `knock_out.csv` as it goes.

    What was measured before, with the same settings and on the same model, is kept. The runs' folders stay as they are.

    Args:
        folder: Where the files go.
        comparisons: Of the runs.
        analyses: As `built` gives them.
        display: What a person sees: each result, and each run or domain that is left out, with the reason.
    """
    for analysis in analyses:
        file = Path(folder) / f"{analysis.name}.csv"
        rows = read_csv(file)
        for label, run in [pair for comparison in comparisons for pair in labelled(comparison)]:
            title = f"{analysis.name} of {run.path}"
            display.note(title)
            try:
                named = _name(run, label, file.parent)
                before = [old for old in rows if old["run"] == named["run"]]
                for found in _measured(analysis, run, before, display):
                    place = (str(named["run"]), found[0]["domain"])
                    rows = [old for old in rows if (old["run"], old["domain"]) != place]
                    rows += [_as_text(named | row) for row in found]
                    write_whole(file, to_csv(columns_of(analysis.name), rows))
            except (ValueError, OSError, RuntimeError, ArithmeticError) as error:  # other runs may be whole
                display.note(f"! {title} is left out: {' '.join(str(error).split())}")


def labelled(comparison: Comparison) -> Iterator[tuple[str, RunFolder]]:
    """The finished runs, each with its strategy's name in the comparison."""
    for row, run in zip(comparison.rows, comparison.runs, strict=True):
        yield row["strategy"], run


def _measured(analysis: Any, run: RunFolder, rows: Sequence[Mapping[str, str]], display: Display) -> Iterator[Any]:
    """What an analysis says of a run, domain by domain, but for those that it said before or cannot ask about."""
    opened = Reopened(run)
    problems = {"": opened.problem} if opened.problem else dict(analysis.problems(opened))
    for domain, problem in problems.items():
        display.note(f"! {analysis.name} of {run.path}{domain and f', {domain}'} is left out: {problem}")
    if "" in problems:
        return
    own = {name: str(getattr(analysis, name)) for name in analysis.settings} | {"model": model_of(run)}
    known = {row["domain"] for row in rows if all(row.get(name) == value for name, value in own.items())}
    waiting = [task.name for task in opened.tasks if task.name not in {*known, *problems}]
    if waiting:
        yield from analysis.measure(opened, {*known, *problems}, lambda text: display.note(f"  {text}"))


def _name(run: RunFolder, label: str, folder: Path) -> dict[str, Any]:
    protocol = run.environment()["protocol"]
    return {
        "run": Path(os.path.relpath(run.path.resolve(), folder.resolve())).as_posix(),
        "model": model_of(run),
        "strategy": label,
        "order": protocol["order_name"],
        "seed": protocol["seed"],
    }


def _as_text(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}
