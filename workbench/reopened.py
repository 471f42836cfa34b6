"""A finished run opened again: its config, its rows and its final model, for questions that nobody asked in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from workbench.assembly import Assembly
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.config import dump, instantiate, load
from workbench.module import ContinualModule
from workbench.results import RunFolder
from workbench.scoring import score_task
from workbench.seeding import seed_all, untouched_randomness
from workbench.strategy import ContinualStrategy, answers_itself
from workbench.trainer_arguments import trainer_arguments

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
        with untouched_randomness(), module.scoring_context():
            seed_all(self.seed, "score", task.name)
            return score_task(module.backbone, module.continual_strategy, task).value
