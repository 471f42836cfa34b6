"""Callbacks of one task's training: seeds, the strategy's hooks, the training curve, scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, WeightAveraging
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from workbench.backbone import Batch
from workbench.benchmark import Task
from workbench.display import Display
from workbench.results import RunFolder, TaskScore
from workbench.runtime.distributed import world
from workbench.runtime.seeding import preserved_random_state, seed_all
from workbench.strategy import HookError
from workbench.train.activation_cache import FrozenStates, constant_parts, states_size, too_large
from workbench.train.checkpoint import Progress, Saver
from workbench.train.data import ContinualDataModule
from workbench.train.evaluation import score_task
from workbench.train.fsdp import Sharded
from workbench.train.module import ContinualModule, accumulated_batches, optimizer_steps

SECONDS_BETWEEN_WRITES = 15.0
SECONDS_BETWEEN_UPDATES = 0.25
"""Of the progress display."""


class SeedBatches(Callback):
    """Seeds every batch from its position in the run, so that no random state has to be saved.

    Args:
        seed: The run's seed.
        position: Index of the task in the curriculum.
    """

    def __init__(self, seed: int, position: int) -> None:
        self.seed = seed
        self.position = position

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Seed from run seed, task, epoch, batch and process."""
        seed_all(self.seed, "batch", self.position, trainer.current_epoch, batch_idx, trainer.global_rank)


class CacheFrozenStates(Callback):
    """Caches the states that frozen layers compute of a task's rows, if training passes over the rows repeatedly.

    Args:
        data: The rows, and the memory limit of their states.
        item: Name of the curriculum item.
        results: The run's folder, which records the size of the cache.
        display: Progress display.
    """

    def __init__(self, data: ContinualDataModule, item: str, results: RunFolder, display: Display) -> None:
        self.data, self.item, self.results, self.display = data, item, results, display

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Compute the states before the first step, and again when a run is resumed."""
        rows = self.data.rows
        if not isinstance(module, ContinualModule) or rows is None or not self._is_worthwhile(trainer):
            return
        backbone = module.backbone
        if not (parts := constant_parts(backbone)):
            return
        tokens = torch.cat([rows.tokens(index) for index in rows.distinct()]).to(backbone.device)
        size = states_size(parts, tokens)
        fits = size <= self.data.frozen_states_gb * 1e9
        self.results.add_to_environment("frozen_states_bytes", {self.item: size if fits else 0})
        if fits:
            self.display.note(f"  states of frozen layers are computed once and cached, {size / 1e6:.0f} MB")
            with module.scoring_context():
                module.known_states = FrozenStates(backbone, parts, self.data.distinct_batches()).replaying
        else:
            self.display.note(f"  {too_large(size, self.data.frozen_states_gb)}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Free the states."""
        vars(module).pop("known_states", None)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Free the states."""
        vars(module).pop("known_states", None)

    def _is_worthwhile(self, trainer: Trainer) -> bool:
        loader: Any = trainer.train_dataloader
        several_epochs = optimizer_steps(trainer) > -(-len(loader) // accumulated_batches(trainer, 0))
        one_process = world() == 1 and not isinstance(trainer.strategy, Sharded)
        return several_epochs and one_process and self.data.frozen_states_gb > 0


class FrozenWeights(Callback):
    """Keeps frozen weights bitwise the same while another callback averages the weights.

    An average of equal values differs from them in the last bits, and Lightning's `WeightAveraging` copies the average
    of every parameter and buffer into the model at the end of training. This callback precedes it and copies the
    frozen values; `StrategyHooks`, which follows it, restores them.
    """

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Copy the frozen values."""
        if averaging(trainer):
            self._values = {name: value.detach().clone() for name, value in _frozen(module)}

    @torch.no_grad()
    def restore(self, module: LightningModule) -> None:
        """Restore the frozen values."""
        for name, value in _frozen(module) if self._values else ():
            value.copy_(self._values[name])
        self._values = {}


def _frozen(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in module.named_parameters() if not value.requires_grad)
    yield from module.named_buffers()


class StrategyHooks(Callback):
    """Calls the strategy's hooks `edit_gradients` and `after_task`.

    It precedes `ForgettingMonitor`, so that the model is scored after `after_task`. It uses `on_train_end`, because
    the model leaves the device right after.

    Args:
        task: The task that is learnt.
        data: Its batches are given to `after_task`.
        saver: Saves the trained state before `after_task` changes it.
        frozen: Holds the values of frozen weights.
    """

    def __init__(self, task: Task, data: ContinualDataModule, saver: Saver, frozen: FrozenWeights) -> None:
        self.task = task
        self.data = data
        self.saver = saver
        self.frozen = frozen

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Set the number of accumulated batches, which Lightning forgets when a run is resumed within an epoch."""
        trainer.accumulate_grad_batches = accumulated_batches(trainer, trainer.current_epoch)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Call `edit_gradients`: the gradients are accumulated and unscaled, and not yet clipped."""
        if isinstance(module, ContinualModule):
            module.continual_strategy.edit_gradients(module.backbone)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Take over the optimizer state, save, and call `after_task`."""
        if isinstance(module, ContinualModule):
            self.frozen.restore(module)
            if module.carried is not None:
                module.carried.take(trainer.optimizers[0], dict(module.named_parameters()))
            self.saver.between(module, "trained")
            self.after_task(module)

    def after_task(self, module: ContinualModule) -> None:
        """Call `after_task`, seeded from the task's position alone."""
        seed_all(self.data.seed, "after", self.saver.progress.position)
        module.continual_strategy.after_task(module.backbone, self.task, self.data.batches())


class TrainingCurve(Callback):
    """Records the loss and each penalty of every optimizer step in `train.csv`.

    Other callbacks find them in `trainer.callback_metrics` as "train/loss" and so on, loggers get them under the same
    names, and a `ReduceLROnPlateau` scheduler is advanced with the loss.

    Args:
        results: The run's folder.
        item: Name of the curriculum item.
        progress: Progress within the item; steps and tokens are counted there.
        display: Progress display.
    """

    def __init__(self, results: RunFolder, item: str, progress: Progress, display: Display) -> None:
        self.results = results
        self.item = item
        self.progress = progress
        self.display = display
        self._parts: list[dict[str, Any]] = []  # of the current step's batches
        self._unwritten: list[dict[str, Any]] = []
        self._last_write = time.monotonic()
        self._last_update = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Collect the parts of the loss as tensors: reading their values each step would make a GPU wait."""
        progress = self.progress
        progress.tokens += module.tokens
        parts = {name: value for name, value in outputs.items() if name != "loss"}
        share = module.step_share
        self._parts.append({name: value * share for name, value in {"loss": sum(parts.values()), **parts}.items()})
        if trainer.global_step == progress.steps:
            return
        progress.steps = trainer.global_step
        step_parts, self._parts = _sum_by_name(self._parts), []
        self._unwritten.append({"step": progress.steps_before + progress.steps, "item": self.item, **step_parts})
        self._publish(trainer, module, step_parts)
        total = optimizer_steps(trainer)
        now = time.monotonic()
        if now - self._last_update > SECONDS_BETWEEN_UPDATES or progress.steps == total:
            self._last_update = now
            self.display.steps(
                progress.steps, int(total) if math.isfinite(total) else progress.steps, float(step_parts["loss"])
            )
        if time.monotonic() - self._last_write > SECONDS_BETWEEN_WRITES:
            self.write()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the remaining steps."""
        self.write()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Write the remaining steps, which may show the reason, unless writing is what failed."""
        with suppress(OSError):
            self.write()

    def write(self) -> None:
        """Write the steps that are not written yet; also called before a state is saved, which refers to them."""
        rows = [{key: _to_number(value) for key, value in row.items()} for row in self._unwritten]
        self._unwritten, self._last_write = [], time.monotonic()
        self.results.add_steps(rows)

    def _publish(self, trainer: Trainer, module: LightningModule, step_parts: dict[str, Any]) -> None:
        """Pass a step's loss and its parts to callbacks, loggers and schedulers; as tensors, so that no GPU waits.

        Raises:
            HookError: An EarlyStopping callback monitors something else.
        """
        metrics = {f"train/{name}": value for name, value in step_parts.items()}
        trainer.callback_metrics.update(metrics)
        if trainer.loggers:
            step = float(self.progress.steps_before + self.progress.steps - 1)
            module.log_dict({**metrics, "step": step})
        for callback in trainer.early_stopping_callbacks:
            if isinstance(callback, EarlyStopping) and callback.strict and callback.monitor not in metrics:
                problem = f"EarlyStopping monitors {callback.monitor!r}, and {self.item} has {', '.join(metrics)}"
                raise HookError(f"trainer.callbacks: {problem}. Choose one of these.")
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(step_parts["loss"])


def _to_number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _sum_by_name(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum each part of the loss over a step's batches; a penalty that is absent in a batch counts as 0."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


class ForgettingMonitor(Callback):
    """Scores every task, probe and corpus after a task has been learnt, which gives one row of the score matrix.

    Each score is written as soon as it is known. Training mode and random state are restored afterwards, so that the
    weights do not depend on whether scores are computed.

    Args:
        data: What is tested.
        results: The run's folder, to which scores are written.
        after: The row of the score matrix; None: nothing is scored at the end of this training.
        display: Progress display; None: no output.
        every_n_steps: Also score within the task, into `within.csv`, every so many optimizer steps, and once before the
            first step of the sequence, which shows the effect of `setup` alone. None: never.
        progress: Progress within the task; the seconds of scoring are added there.
    """

    def __init__(
        self,
        data: ContinualDataModule,
        results: RunFolder,
        after: int | None,
        display: Display | None = None,
        every_n_steps: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.data = data
        self.results = results
        self.after = after
        self.display = display or Display()
        self.every_n_steps = every_n_steps
        self.progress = progress or Progress(0, 0)
        self._last_step = self.progress.steps

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Score before the first step of the sequence if `every_n_steps` is given."""
        is_start = self.progress.steps_before == self.progress.steps == 0
        if self.every_n_steps is not None and is_start and isinstance(module, ContinualModule):
            self._score_within(module, 0)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Score within the task every `every_n_steps` optimizer steps."""
        step = trainer.global_step
        if self.every_n_steps is None or step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        if isinstance(module, ContinualModule):
            with averaged(trainer, module):
                self._score_within(module, self.progress.steps_before + step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Score the matrix row `after`."""
        if isinstance(module, ContinualModule):
            self.score(module)

    def score(self, module: ContinualModule) -> None:
        """Score everything that is tested, as row `after`, except cells that are already there after a resume."""
        if self.after is None:
            return
        after = self.after

        def write(score: TaskScore, seconds: float) -> None:
            self.results.add_score(after, score, seconds)
            self.results.add_to_environment("cut_in_test", {score.task: score.cut})
            self.display.scored(after, score.task, score.value)

        self.display.scoring(after)
        waiting = []
        for task in self.data.tested:
            if self.results.has_cell(after, task.name):
                self.display.scored(after, task.name, self.results.value(after, task.name, task.primary))
            else:
                waiting.append(task)
        self._score(module, waiting, write)

    def _score_within(self, module: ContinualModule, step: int) -> None:
        waiting = [task for task in self.data.tested if not self.results.has_within(step, task.name)]
        name = module.task_name
        self._score(module, waiting, lambda score, seconds: self.results.add_within(step, name, score, seconds))

    def _score(self, module: ContinualModule, tasks: Sequence[Task], write: Callable[[TaskScore, float], None]) -> None:
        for number, task in enumerate(tasks, 1):
            self.display.stage(f"scoring {task.name}", number, len(tasks), minor=True)
            started = time.monotonic()
            with preserved_random_state(), module.scoring_context():
                seed_all(self.data.seed, "score", task.name)
                options = self.data.score_options
                score = score_task(module.backbone, module.continual_strategy, task, options=options)
            seconds = time.monotonic() - started
            write(score, seconds)
            self.progress.scoring += seconds


def averaging(trainer: Trainer) -> list[WeightAveraging]:
    """Return the callbacks that average weights and replace the model's by the average at the end of training."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]


@contextmanager
def averaged(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Replace the weights by their average within the context, as at the end of training."""
    for callback in averaging(trainer):
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in averaging(trainer):
            callback.on_validation_epoch_end(trainer, module)


def trainer_conflicts(trainer: Trainer) -> list[str]:
    """Return what does not go together among a Trainer's callbacks, strategy and accumulation, as messages."""
    problems = []
    if averaging(trainer) and isinstance(trainer.strategy, Sharded):
        name = type(averaging(trainer)[0]).__name__
        problems.append(
            f"trainer.callbacks: {name} cannot average sharded weights. Leave it out, or give strategy=ddp."
        )
    schedulers = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
    if schedulers and trainer.accumulate_grad_batches != 1:
        both = "GradientAccumulationScheduler and trainer.accumulate_grad_batches both say how many batches make a step"
        problems.append(f"trainer.callbacks: {both}. Leave one of them out.")
    return problems


def combine_callbacks(ours: Sequence[Callback], others: Sequence[Callback]) -> list[Callback]:
    """Combine the workbench's callbacks and a user's: `on_train_end` of the user's comes before scoring."""
    place = next((index for index, one in enumerate(ours) if isinstance(one, StrategyHooks)), len(ours))
    return [*ours[:place], *others, *ours[place:]]
