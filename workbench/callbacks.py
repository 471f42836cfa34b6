"""What watches and drives one task's training: seeds, the strategy's hooks, the curve, the scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from workbench.batch import Batch
from workbench.benchmark import Task
from workbench.data import ContinualDataModule
from workbench.display import Display
from workbench.module import ContinualModule
from workbench.results import RunFolder
from workbench.scoring import TaskScore, score_task
from workbench.seeding import seed_all, untouched_randomness

SECONDS_BETWEEN_WRITES = 15.0
SECONDS_BETWEEN_SHOWN = 0.25


class SeedBatches(Callback):
    """Seeds every batch from where it stands, so that no random state ever has to be saved.

    Args:
        seed: Of the run.
        position: Of the task in the curriculum.
    """

    def __init__(self, seed: int, position: int) -> None:
        self.seed = seed
        self.position = position

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Draws of this batch depend on seed, task, epoch, batch and process alone."""
        seed_all(self.seed, "batch", self.position, trainer.current_epoch, batch_idx, trainer.global_rank)


class StrategyHooks(Callback):
    """Calls the strategy's hooks at the moments that only the Trainer knows.

    It stands before `ForgettingMonitor`, so that what is scored is the model after `after_task`; and it
    uses `on_train_end`, because the model leaves the device right after.

    Args:
        task: What is being learnt.
        data: Whose batches `after_task` may look at.
    """

    def __init__(self, task: Task, data: ContinualDataModule) -> None:
        self.task = task
        self.data = data

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients are whole and unscaled here, and not yet clipped."""
        if isinstance(module, ContinualModule):
            module.continual_strategy.edit_gradients(module.backbone)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The task has been learnt."""
        if isinstance(module, ContinualModule):
            module.continual_strategy.after_task(module.backbone, self.task, self.data.batches())


class TrainingCurve(Callback):
    """Writes the loss and each penalty of every optimizer step, and shows them.

    Args:
        results: Where `train.csv` is.
        item: The name of what is being learnt.
        steps_before: Optimizer steps of the sequence before this task.
        display: What a person sees.
    """

    def __init__(self, results: RunFolder, item: str, steps_before: int, display: Display) -> None:
        self.results = results
        self.item = item
        self.steps_before = steps_before
        self.display = display
        self.tokens: int | Tensor = 0
        self.steps = 0
        self._parts: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._shown = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keeps the parts of the loss as tensors: reading them each step would make a GPU wait."""
        self.tokens += batch.attention_mask.sum()
        scale = trainer.accumulate_grad_batches  # Lightning has divided the loss by it, and nothing else
        self._parts.append({**outputs, "loss": outputs["loss"] * scale})
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        parts, self._parts = _mean_parts(self._parts), []
        self._waiting.append({"step": self.steps_before + self.steps, "item": self.item, **parts})
        total = trainer.estimated_stepping_batches
        now = time.monotonic()
        if now - self._shown > SECONDS_BETWEEN_SHOWN or self.steps == total:
            self._shown = now
            self.display.steps(self.steps, int(total) if math.isfinite(total) else self.steps, float(parts["loss"]))
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self._write()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes what is left."""
        self._write()

    def _write(self) -> None:
        rows = [{key: _plain(value) for key, value in row.items()} for row in self._waiting]
        self._waiting, self._written = [], time.monotonic()
        self.results.add_steps(rows)
        if bad := [row for row in rows if not math.isfinite(row["loss"])]:
            raise FloatingPointError(
                f"{self.item}: the loss is {bad[0]['loss']} at step {bad[0]['step']} of the sequence."
            )


class ForgettingMonitor(Callback):
    """Scores every task, probe and corpus once a task has been learnt, and writes as it goes.

    Mode and random state are the same before and after, so that the weights do not depend on whether anybody
    looks.

    Args:
        data: Says what is tested.
        results: Where the scores go.
        after: The row of the score matrix; None: nothing is scored at the end of this training.
        display: What a person sees.
        every_n_steps: Also score in mid-task, into `within.csv`, after so many optimizer steps, and once before the
            first step of the sequence: what a surgery has left.

    Attributes:
        seconds: What all scoring took.
        decoded_tokens: Tokens of the answers of row `after`.
        decode_seconds: What it took to give these.
    """

    def __init__(
        self,
        data: ContinualDataModule,
        results: RunFolder,
        after: int | None,
        display: Display | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        self.data = data
        self.results = results
        self.after = after
        self.display = display or Display()
        self.every_n_steps = every_n_steps
        self.seconds = 0.0
        self.decoded_tokens = 0
        self.decode_seconds = 0.0
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Scores before the first step of all, where scores in mid-task were asked for."""
        if self.every_n_steps is not None and isinstance(module, ContinualModule) and module.steps_before == 0:
            self._score_within(module, 0)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Scores in mid-task, where that was asked for."""
        step = trainer.global_step
        if self.every_n_steps is None or step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        if isinstance(module, ContinualModule):
            self._score_within(module, module.steps_before + step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Scores the row of the matrix that this task ends."""
        if isinstance(module, ContinualModule):
            self.score(module)

    def score(self, module: ContinualModule) -> None:
        """Scores everything that is tested, as row `after`."""
        if self.after is None:
            return
        after = self.after
        cut: dict[str, dict[str, int]] = {}

        def keep(score: TaskScore) -> None:
            self.results.add_score(after, score)
            self.display.scored(after, score.task, score.value)
            cut[score.task] = score.cut
            self.decoded_tokens += score.decoded_tokens
            self.decode_seconds += score.decode_seconds

        self.display.scoring(after)
        self._score(module, keep)
        self.results.add_to_environment("cut_in_test", cut)

    def _score_within(self, module: ContinualModule, at: int) -> None:
        self._score(module, lambda score: self.results.add_within(at, module.task_name, score))

    def _score(self, module: ContinualModule, keep: Callable[[TaskScore], None]) -> None:
        started = time.monotonic()
        with untouched_randomness():
            for task in self.data.tested:
                with module.scoring_context():
                    score = score_task(module.backbone, module.continual_strategy, task)
                keep(score)
        self.seconds += time.monotonic() - started


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _mean_parts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each part of the loss over a step's batches; a penalty that was absent counts as 0."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}
