"""A recorded run of a strategy on a tiny model, which the conformance checks inspect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from workbench.backbone import Backbone, Batch, Output
from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy, checked_answers, checked_items, checked_penalties, checked_rows
from workbench.testing.tiny import Stopped, tiny_corpus, tiny_run, tiny_tasks


class Unfinished(Exception):
    """A check needs the end of the run, but the run failed."""


class RecordedRun:
    """A run of a strategy on a tiny model, executed when a check first needs it and shared by all checks.

    Args:
        make: Function that returns a new strategy.
        backbone: Function that returns a new tiny model.
        folder: Folder for the runs.
    """

    def __init__(
        self, make: Callable[[], ContinualStrategy], backbone: Callable[[], Backbone], folder: str | Path
    ) -> None:
        self.make = make
        self.fresh_backbone = backbone
        self.folder = Path(folder)
        self.recorded_folder = self.folder / "recorded"
        self._recorder = Recorder(make())
        self._failure: Exception | None = None
        self._learnt: Backbone | None = None

    @cached_property
    def record(self) -> Recorder:
        """Record of the run, up to its end or its failure."""
        try:
            self._learnt = self.run(self._recorder, self.recorded_folder.name)
        except Exception as error:  # a hook may raise anything; the other checks still run
            self._failure = error
        return self._recorder

    @property
    def failure(self) -> Exception | None:
        """Exception with which the run failed, or None."""
        return self._failure if self.record else None

    @property
    def finished(self) -> Recorder:
        """Record of the run, if it did not fail.

        Raises:
            Unfinished: The run failed.
        """
        if self.failure:
            raise Unfinished
        return self.record

    @property
    def learnt(self) -> Backbone:
        """The model after the run.

        Raises:
            Unfinished: The run failed.
        """
        if self.failure or self._learnt is None:
            raise Unfinished
        return self._learnt

    def run(self, strategy: ContinualStrategy, name: str) -> Backbone:
        """Execute a run of two tasks and return the model after it.

        Args:
            strategy: The strategy.
            name: Name of the run's subfolder.
        """
        return tiny_run(strategy, self.folder / name, backbone=self.fresh_backbone(), general=tiny_corpus())

    def run_in_parts(self, name: str) -> Backbone:
        """Execute the same run, stopped after every second batch and resumed with new objects; return the model.

        Args:
            name: Name of the run's subfolder.
        """
        while True:
            with suppress(Stopped):
                folder, backbone = self.folder / name, self.fresh_backbone()
                return tiny_run(self.make(), folder, backbone=backbone, general=tiny_corpus(), stop_after=2)

    @cached_property
    def replayed(self) -> tuple[ContinualStrategy, Backbone]:
        """A new strategy and model with the structure of the run's end, built without training, as in a resumed run."""
        strategy, backbone = self.make(), self.fresh_backbone()
        strategy.setup(backbone)
        for item in strategy.curriculum(tiny_tasks(), tiny_corpus()):
            strategy.before_task(backbone, item, [])
        return strategy, backbone


class Recorder(ContinualStrategy):
    """Forward all hooks to a strategy and record violations of the contract.

    Args:
        strategy: The strategy.

    Attributes:
        changed: Frozen parameters that changed, one sentence for each task.
        gradients: Frozen parameters that got a gradient, one sentence for each step.
        idle: Names of trainable parameters that got no gradient in a whole task.
        wrong_penalties: One sentence for each penalty that is not a finite scalar.
        disturbed: One sentence for each hook that changed a mode, dtype, device or global setting of torch.
        built: Shape and `requires_grad` of each tensor when the last task began.
    """

    def __init__(self, strategy: ContinualStrategy) -> None:
        super().__init__()
        self.strategy = strategy
        self.changed: list[str] = []
        self.gradients: list[str] = []
        self.idle: list[str] = []
        self.wrong_penalties: list[str] = []
        self.disturbed: list[str] = []
        self.built: dict[str, tuple[tuple[int, ...], bool]] = {}
        self._frozen: dict[str, Tensor] = {}
        self._with_gradient: set[str] = set()

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        return checked_items(self.strategy, self.strategy.curriculum(tasks, general))

    def setup(self, backbone: Backbone) -> None:
        with self._undisturbed("setup", backbone):
            self.strategy.setup(backbone)

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        return checked_rows(self.strategy, task, self.strategy.training_data(task, rows))

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        with self._undisturbed("before_task", backbone):
            self.strategy.before_task(backbone, task, batches)
        self.built = structure(backbone)
        self._frozen = {name: value for name, value in weights(backbone).items() if not self.built[name][1]}

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        with self._undisturbed("penalties", backbone):
            penalties = self.strategy.penalties(backbone, batch, output)
        self.wrong_penalties += _wrong_penalties(penalties)
        return checked_penalties(self.strategy, penalties)

    def edit_gradients(self, backbone: Backbone) -> None:
        names = {name for name, value in backbone.model.named_parameters() if value.grad is not None}
        self._with_gradient |= names
        self.gradients += [f"{name} got one." for name in self._frozen if name in names][:1]
        with self._undisturbed("edit_gradients", backbone):
            self.strategy.edit_gradients(backbone)

    def after_step(self, backbone: Backbone) -> None:
        with self._undisturbed("after_step", backbone):
            self.strategy.after_step(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.idle += sorted(set(backbone.trainable()) - self._with_gradient)[:1] if self._with_gradient else []
        self._with_gradient = set()
        trained = weights(backbone)
        same = {name for name, old in self._frozen.items() if name in trained and torch.equal(old, trained[name])}
        self.changed += [f"{name} changed." for name in self._frozen if name not in same][:1]
        with self._undisturbed("after_task", backbone):
            self.strategy.after_task(backbone, task, batches)

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        with self._undisturbed("answer", backbone):
            answers = self.strategy.answer(backbone, task, prompts)
        return checked_answers(self.strategy, task, answers, len(prompts))

    def scoring(self, backbone: Backbone, task: Task) -> AbstractContextManager[None]:
        return self.strategy.scoring(backbone, task)

    @contextmanager
    def _undisturbed(self, hook: str, backbone: Backbone) -> Iterator[None]:
        """Record the first setting that a hook changes."""
        before = _settings(backbone)
        yield
        after = _settings(backbone)
        for thing, (name, found) in before.items():
            left = after.get(thing, (name, found))[1]  # a removed module was not changed
            if left != found:
                self.disturbed.append(f"`{hook}` found {name} {found}, and left it {left}.")
                return


def weights(backbone: Backbone) -> dict[str, Tensor]:
    """Return a copy of a model's weights by name, on the CPU, of any shapes (...,).

    Args:
        backbone: The model.
    """
    return {name: value.detach().cpu().clone() for name, value in backbone.model.state_dict().items()}


def structure(backbone: Backbone) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return the shape and `requires_grad` of each tensor by name; a tied weight occurs under both of its names.

    Args:
        backbone: The model.
    """
    state = backbone.model.state_dict(keep_vars=True)
    return {name: (tuple(value.shape), value.requires_grad) for name, value in state.items()}


def _wrong_penalties(penalties: Any) -> list[str]:
    """Return a sentence for the first penalty that is not a finite scalar."""
    if not isinstance(penalties, dict):
        return [f"They come as {type(penalties).__name__}, not as a dict."]
    for name, value in penalties.items():
        if not isinstance(name, str):
            return [f"The name {name!r} is no string."]
        if not isinstance(value, Tensor):
            return [f"{name!r} is of type {type(value).__name__}, not a tensor."]
        if value.dim():
            return [f"{name!r} has the shape {tuple(value.shape)}, not ()."]
        if not value.isfinite():
            return [f"{name!r} is {value.item()}."]
    return []


def _settings(backbone: Backbone) -> dict[Any, tuple[str, str]]:
    """Return the settings that no hook may change: name and state of each module, parameter and global setting.

    Keys are the modules and parameters themselves, so that renamed and removed ones are recognized.
    """
    model = backbone.model
    settings: dict[Any, tuple[str, str]] = {
        "model": ("the model", f"{_place(model)}, {_mode(model)}"),
        "dtype": ("torch's default dtype", str(torch.get_default_dtype())),
        "gradients": ("torch's gradients", "on" if torch.is_grad_enabled() else "off"),
    }
    settings |= {module: (name or "the model", _mode(module)) for name, module in model.named_modules()}
    return settings | {parameter: (name, _place(parameter)) for name, parameter in model.named_parameters()}


def _mode(module: Any) -> str:
    return "in training mode" if module.training else "in evaluation mode"


def _place(thing: Any) -> str:
    return f"{thing.dtype} on {thing.device}"
