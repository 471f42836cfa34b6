"""Relearning: how fast a forgotten domain is learnt again, as Ebbinghaus' savings in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from workbench.analysis.runner import Analysis, FinishedRun, Note
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.runtime.seeding import seed_all
from workbench.train import ContinualDataModule, ContinualModule

Curve = list[tuple[int, float]]
"""(optimizer steps, primary score on validation rows), from 0 steps on."""


class Relearning(Analysis):
    """Fine-tune a run's final model on each earlier domain until it scores as it did right after learning it.

    The model that the run began with is fine-tuned on the same rows in the same order. Savings are
    1 - steps / steps of the base model (Ebbinghaus, 1885, "Über das Gedächtnis"). 1: nothing had to be learnt
    again; 0: everything; below 0: the domain is learnt more slowly than at first.

    All parameters train, whatever the run's strategy trained, with the study's optimizer at a constant rate, so that
    all strategies are asked the same question. The target is the recorded score minus a tolerance; whether it is
    reached is decided on validation rows, which nothing was trained on.

    Args:
        every: Optimizer steps between two scorings; steps are known no more precisely than that.
        max_steps: Optimizer steps after which the target counts as not reached.
        tolerance: How far below the recorded score the target is.

    Raises:
        ValueError: A number is out of range.
    """

    name = "relearning"
    settings = ("every", "max_steps", "tolerance")

    def __init__(self, every: int = 5, max_steps: int = 200, tolerance: float = 0.02) -> None:
        if not 1 <= every <= max_steps:
            raise ValueError(
                f"every={every} is out of range; it has to be at least 1 and at most max_steps={max_steps}."
            )
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={tolerance} is out of range; it has to be at least 0 and less than 1.")
        self.every, self.max_steps, self.tolerance = every, max_steps, tolerance
        self._base_curves: dict[tuple[str, str], Curve] = {}

    def problems(self, run: FinishedRun) -> Iterator[tuple[str, str]]:
        order, primary = run.protocol.order, run.protocol.primary
        if len(order) < 2:
            yield "", "it learnt one domain, and nothing after it."
        for place, task in enumerate(self.tasks(run), start=1):
            if task.is_corpus:
                yield task.name, "it is a corpus, which is not scored between 0 and 1."
            elif math.isnan(run.folder.value(place, task.name, primary[task.name])):
                yield task.name, "there is no score right after it was learnt, as when domains are learnt together."
            elif not len(task.validation):
                yield task.name, "it has no validation rows to decide on. Give it some."
            elif task.train_without_validation is not None:
                yield task.name, "its validation rows are training rows, and this run was trained on them."

    def tasks(self, run: FinishedRun) -> list[Task]:
        """Return all domains but the last, which cannot have been forgotten."""
        return run.tasks[:-1]

    def measure(self, run: FinishedRun, tasks: Sequence[Task], note: Note) -> Iterator[list[dict[str, Any]]]:
        order, primary = run.protocol.order, run.protocol.primary
        optimizer = run.config.optimizer
        arguments = ", ".join(f"{name}={value}" for name, value in optimizer.init_args.items())
        final = run.final()
        for task in tasks:
            final.restore()
            learnt = run.folder.value(order.index(task.name) + 1, task.name, primary[task.name])
            target = learnt - self.tolerance
            curve = self.curve(run, final, task, target, lambda text: note(f"final model, {text}"))
            base = self._base_curve(run, task, target, lambda text: note(f"base model, {text}"))
            steps, steps_base = steps_to(curve, target), steps_to(base, target)
            row = {
                "domain": task.name,
                "metric": primary[task.name],
                "learnt": learnt,
                "target": target,
                "before": curve[0][1],
                "steps": steps,
                "untouched": base[0][1],
                "steps_untouched": steps_base,
                "savings": savings(steps, steps_base),
                "rows": len(task.validation),
                "optimizer": f"{optimizer.class_path}({arguments})",
                **{name: getattr(self, name) for name in self.settings},
            }
            yield [row]

    def _base_curve(self, run: FinishedRun, task: Task, target: float, note: Note) -> Curve:
        """Return the base model's curve, computed once for all runs with the same model, rows and settings."""
        key = (run.training_key, task.name)
        curve = self._base_curves.get(key)
        if curve is None or (math.isnan(steps_to(curve, target)) and curve[-1][0] < self.max_steps):
            curve = self._base_curves[key] = self.curve(run, run.base(), task, target, note)
        return curve

    def curve(self, run: FinishedRun, backbone: Backbone, task: Task, target: float, note: Note) -> Curve:
        """Fine-tune a model on a domain and score it, until it reaches the target or `max_steps`.

        Args:
            run: Its config gives batches, optimizer and Trainer.
            backbone: The model; all its parameters are trained.
            task: The domain; scored on its validation rows.
            target: Primary score to reach.
            note: Receives lines of progress.
        """
        scored = replace(task, test=task.validation)
        settings = run.config.data
        data = ContinualDataModule(
            [task],
            batch_size=settings.batch_size,
            batch_tokens=settings.batch_tokens,
            bucket=settings.bucket,
            seed=run.seed,
        )
        with TemporaryDirectory() as folder:
            stop = StopAtTarget(
                lambda module: run.score(module, scored),
                target,
                self.every,
                self.max_steps,
                lambda step, score: note(f"{task.name}: step {step}, {score:.3f} of {target:.3f}"),
            )
            trainer = run.trainer(Path(folder), [stop], self.max_steps)
            module = run.module(backbone, trainer)
            if not stop.reached(module, 0):
                data.begin(backbone, 0, task, task.train)
                seed_all(run.seed, "task", 0)
                module.begin(task.name, 0)
                trainer.fit(module, datamodule=data)
        return stop.curve


class StopAtTarget(Callback):
    """Score a model every few optimizer steps and stop its training once it reaches a target.

    Args:
        score: Returns the score.
        target: Score to reach.
        every: Optimizer steps between two scorings.
        last: The last step, which is scored in any case.
        note: Receives the step and the score of each scoring.

    Attributes:
        curve: (steps, score) of each scoring.
    """

    def __init__(
        self,
        score: Callable[[ContinualModule], float],
        target: float,
        every: int,
        last: int,
        note: Callable[[int, float], None] = lambda step, score: None,
    ) -> None:
        self.score, self.target, self.every, self.last, self.note = score, target, every, last, note
        self.curve: Curve = []

    def reached(self, module: ContinualModule, step: int) -> bool:
        """Score now and return True if the target is reached.

        Args:
            module: The model.
            step: Optimizer steps so far.
        """
        value = self.score(module)
        self.curve.append((step, value))
        self.note(step, value)
        return value >= self.target

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score where it is due; with gradient accumulation most batches do not end a step."""
        step = trainer.global_step
        due = step % self.every == 0 or step == self.last
        if due and step > self.curve[-1][0] and isinstance(module, ContinualModule):
            trainer.should_stop = self.reached(module, step)


def steps_to(curve: Curve, target: float) -> float:
    """Return the first scored step at which a target was reached; NaN if it was not.

    >>> steps_to([(0, 0.1), (5, 0.6), (10, 0.5)], 0.5), steps_to([(0, 0.1)], 0.5)
    (5.0, nan)
    """
    return next((float(step) for step, score in curve if score >= target), math.nan)


def savings(steps: float, steps_base: float) -> float:
    """Return the share of optimizer steps saved; NaN where one of the numbers is unknown or nothing was to be learnt.

    Without a single step the share is 1, even if the base model did not reach the target.

    >>> savings(5.0, 20.0), savings(5.0, 0.0), savings(0.0, math.nan)
    (0.75, nan, 1.0)
    """
    if steps == 0 and math.isnan(steps_base):
        return 1.0
    return 1 - steps / steps_base if steps_base else math.nan
