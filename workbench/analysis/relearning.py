"""How soon a forgotten domain comes back: Ebbinghaus' savings, in optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from workbench.analysis.runner import Reopened
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.runtime.seeding import seed_all
from workbench.train import ContinualDataModule, ContinualModule

Course = list[tuple[int, float]]
"""(optimizer steps, primary score on validation rows), from 0 steps on."""


class Relearning:
    """Fine-tunes a run's final model on each earlier domain until it scores as it did right after it was learnt.

    The same from the untouched model, with the same rows in the same order, says how much of that the final model
    still had: savings = 1 - steps / steps from the untouched model (Ebbinghaus, 1885, "Über das Gedächtnis"). 1: there
    was nothing to learn again; 0: all of it; below 0: it is learnt more slowly than at first.

    All parameters train, whatever the run's strategy trained, with the study's optimizer at a constant rate, so that
    strategies are asked the same question. The score that has to be reached is the recorded one less a tolerance;
    when it is reached is decided on validation rows, which nothing was trained on.

    Args:
        every: Optimizer steps from one scoring to the next; steps are known no better than that.
        max_steps: After so many it is given up.
        tolerance: How far below the recorded score counts as reached.

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
        self._from_untouched: dict[tuple[str, str], Course] = {}

    def problems(self, opened: Reopened) -> Iterator[tuple[str, str]]:
        """The domains that cannot be asked about, and why; "" for the run as a whole."""
        order, primary = opened.protocol.order, opened.protocol.primary
        if len(order) < 2:
            yield "", "it learnt one domain, and nothing after it."
        for place, task in enumerate(opened.tasks[:-1], start=1):
            if task.is_corpus:
                yield task.name, "it is a corpus, which is not scored between 0 and 1."
            elif math.isnan(opened.run.value(place, task.name, primary[task.name])):
                yield task.name, "there is no score from right after it was learnt, as where domains have no turn."
            elif not len(task.validation):
                yield task.name, "it has no validation rows to decide on. Give it some."
            elif task.train_without_validation is not None:
                yield task.name, "its validation rows are training rows, and this run was trained on them."

    def measure(self, opened: Reopened, known: set[str], tell: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
        """Learns each earlier domain again.

        Args:
            opened: The run.
            known: Domains that are left out.
            tell: Receives a line of progress now and then.

        Yields:
            For each domain its row of `relearning.csv`, alone in a list, without what names the run.
        """
        primary, optimizer = opened.protocol.primary, opened.config.optimizer
        rate = ", ".join(f"{name}={value}" for name, value in optimizer.init_args.items())
        asked = [(place, task) for place, task in enumerate(opened.tasks[:-1], start=1) if task.name not in known]
        final = opened.final()
        for place, task in asked:
            final.restore()
            learnt = opened.run.value(place, task.name, primary[task.name])
            target = learnt - self.tolerance
            again = self.course(opened, final, task, target, lambda text: tell(f"final model, {text}"))
            first = self._untouched_course(opened, task, target, lambda text: tell(f"untouched model, {text}"))
            steps, anew = steps_to(again, target), steps_to(first, target)
            row = {
                "domain": task.name,
                "metric": primary[task.name],
                "learnt": learnt,
                "target": target,
                "before": again[0][1],
                "steps": steps,
                "untouched": first[0][1],
                "steps_untouched": anew,
                "savings": savings(steps, anew),
                "rows": len(task.validation),
                "optimizer": f"{optimizer.class_path}({rate})",
                **{name: getattr(self, name) for name in self.settings},
            }
            yield [row]

    def _untouched_course(self, opened: Reopened, task: Task, target: float, tell: Callable[[str], None]) -> Course:
        """The untouched model's course, made once for all runs that begin with the same model, rows and settings."""
        key = (opened.base, task.name)
        kept = self._from_untouched.get(key)
        if kept is None or (math.isnan(steps_to(kept, target)) and kept[-1][0] < self.max_steps):
            kept = self._from_untouched[key] = self.course(opened, opened.untouched(), task, target, tell)
        return kept

    def course(
        self, opened: Reopened, backbone: Backbone, task: Task, target: float, tell: Callable[[str], None]
    ) -> Course:
        """Fine-tunes a model on a domain, and scores it, until the score is reached or the steps are over."""
        asked = replace(task, test=task.validation)
        data = ContinualDataModule(
            [task], batch_size=opened.config.data.batch_size, bucket=opened.config.data.bucket, seed=opened.seed
        )
        data.batch_tokens = opened.config.data.batch_tokens
        with TemporaryDirectory() as folder:
            scored = Scored(lambda module: opened.score(module, asked), target, self.every, self.max_steps)
            scored.tell = lambda step, score: tell(f"{task.name}: step {step}, {score:.3f} of {target:.3f}")
            trainer = opened.trainer(Path(folder), [scored], self.max_steps)
            module = opened.module(backbone, trainer)
            if not scored.look(module, 0):
                data.begin(backbone, 0, task, task.train)
                seed_all(opened.seed, "task", 0)
                module.begin(task.name, 0)
                trainer.fit(module, datamodule=data)
        return scored.course


class Scored(Callback):
    """Scores a model every so many steps, and ends its training once it is good enough.

    Args:
        score: Gives the score.
        target: That has to be reached.
        every: Steps from one scoring to the next.
        last: The last step, which is scored in any case.

    Attributes:
        course: Steps and scores.
        tell: Receives each.
    """

    def __init__(self, score: Callable[[ContinualModule], float], target: float, every: int, last: int) -> None:
        self.score, self.target, self.every, self.last = score, target, every, last
        self.course: Course = []
        self.tell: Callable[[int, float], None] = lambda step, score: None

    def look(self, module: ContinualModule, step: int) -> bool:
        """Scores now; says whether that is enough."""
        value = self.score(module)
        self.course.append((step, value))
        self.tell(step, value)
        return value >= self.target

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Scores where it is time; a batch that ends no step changes nothing."""
        step = trainer.global_step
        due = step % self.every == 0 or step == self.last
        if due and step > self.course[-1][0] and isinstance(module, ContinualModule):
            trainer.should_stop = self.look(module, step)


def steps_to(course: Course, target: float) -> float:
    """The first scored step at which a target was reached; NaN: it was not.

    >>> steps_to([(0, 0.1), (5, 0.6), (10, 0.5)], 0.5), steps_to([(0, 0.1)], 0.5)
    (5.0, nan)
    """
    return next((float(step) for step, score in course if score >= target), math.nan)


def savings(steps: float, untouched: float) -> float:
    """The share of the steps that was saved; NaN where one of them is not known or there was nothing to learn.

    Without a step the share is 1, however many more than `max_steps` the untouched model would take.

    >>> savings(5.0, 20.0), savings(5.0, 0.0), savings(0.0, math.nan)
    (0.75, nan, 1.0)
    """
    if steps == 0 and math.isnan(untouched):
        return 1.0
    return 1 - steps / untouched if untouched else math.nan
