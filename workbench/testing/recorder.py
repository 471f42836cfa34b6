"""One run of a strategy on a tiny model, watched: what the conformance checks look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    """A check needs the run's end, and the run did not come to it."""


class Trial:
    """A strategy on a tiny model: one watched run, made when a check first asks for it and shared by all.

    Args:
        make: Gives a fresh strategy each time.
        backbone: Gives the tiny model each time.
        folder: Where the run is written.
    """

    def __init__(
        self, make: Callable[[], ContinualStrategy], backbone: Callable[[], Backbone], folder: str | Path
    ) -> None:
        self.make = make
        self.fresh_backbone = backbone
        self.folder = Path(folder)
        self._watch = Watch(make())
        self._failure: Exception | None = None
        self._learnt: Backbone | None = None

    @cached_property
    def seen(self) -> Watch:
        """What was noted along the run, as far as it came."""
        try:
            self._learnt = self.run(self._watch, "watched")
        except Exception as error:  # a hook of a stranger may raise anything, and the other checks still say something
            self._failure = error
        return self._watch

    @property
    def failure(self) -> Exception | None:
        """What ended the run too early."""
        return self._failure if self.seen else None

    @property
    def finished(self) -> Watch:
        """What was noted along the run, if it came to its end.

        Raises:
            Unfinished: It did not.
        """
        if self.failure:
            raise Unfinished
        return self.seen

    @property
    def learnt(self) -> Backbone:
        """The model after the run.

        Raises:
            Unfinished: There is none.
        """
        if self.failure or self._learnt is None:
            raise Unfinished
        return self._learnt

    def run(self, strategy: ContinualStrategy, name: str) -> Backbone:
        """A run of two tasks in a folder of its own; the model after it."""
        return tiny_run(strategy, self.folder / name, backbone=self.fresh_backbone(), general=tiny_corpus())

    def run_in_parts(self, name: str) -> Backbone:
        """The same, stopped after every second batch, and each time gone on with by fresh objects."""
        while True:
            with suppress(Stopped):
                folder, backbone = self.folder / name, self.fresh_backbone()
                return tiny_run(self.make(), folder, backbone=backbone, general=tiny_corpus(), stop_after=2)

    @cached_property
    def replayed(self) -> tuple[ContinualStrategy, Backbone]:
        """A fresh strategy and model, led through the same structure without training, as a resumed run is."""
        strategy, backbone = self.make(), self.fresh_backbone()
        strategy.setup(backbone)
        for item in strategy.curriculum(tiny_tasks(), tiny_corpus()):
            strategy.before_task(backbone, item, [])
        return strategy, backbone


class Watch(ContinualStrategy):
    """Passes every hook on to a strategy, and notes what it does to the model that it should not.

    Args:
        watched: The strategy.

    Attributes:
        changed: What was frozen and has changed, a sentence for each task.
        gradients: What was frozen and got a gradient.
        idle: What was trainable and got none in a whole task.
        penalties_wrong: Penalties that are no finite scalars.
        disturbed: Modes, dtypes, devices and switches of torch that a hook left otherwise than it found them.
        built: Shape of each tensor when the last task began, and whether it trained.
    """

    def __init__(self, watched: ContinualStrategy) -> None:
        super().__init__()
        self.watched = watched
        self.changed: list[str] = []
        self.gradients: list[str] = []
        self.idle: list[str] = []
        self._felt: set[str] = set()
        self.penalties_wrong: list[str] = []
        self.disturbed: list[str] = []
        self.built: dict[str, tuple[tuple[int, ...], bool]] = {}
        self._frozen: dict[str, Tensor] = {}

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        return checked_items(self.watched, self.watched.curriculum(tasks, general))

    def setup(self, backbone: Backbone) -> None:
        with self._left_as_found("setup", backbone):
            self.watched.setup(backbone)

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        return checked_rows(self.watched, task, self.watched.training_data(task, rows))

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        with self._left_as_found("before_task", backbone):
            self.watched.before_task(backbone, task, batches)
        self.built = structure(backbone)
        self._frozen = {name: value for name, value in weights(backbone).items() if not self.built[name][1]}

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        with self._left_as_found("penalties", backbone):
            penalties = self.watched.penalties(backbone, batch, output)
        self.penalties_wrong += _wrong_penalties(penalties)
        return checked_penalties(self.watched, penalties)

    def edit_gradients(self, backbone: Backbone) -> None:
        felt = {name for name, value in backbone.model.named_parameters() if value.grad is not None}
        self._felt |= felt
        given = [name for name in self._frozen if name in felt]
        self.gradients += [f"{name} does." for name in given][:1]
        with self._left_as_found("edit_gradients", backbone):
            self.watched.edit_gradients(backbone)

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.idle += sorted(set(backbone.trainable()) - self._felt)[:1] if self._felt else []
        self._felt = set()
        now = weights(backbone)
        same = {name for name, old in self._frozen.items() if name in now and torch.equal(old, now[name])}
        self.changed += [f"{name} did." for name in self._frozen if name not in same][:1]
        with self._left_as_found("after_task", backbone):
            self.watched.after_task(backbone, task, batches)

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        with self._left_as_found("answer", backbone):
            answers = self.watched.answer(backbone, task, prompts)
        return checked_answers(self.watched, task, answers, len(prompts))

    @contextmanager
    def _left_as_found(self, hook: str, backbone: Backbone) -> Iterator[None]:
        before = _surroundings(backbone)
        yield
        now = _surroundings(backbone)
        for thing, (name, found) in before.items():
            left = now.get(thing, (name, found))[1]  # what is gone was not changed
            if left != found:
                self.disturbed.append(f"`{hook}` found {name} {found}, and left it {left}.")
                return


def weights(backbone: Backbone) -> dict[str, Tensor]:
    """A copy of all of a model's weights, by name."""
    return {name: value.detach().cpu().clone() for name, value in backbone.model.state_dict().items()}


def structure(backbone: Backbone) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Each tensor's shape and whether it trains, by name; a tied weight under both of its names."""
    state = backbone.model.state_dict(keep_vars=True)
    return {name: (tuple(value.shape), value.requires_grad) for name, value in state.items()}


def _wrong_penalties(penalties: Any) -> list[str]:
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


def _surroundings(backbone: Backbone) -> dict[Any, tuple[str, str]]:
    """What no hook has any business with: a name and a state for each module, parameter and switch, by identity."""
    model = backbone.model
    found: dict[Any, tuple[str, str]] = {
        "model": ("the model", f"{_place(model)}, {_mode(model)}"),
        "dtype": ("torch's default dtype", str(torch.get_default_dtype())),
        "gradients": ("torch's gradients", "on" if torch.is_grad_enabled() else "off"),
    }
    found |= {module: (name or "the model", _mode(module)) for name, module in model.named_modules()}
    return found | {parameter: (name, _place(parameter)) for name, parameter in model.named_parameters()}


def _mode(module: Any) -> str:
    return "in training mode" if module.training else "in evaluation mode"


def _place(thing: Any) -> str:
    return f"{thing.dtype} on {thing.device}"
