"""Save the state of a run and read it back: enough for an exact resume."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from workbench.backbone import Batch
from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.runtime.distributed import broadcast, is_first
from workbench.runtime.files import digest_of, sync_file, sync_folder
from workbench.train.module import ContinualModule, optimizer_steps

Stage = Literal["begun", "training", "trained"]
STAMP_KEY = "workbench"
MOMENTS_KEY = "moments"
PARTIAL = "partial.ckpt"
NAME = re.compile(r"state-(\d+)-([0-9a-f]{16})\.ckpt")
STRATEGY_PREFIX = "continual_strategy."
CURRENT_WEIGHTS_KEY = "current_model_state"
"""Where Lightning's `WeightAveraging` saves the trained weights; it puts the averaged ones in their usual place."""
WAIT_FACTOR = 40
"""The next save waits at least this many times as long as the last one took, so that saving takes below 3 % of time."""
HOOKS_AFTER_SCORING = ("on_fit_end", "teardown")
"""A callback's hooks that Lightning calls after scoring."""


@dataclass(frozen=True)
class Intervals:
    """How often to score and to save within a task.

    Args:
        score_every_n_steps: Optimizer steps between evaluations of all tasks, written to `within.csv`; None: none.
        save_every_n_steps: Optimizer steps between saves; the state is then also saved between tasks.
        save_every_seconds: Seconds between saves if no steps are given. After a slow save the next one waits longer,
            so that saving takes below 3 % of the time.
    """

    score_every_n_steps: int | None = None
    save_every_n_steps: int | None = None
    save_every_seconds: float = 60.0


@dataclass(frozen=True)
class Stamp:
    """Position of a saved state in the sequence; stored in the state's file.

    Args:
        position: Index of the item in the curriculum.
        stage: "begun": not trained yet; "training": within training; "trained": training has ended, `after_task` has
            not been called.
        steps_before: Optimizer steps of the sequence before this item.
        steps: Optimizer steps of this item.
        tokens: Tokens in the batches of these steps.
        seconds: Training time of these steps.
        rows: Fingerprint of the item's encoded rows.
        unchanged: Fingerprint of the weights that are not stored.
        records: Number of records in the journal.
        checksum: Checksum of these records.
    """

    position: int
    stage: Stage
    steps_before: int
    steps: int
    tokens: int
    seconds: float
    rows: str
    unchanged: str
    records: int
    checksum: int


@dataclass(frozen=True)
class Saved:
    """A state that was read from disk.

    Args:
        file: Its file.
        stamp: Its position in the sequence.
        state: The module's state dict: tensors, and a strategy's own plain data.
        moments: Optimizer state that the next task keeps, by parameter name; within a task Lightning restores it.
    """

    file: Path
    stamp: Stamp
    state: dict[str, Any]
    moments: dict[str, dict[str, Any]] = field(default_factory=dict)


class Progress:
    """Progress within one item of the curriculum, over all its resumes.

    Args:
        position: Index of the item in the curriculum.
        steps_before: Optimizer steps of the sequence before it.
        saved: Where to continue, if the item was begun before.

    Attributes:
        steps: Optimizer steps of the item so far.
        tokens: Tokens in the batches of these steps.
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
        self._seconds_before = saved.seconds if saved else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training, without scoring."""
        return self._seconds_before + time.monotonic() - self._started - self.scoring


class Saver(Callback):
    """Saves the state when it is due and safe: after an optimizer step, and between the parts of a task.

    No state is saved after the last batch of an epoch or of the training: Lightning would resume from such a state
    correctly once and wrongly the second time, or end before `on_train_end`. None is saved after an exception either.

    Args:
        states: Folder of the states.
        results: The run's folder, whose journal a state refers to.
        intervals: How often to save.

    Attributes:
        progress: Progress of the current item.
        weights: Knows the weights that need not be stored.
    """

    progress: Progress

    def __init__(self, states: StateFolder, results: RunFolder, intervals: Intervals) -> None:
        self.states = states
        self.results = results
        self.intervals = intervals
        self.weights = ReplayedWeights()
        self._stored: tuple[set[str], str] | None = None
        self._scored_weights: str | None = None
        self._late_callbacks = ""
        self._last_save = time.monotonic()
        self._save_seconds = 0.0
        self._last_step = 0

    def begin(self, progress: Progress) -> None:
        """Start the next item."""
        self.progress = progress
        self._stored = self._scored_weights = None
        self._last_step = progress.steps

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save after an optimizer step if a save is due."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        last_of_epoch = batch_idx + 1 >= trainer.num_training_batches
        if last_of_epoch or step >= optimizer_steps(trainer) or trainer.should_stop:
            return
        if not broadcast(self._is_due(step), module.device):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            getattr(callback, "write", lambda: None)()
        if is_first():
            self._publish(trainer.save_checkpoint)
        else:  # takes part in gathering, and writes nothing
            trainer.save_checkpoint(self.states.path / PARTIAL)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remove from Lightning's checkpoint what a replay restores, and add the stamp."""
        names, unchanged = self._to_store(module)
        for key in {"state_dict", CURRENT_WEIGHTS_KEY} & checkpoint.keys():
            checkpoint[key] = _select(checkpoint[key], names)
        checkpoint[STAMP_KEY] = asdict(self._stamp("training", unchanged))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Fingerprint the weights that are scored, if a callback could still change them."""
        others = [callback for callback in trainer.callbacks if not type(callback).__module__.startswith("workbench.")]  # type: ignore[attr-defined]
        late = [
            type(callback).__name__
            for callback in others
            if any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in HOOKS_AFTER_SCORING)
        ]
        self._scored_weights = fingerprint(module) if late else None
        self._late_callbacks = ", ".join(late)

    def check_weights(self, module: ContinualModule) -> None:
        """Check that no callback has changed the weights after they were scored.

        Raises:
            ConfigError: A callback has changed them.
        """
        if self._scored_weights is not None and self._scored_weights != fingerprint(module):
            raise ConfigError(
                [
                    f"trainer.callbacks: one of {self._late_callbacks} changed the weights after they were scored, in "
                    f"{' or '.join(HOOKS_AFTER_SCORING)}. Use on_train_end, which comes before scoring."
                ]
            )

    def between(self, module: ContinualModule, stage: Literal["begun", "trained"]) -> None:
        """Save between the parts of a task if a save is due."""
        if is_first() and self._is_due(None):
            names, unchanged = self._to_store(module)
            moments = module.carried.named(dict(module.named_parameters())) if module.carried else {}
            stamp = asdict(self._stamp(stage, unchanged))
            content = {STAMP_KEY: stamp, "state_dict": _select(module.state_dict(), names), MOMENTS_KEY: moments}
            self._publish(lambda file: torch.save(content, file))

    def _is_due(self, step: int | None) -> bool:
        every = self.intervals.save_every_n_steps
        if every is not None:
            return step is None or step % every == 0
        wait = max(self.intervals.save_every_seconds, WAIT_FACTOR * self._save_seconds)
        return time.monotonic() - self._last_save >= wait

    def _publish(self, write: Any) -> None:
        self._save_seconds = self.states.publish(write)
        self._last_save = time.monotonic()

    def _to_store(self, module: nn.Module) -> tuple[set[str], str]:
        if self._stored is None:
            self._stored = self.weights.changed(module)
        return self._stored

    def _stamp(self, stage: Stage, unchanged: str) -> Stamp:
        progress, journal = self.progress, self.results.journal
        return Stamp(
            position=progress.position,
            stage=stage,
            steps_before=progress.steps_before,
            steps=progress.steps,
            tokens=int(progress.tokens),
            seconds=round(progress.seconds, 3),
            rows=progress.rows,
            unchanged=unchanged,
            records=len(journal.records),
            checksum=journal.checksum,
        )


class StateFolder:
    """Folder of a run's last state; the file's name contains its checksum, and the old file goes after the new one.

    Args:
        path: The folder `checkpoint` of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def latest(self) -> Saved | None:
        """Return the newest intact state, or None: the run starts at its beginning.

        Raises:
            ConfigError: The file holds more than tensors and plain values, or another version wrote it.
        """
        for _, file in reversed(self._files()):
            match = NAME.fullmatch(file.name)
            if match and digest_of(file).startswith(match.group(2)):
                return self._read(file)
        return None

    def publish(self, write: Callable[[Path], object]) -> float:
        """Replace the state by the file that `write` creates.

        Args:
            write: Writes a state to the given path.

        Returns:
            Seconds that it took.

        Raises:
            OSError: The file cannot be written; the previous state is kept.
        """
        started = time.monotonic()
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / PARTIAL
        try:
            write(partial)
            sync_file(partial)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
            partial.unlink(missing_ok=True)
            if not _failed_on_disk(error):
                raise
            raise OSError(
                f"{self.path}: the state could not be saved ({error}). Make room there, or give the right to write"
            ) from error
        older = self._files()
        number = older[-1][0] + 1 if older else 1
        os.replace(partial, self.path / f"state-{number}-{digest_of(partial)[:16]}.ckpt")
        sync_folder(self.path)
        for _, file in older:
            file.unlink(missing_ok=True)
        return time.monotonic() - started

    def clear(self) -> None:
        """Delete all states."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _read(self, file: Path) -> Saved:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            raise self._unusable(f"{file} holds more than tensors and plain values", error) from error
        try:
            return Saved(file, Stamp(**content[STAMP_KEY]), content["state_dict"], content.get(MOMENTS_KEY, {}))
        except (KeyError, TypeError) as error:
            raise self._unusable(f"{file} was saved by another version", error) from error

    def _unusable(self, problem: str, error: Exception) -> ConfigError:
        remedy = f"Delete {self.path.parent} to make the run again."
        return ConfigError([f"{problem}, so it is not loaded ({error}). {remedy}"])

    def _files(self) -> list[tuple[int, Path]]:
        matches = [(NAME.fullmatch(file.name), file) for file in self.path.glob("state-*.ckpt")]
        return sorted((int(match.group(1)), file) for match, file in matches if match)


def _failed_on_disk(error: OSError | RuntimeError) -> bool:
    """Return True if writing the file failed, and not a connection, another process or a device."""
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | ChildProcessError | TimeoutError)
    return traceback.extract_tb(error.__traceback__)[-1].filename == torch.serialization.__file__


class StateFile(TorchCheckpointIO):
    """Checkpoint plugin that writes straight to the file, where Lightning first builds the file in memory."""

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write with `torch.save`; the caller syncs the file to disk."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # for a user's ModelCheckpoint
        torch.save(dict(checkpoint), path)


class ReplayedWeights:
    """Knows which weights a replay of `setup` and `before_task` restores, so that only the others are stored.

    Weights are compared bitwise: everything that differs from the start of the run is stored, trained or not, and so
    is everything that was added later.
    """

    def __init__(self) -> None:
        self._digests: Any = WeakIdKeyDictionary()

    def note(self, module: nn.Module) -> None:
        """Take the current weights as those that a replay restores."""
        for _, value in _tensors(module):
            self._digests[value] = _digest(value)

    def changed(self, module: nn.Module) -> tuple[set[str], str]:
        """Return the names of the tensors to store, and a fingerprint of the others.

        To be stored are weights that have changed, weights that train, and the strategy's own state.
        """
        names, unchanged = set(), {}
        for name, value in _tensors(module):
            digest = _digest(value)
            if name.startswith(STRATEGY_PREFIX) or value.requires_grad or self._digests.get(value) != digest:
                names.add(name)
            else:
                unchanged[name] = digest
        return names, _combine(unchanged)


def load_tensors(module: nn.Module, saved: Saved, run: Path) -> None:
    """Load a state into a module of the same structure.

    Args:
        module: As `setup` and `before_task` have built it.
        saved: The state.
        run: The run's folder, for messages.

    Raises:
        ConfigError: The structure differs, or the weights that were not stored do.
    """
    remedy = f"Delete {run} to make the run again."
    expected = module.state_dict()
    misfits = [
        name
        for name, value in saved.state.items()
        if name not in expected or (isinstance(value, Tensor) and expected[name].shape != value.shape)
    ]
    misfits += [name for name in saved.moments if name not in expected]
    if misfits:
        problem = f"{misfits[0]} does not fit the model as `setup` and `before_task` make it."
        raise ConfigError([f"{saved.file}: {problem} {remedy}"])
    module.load_state_dict(saved.state, strict=False)
    stored = {name for name, value in saved.state.items() if isinstance(value, Tensor)}
    unchanged = {name: _digest(value) for name, value in _tensors(module) if name not in stored}
    if _combine(unchanged) != saved.stamp.unchanged:
        problem = "The weights that `setup` and `before_task` give are not those that they gave when the run began."
        raise ConfigError([f"{saved.file}: {problem} {remedy}"])


def fingerprint(module: nn.Module) -> str:
    """Return a checksum of all tensors of a module, which changes with any bit."""
    return _combine({name: _digest(value) for name, value in _tensors(module)})


def _select(state: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the tensors of these names, and all plain data."""
    return {name: value for name, value in state.items() if name in names or not isinstance(value, Tensor)}


def _combine(digests: Mapping[str, str]) -> str:
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            yield name, value


def _digest(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().flatten()
    content: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return hashlib.sha256(content).hexdigest()[:16]
