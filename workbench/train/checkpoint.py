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
from workbench.runtime.distributed import agreed, is_first
from workbench.runtime.files import digest_of, sync_file, sync_folder
from workbench.train.module import ContinualModule, optimizer_steps

KEY = "workbench"
PARTIAL = "partial.ckpt"
NAME = re.compile(r"state-(\d+)-([0-9a-f]{16})\.ckpt")
OWN = "continual_strategy."
MOMENTS = "moments"
TIMES_ITS_COST = 40
"""How many times as long as the last save took the next has to wait, so that saving stays below 3 % of the time."""


@dataclass(frozen=True)
class Stamp:
    """Where in the sequence a state belongs.

    Args:
        position: Of the item in the curriculum.
        stage: "begun": nothing of it has been trained; "training"; "trained": all of it, `after_task` is still to come.
        steps_before: Optimizer steps of the sequence before this item.
        steps: Optimizer steps of this item.
        tokens: That these have seen.
        seconds: That they took.
        rows: Fingerprint of the item's encoded rows.
        unchanged: Fingerprint of the weights that are not in the file.
        records: How many records the journal had.
        checksum: Theirs.
    """

    position: int
    stage: Literal["begun", "training", "trained"]
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
    """A state that was found: its file, its stamp, its tensors and a strategy's own plain data.

    `moments` is the optimizer state that the next task keeps, by parameter; in mid-task Lightning restores it.
    """

    file: Path
    stamp: Stamp
    state: dict[str, Any]
    moments: dict[str, dict[str, Any]] = field(default_factory=dict)


class StateFolder:
    """The last state of a run, in a file named by its checksum; an older one is kept until the new one is safe.

    Args:
        path: The folder `checkpoint` of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def latest(self) -> Saved | None:
        """The newest state that is as it was written; None: there is none, and the run begins at its start.

        Raises:
            ConfigError: It holds more than tensors and plain values, or another version saved it.
        """
        for _, file in reversed(self._files()):
            match = NAME.fullmatch(file.name)
            if match and digest_of(file).startswith(match.group(2)):
                try:
                    content = torch.load(file, map_location="cpu", weights_only=True)
                except UnpicklingError as error:
                    told = f"{file} holds more than tensors and plain values, so it is not loaded ({error})."
                    raise ConfigError([f"{told} Delete {self.path.parent} to make the run again."]) from error
                try:
                    return Saved(file, Stamp(**content[KEY]), content["state_dict"], content.get(MOMENTS, {}))
                except (KeyError, TypeError) as error:
                    told = f"{file} was saved by another version, so it is not loaded ({error})."
                    raise ConfigError([f"{told} Delete {self.path.parent} to make the run again."]) from error
        return None

    def publish(self, write: Callable[[Path], object]) -> float:
        """Replaces the state by what `write` writes.

        Returns:
            The seconds that it took.

        Raises:
            OSError: It cannot be written; the state that was there is kept.
        """
        started = time.monotonic()
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self.path / PARTIAL
        try:
            write(partial)
            sync_file(partial)
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError when the disk is full
            partial.unlink(missing_ok=True)
            if not _of_the_disk(error):
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
        """Deletes all states."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _files(self) -> list[tuple[int, Path]]:
        found = [(NAME.fullmatch(file.name), file) for file in self.path.glob("state-*.ckpt")]
        return sorted((int(match.group(1)), file) for match, file in found if match)


def _of_the_disk(error: OSError | RuntimeError) -> bool:
    """Whether writing a file failed: not what a broken connection, another process or a device raises meanwhile."""
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | ChildProcessError | TimeoutError)
    return traceback.extract_tb(error.__traceback__)[-1].filename == torch.serialization.__file__


class ReplayedWeights:
    """Knows which weights a replay of `setup` and `before_task` gives, so that only the others are stored.

    Weights are told by their bits: whatever a hook did to them, and whether or not they trained, those that are not
    what they were when the run began are stored, and so are those that came later.
    """

    def __init__(self) -> None:
        self._digests: Any = WeakIdKeyDictionary()

    def note(self, module: nn.Module) -> None:
        """Takes the weights as they are now for those that a replay gives."""
        for _, value in _tensors(module):
            self._digests[value] = _digest(value)

    def changed(self, module: nn.Module) -> tuple[set[str], str]:
        """What has to be stored of a module, and a fingerprint of the weights that have not.

        Returns:
            The names of the weights that are otherwise now, of those that train, and of the strategy's own state.
        """
        names, same = set(), {}
        for name, value in _tensors(module):
            digest = _digest(value)
            if name.startswith(OWN) or value.requires_grad or self._digests.get(value) != digest:
                names.add(name)
            else:
                same[name] = digest
        return names, _fingerprint(same)


def chosen(state: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """What of a module's state is stored: tensors of these names, and plain data."""
    return {name: value for name, value in state.items() if name in names or not isinstance(value, Tensor)}


def save_tensors(
    module: nn.Module, names: set[str], stamp: Stamp, moments: Mapping[str, Mapping[str, Any]]
) -> Callable[[Path], None]:
    """Writes a state without loops, between trainings; `moments` are what the next optimizer keeps, by parameter."""
    content = {KEY: asdict(stamp), "state_dict": chosen(module.state_dict(), names), MOMENTS: moments}
    return lambda file: torch.save(content, file)


def load_tensors(module: nn.Module, saved: Saved, run: Path) -> None:
    """Puts a state into a module of the structure that it was saved from.

    Raises:
        ConfigError: The structure is another one, or the weights that were not stored are.
    """
    remedy = f"Delete {run} to make the run again."
    own = module.state_dict()
    strange = [
        name
        for name, value in saved.state.items()
        if name not in own or (isinstance(value, Tensor) and own[name].shape != value.shape)
    ]
    strange += [name for name in saved.moments if name not in own]
    if strange:
        told = f"{strange[0]} does not fit the model as `setup` and `before_task` make it."
        raise ConfigError([f"{saved.file}: {told} {remedy}"])
    module.load_state_dict(saved.state, strict=False)
    stored = {name for name, value in saved.state.items() if isinstance(value, Tensor)}
    same = {name: _digest(value) for name, value in _tensors(module) if name not in stored}
    if _fingerprint(same) != saved.stamp.unchanged:
        told = "The weights that `setup` and `before_task` give are not those that they gave when the run began."
        raise ConfigError([f"{saved.file}: {told} {remedy}"])


def fingerprint(module: nn.Module) -> str:
    """Of all tensors of a module, by their bits."""
    return _fingerprint({name: _digest(value) for name, value in _tensors(module)})


def _fingerprint(digests: Mapping[str, str]) -> str:
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
