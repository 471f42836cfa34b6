"""What watches and drives one task's training: seeds, the strategy's hooks, the curve, the scores."""

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
from workbench.runtime.seeding import seed_all, untouched_randomness
from workbench.strategy import HookError
from workbench.train.activation_cache import FrozenStates, constant_parts, states_size, too_large
from workbench.train.checkpoint import Progress, Saver
from workbench.train.data import ContinualDataModule
from workbench.train.evaluation import score_task
from workbench.train.fsdp import Sharded
from workbench.train.module import ContinualModule, accumulated_batches, optimizer_steps

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


class KeepsFrozenStates(Callback):
    """Has what frozen layers make of a task's rows computed once, where the rows are passed over more than once.

    Args:
        data: Whose rows, and how much memory their states may take.
        item: The name of what is being learnt.
        results: Where it is written how much they took.
        display: What a person sees.
    """

    def __init__(self, data: ContinualDataModule, item: str, results: RunFolder, display: Display) -> None:
        self.data, self.item, self.results, self.display = data, item, results, display

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Computes them, before the first step and again where a run is resumed."""
        rows = self.data.rows
        if not isinstance(module, ContinualModule) or rows is None or not self._pays(trainer):
            return
        backbone = module.backbone
        if not (parts := constant_parts(backbone)):
            return
        tokens = torch.cat([rows.tokens(index) for index in rows.distinct()]).to(backbone.device)
        size = states_size(parts, tokens)
        fits = size <= self.data.frozen_states_gb * 1e9
        self.results.add_to_environment("frozen_states_bytes", {self.item: size if fits else 0})
        if fits:
            self.display.note(f"  what frozen layers make of the rows is computed once, and takes {size / 1e6:.0f} MB")
            with module.scoring_context():
                module.known_states = FrozenStates(backbone, parts, self.data.distinct_batches()).standing_in
        else:
            self.display.note(f"  {too_large(size, self.data.frozen_states_gb)}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Lets go of them."""
        vars(module).pop("known_states", None)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Lets go of them."""
        vars(module).pop("known_states", None)

    def _pays(self, trainer: Trainer) -> bool:
        loader: Any = trainer.train_dataloader
        more = optimizer_steps(trainer) > -(-len(loader) // accumulated_batches(trainer, 0))
        alone = world() == 1 and not isinstance(trainer.strategy, Sharded)
        return more and alone and self.data.frozen_states_gb > 0


class FrozenWeights(Callback):
    """Keeps what does not train bit for bit while a callback averages the weights.

    An average of equal values differs from them in the last bits, and Lightning's `WeightAveraging` copies the average
    of every parameter and buffer into the model at the end of training. This callback comes before it; `StrategyHooks`,
    which comes after it, puts the frozen values back.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Copies what is frozen."""
        if averaging(trainer):
            self._kept = {name: value.detach().clone() for name, value in _frozen(module)}

    @torch.no_grad()
    def put_back(self, module: LightningModule) -> None:
        """Restores what is frozen."""
        for name, value in _frozen(module) if self._kept else ():
            value.copy_(self._kept[name])
        self._kept = {}


def _frozen(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in module.named_parameters() if not value.requires_grad)
    yield from module.named_buffers()


def averaging(trainer: Trainer) -> list[WeightAveraging]:
    """The callbacks that average weights and let the average take the model's place at the end of training."""
    return [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]


def misfits(trainer: Trainer) -> list[str]:
    """What does not go together among a Trainer's callbacks, strategy and accumulation."""
    problems = []
    if averaging(trainer) and isinstance(trainer.strategy, Sharded):
        name = type(averaging(trainer)[0]).__name__
        problems.append(
            f"trainer.callbacks: {name} cannot average sharded weights. Leave it out, or give strategy=ddp."
        )
    scheduled = any(isinstance(one, GradientAccumulationScheduler) for one in trainer.callbacks)  # type: ignore[attr-defined]
    if scheduled and trainer.accumulate_grad_batches != 1:
        told = "GradientAccumulationScheduler and trainer.accumulate_grad_batches both say how many batches make a step"
        problems.append(f"trainer.callbacks: {told}. Leave one of them out.")
    return problems


def in_order(ours: Sequence[Callback], others: Sequence[Callback]) -> list[Callback]:
    """The workbench's callbacks and a reader's: what a reader's does at the end of training comes before scoring."""
    place = next((index for index, one in enumerate(ours) if isinstance(one, StrategyHooks)), len(ours))
    return [*ours[:place], *others, *ours[place:]]


class StrategyHooks(Callback):
    """Calls the strategy's hooks at the moments that only the Trainer knows.

    It stands before `ForgettingMonitor`, so that what is scored is the model after `after_task`; and it
    uses `on_train_end`, because the model leaves the device right after.

    Args:
        task: What is being learnt.
        data: Whose batches `after_task` may look at.
        saver: Saves what was trained before `after_task` sees it.
        frozen: Has what must not change at the end of training.
    """

    def __init__(self, task: Task, data: ContinualDataModule, saver: Saver, frozen: FrozenWeights) -> None:
        self.task = task
        self.data = data
        self.saver = saver
        self.frozen = frozen

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Sets how many batches are accumulated, which Lightning forgets where a run is resumed within an epoch."""
        trainer.accumulate_grad_batches = accumulated_batches(trainer, trainer.current_epoch)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Gradients are whole and unscaled here, and not yet clipped."""
        if isinstance(module, ContinualModule):
            module.continual_strategy.edit_gradients(module.backbone)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The task has been learnt."""
        if isinstance(module, ContinualModule):
            self.frozen.put_back(module)
            if module.carried is not None:
                module.carried.take(trainer.optimizers[0], dict(module.named_parameters()))
            self.saver.between(module, "trained")
            self.after_task(module)

    def after_task(self, module: ContinualModule) -> None:
        """Lets the strategy finish the task, with random numbers that depend on nothing before."""
        seed_all(self.data.seed, "after", self.saver.progress.position)
        module.continual_strategy.after_task(module.backbone, self.task, self.data.batches())


class TrainingCurve(Callback):
    """Writes the loss and each penalty of every optimizer step, shows them, and gives them to whoever waits for them.

    Other callbacks find them in `trainer.callback_metrics` as "train/loss" and so on, loggers get them under the same
    names, and a scheduler that waits for a plateau is stepped with the loss.

    Args:
        results: Where `train.csv` is.
        item: The name of what is being learnt.
        progress: How far it has come; steps and tokens are counted there.
        display: What a person sees.
    """

    def __init__(self, results: RunFolder, item: str, progress: Progress, display: Display) -> None:
        self.results = results
        self.item = item
        self.progress = progress
        self.display = display
        self._parts: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self._shown = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keeps the parts of the loss as tensors: reading them each step would make a GPU wait."""
        progress = self.progress
        progress.tokens += module.tokens
        parts = {name: value for name, value in outputs.items() if name != "loss"}
        share = module.step_share
        self._parts.append({name: value * share for name, value in {"loss": sum(parts.values()), **parts}.items()})
        if trainer.global_step == progress.steps:
            return
        progress.steps = trainer.global_step
        means, self._parts = _summed(self._parts), []
        self._waiting.append({"step": progress.steps_before + progress.steps, "item": self.item, **means})
        self._tell(trainer, module, means)
        total = optimizer_steps(trainer)
        now = time.monotonic()
        if now - self._shown > SECONDS_BETWEEN_SHOWN or progress.steps == total:
            self._shown = now
            self.display.steps(
                progress.steps, int(total) if math.isfinite(total) else progress.steps, float(means["loss"])
            )
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Writes what is left."""
        self.write()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Writes what is left, if that is not what failed: who looks for the reason looks at the curve."""
        with suppress(OSError):
            self.write()

    def _tell(self, trainer: Trainer, module: LightningModule, means: dict[str, Any]) -> None:
        """Gives a step's loss and its parts to callbacks, loggers and schedulers; as tensors, so that no GPU waits.

        Raises:
            HookError: A callback stops early by something that is not among them.
        """
        measured = {f"train/{name}": value for name, value in means.items()}
        trainer.callback_metrics.update(measured)
        if trainer.loggers:
            step = float(self.progress.steps_before + self.progress.steps - 1)
            module.log_dict({**measured, "step": step})
        for callback in trainer.early_stopping_callbacks:
            if isinstance(callback, EarlyStopping) and callback.strict and callback.monitor not in measured:
                told = f"EarlyStopping monitors {callback.monitor!r}, and {self.item} has {', '.join(measured)}"
                raise HookError(f"trainer.callbacks: {told}. Choose one of these.")
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler.step(means["loss"])

    def write(self) -> None:
        """Writes the steps that wait; a state that is saved counts on them."""
        rows = [{key: _plain(value) for key, value in row.items()} for row in self._waiting]
        self._waiting, self._written = [], time.monotonic()
        self.results.add_steps(rows)


@contextmanager
def averaged(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Puts averaged weights in the place of the model's for a while, as they will be at the end of training."""
    for callback in averaging(trainer):
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in averaging(trainer):
            callback.on_validation_epoch_end(trainer, module)


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
        progress: How far the task has come; the seconds of scoring are added there.
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
        """Scores before the first step of all, where scores in mid-task were asked for."""
        first = self.progress.steps_before == self.progress.steps == 0
        if self.every_n_steps is not None and first and isinstance(module, ContinualModule):
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
            with averaged(trainer, module):
                self._score_within(module, self.progress.steps_before + step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Scores the row of the matrix that this task ends."""
        if isinstance(module, ContinualModule):
            self.score(module)

    def score(self, module: ContinualModule) -> None:
        """Scores everything that is tested, as row `after`; what was scored before the run was resumed is kept."""
        if self.after is None:
            return
        after = self.after

        def keep(score: TaskScore, seconds: float) -> None:
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
        self._score(module, waiting, keep)

    def _score_within(self, module: ContinualModule, at: int) -> None:
        waiting = [task for task in self.data.tested if not self.results.has_within(at, task.name)]
        name = module.task_name
        self._score(module, waiting, lambda score, seconds: self.results.add_within(at, name, score, seconds))

    def _score(self, module: ContinualModule, tasks: Sequence[Task], keep: Callable[[TaskScore, float], None]) -> None:
        for task in tasks:
            started = time.monotonic()
            with untouched_randomness(), module.scoring_context():
                seed_all(self.data.seed, "score", task.name)
                options = self.data.score_options
                score = score_task(module.backbone, module.continual_strategy, task, options=options)
            seconds = time.monotonic() - started
            keep(score, seconds)
            self.progress.scoring += seconds


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _summed(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Each part of the loss over a step's batches; a penalty that was absent counts as 0."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
