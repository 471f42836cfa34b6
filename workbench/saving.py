"""When and how a run's state is saved while it learns, so that the same command goes on after it was killed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from workbench.batch import Batch
from workbench.checkpoint import (
    KEY,
    PARTIAL,
    TIMES_ITS_COST,
    ReplayedWeights,
    Stamp,
    StateFolder,
    chosen,
    fingerprint,
    save_tensors,
)
from workbench.components import ConfigError
from workbench.module import ContinualModule, optimizer_steps
from workbench.processes import agreed, is_first
from workbench.results import RunFolder

RAW = "current_model_state"
"""Where Lightning's `WeightAveraging` saves the weights that train; it puts the averaged ones in their usual place."""
LATE = ("on_fit_end", "teardown")
"""Hooks of a callback that come after scoring."""


@dataclass(frozen=True)
class Intervals:
    """How often something happens in the middle of a task.

    Args:
        score_every_n_steps: Everything is scored, into `within.csv`, after so many optimizer steps; None: never.
        save_every_n_steps: The state is saved after so many optimizer steps, and at the ends of tasks.
        save_every_seconds: Where no steps are given, it is saved after so many seconds; a save that took long has the
            next one wait longer, so that all saving stays below 3 % of the time.
    """

    score_every_n_steps: int | None = None
    save_every_n_steps: int | None = None
    save_every_seconds: float = 60.0


class Progress:
    """How far one item of the curriculum has been learnt, over all the times that it was resumed.

    Args:
        position: Of the item in the curriculum.
        steps_before: Optimizer steps of the sequence before it.
        saved: Where it goes on, if it was begun before.

    Attributes:
        steps: Optimizer steps of the item so far.
        tokens: That they have seen.
        scoring: Seconds of scoring since the item was begun or resumed.
        rows: Fingerprint of the item's encoded rows.
    """

    def __init__(self, position: int, steps_before: int, saved: Stamp | None = None) -> None:
        self.position = position
        self.steps_before = steps_before
        self.steps = saved.steps if saved else 0
        self.tokens: Any = saved.tokens if saved else 0
        self.scoring = 0.0
        self.rows = ""
        self._before = saved.seconds if saved else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """What training has taken, scoring apart."""
        return self._before + time.monotonic() - self._started - self.scoring


class Saver(Callback):
    """Saves the state where that is safe and due: after an optimizer step, and between the parts of a task.

    Never after the last batch of an epoch or of a training: Lightning would resume such a state once, and wrongly
    the second time, or end before `on_train_end`. Never when something went wrong either.

    Args:
        states: Where the states go.
        results: The run's folder, whose journal a state counts on.
        intervals: How often.

    Attributes:
        progress: Of the item that is being learnt.
        weights: Which weights need no storing.
    """

    progress: Progress

    def __init__(self, states: StateFolder, results: RunFolder, intervals: Intervals) -> None:
        self.states = states
        self.results = results
        self.intervals = intervals
        self.weights = ReplayedWeights()
        self._kept: tuple[set[str], str] | None = None
        self._scored: str | None = None
        self._late = ""
        self._saved = time.monotonic()
        self._cost = 0.0
        self._last_step = 0

    def begin(self, progress: Progress) -> None:
        """Turns to the next item."""
        self.progress = progress
        self._kept = self._scored = None
        self._last_step = progress.steps

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Saves where the optimizer has just stepped, if it is time."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        last_of_epoch = batch_idx + 1 >= trainer.num_training_batches
        if last_of_epoch or step >= optimizer_steps(trainer) or trainer.should_stop:
            return
        if not agreed(self._due(step), module.device):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            getattr(callback, "write", lambda: None)()
        if is_first():
            self._publish(trainer.save_checkpoint)
        else:  # takes part, and writes nothing
            trainer.save_checkpoint(self.states.path / PARTIAL)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leaves out of a state what a replay gives, and says where it belongs."""
        names, unchanged = self._chosen(module)
        for key in {"state_dict", RAW} & checkpoint.keys():
            checkpoint[key] = chosen(checkpoint[key], names)
        checkpoint[KEY] = asdict(self._stamp("training", unchanged))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Notes the weights that were scored, where a callback could still change them."""
        others = [one for one in trainer.callbacks if not type(one).__module__.startswith("workbench.")]  # type: ignore[attr-defined]
        late = [one for one in others if any(getattr(type(one), hook) is not getattr(Callback, hook) for hook in LATE)]
        self._scored = fingerprint(module) if late else None
        self._late = ", ".join(type(one).__name__ for one in late)

    def check_weights(self, module: ContinualModule) -> None:
        """Sees that no callback has changed the weights after they were scored.

        Raises:
            ConfigError: One has.
        """
        if self._scored is not None and self._scored != fingerprint(module):
            raise ConfigError(
                [
                    f"trainer.callbacks: one of {self._late} changed the weights after they were scored, in "
                    f"{' or '.join(LATE)}. Use on_train_end, which comes before scoring."
                ]
            )

    def between(self, module: ContinualModule, stage: Literal["begun", "trained"]) -> None:
        """Saves between the parts of a task, if it is time."""
        if is_first() and self._due(None):
            names, unchanged = self._chosen(module)
            moments = module.carried.named(dict(module.named_parameters())) if module.carried else {}
            self._publish(save_tensors(module, names, self._stamp(stage, unchanged), moments))

    def _due(self, step: int | None) -> bool:
        every = self.intervals.save_every_n_steps
        if every is not None:
            return step is None or step % every == 0
        wait = max(self.intervals.save_every_seconds, TIMES_ITS_COST * self._cost)
        return time.monotonic() - self._saved >= wait

    def _publish(self, write: Any) -> None:
        self._cost = self.states.publish(write)
        self._saved = time.monotonic()

    def _chosen(self, module: torch.nn.Module) -> tuple[set[str], str]:
        if self._kept is None:
            self._kept = self.weights.changed(module)
        return self._kept

    def _stamp(self, stage: Literal["begun", "training", "trained"], unchanged: str) -> Stamp:
        done, journal = self.progress, self.results.journal
        return Stamp(
            position=done.position,
            stage=stage,
            steps_before=done.steps_before,
            steps=done.steps,
            tokens=int(done.tokens),
            seconds=round(done.seconds, 3),
            rows=done.rows,
            unchanged=unchanged,
            records=len(journal.records),
            checksum=journal.checksum,
        )


class StateFile(TorchCheckpointIO):
    """Writes a state straight to its file, where Lightning makes it in memory first."""

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """As `torch.save`; the caller makes it durable."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # of a ModelCheckpoint of the reader's
        torch.save(dict(checkpoint), path)
