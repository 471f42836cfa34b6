"""Rehearse a run in a minute: each hook on a few rows, then the save, the scoring and the state of its end.

Whatever would make a run fail hours later, at the end of its first task or of its last, fails here, before a folder is
made.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import PickleError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.serialization import skip_data

from workbench.backbone import Backbone
from workbench.backbone.adapters import plain_state_dict, save_adapters
from workbench.backbone.loading import load_weights
from workbench.benchmark import Task
from workbench.errors import ConfigError, describe_error
from workbench.results import RunFolder
from workbench.strategy import checked_rows, trainable_parameters
from workbench.study.build import Assembly
from workbench.study.memory import size_of
from workbench.train import ContinualModule, score_task
from workbench.train.evaluation import judge

SAVED_WHOLE = 2_000_000_000
"""Bytes of weights up to which the model is really written and read again."""
SCORED_ROWS = 2
SCORED_TOKENS = 2
JUDGED_ROWS = 64
FEW = 4


class AllRowsNeeded(Exception):
    """A hook failed on a few rows of a task: it has to be tried on all of them before the strategy is refused."""


class Rehearsal:
    """A strategy on the real model, led through its curriculum as a run would lead it.

    Args:
        assembly: Of the study.
        name: Of the strategy.
        whole: Whether the hooks get all rows of a task, where they failed on a few.
    """

    def __init__(self, assembly: Assembly, name: str, whole: bool = False) -> None:
        self.assembly, self.name, self.whole = assembly, name, whole
        self.backbone: Backbone = assembly.backbone.to(assembly.device)
        self.strategy = assembly.strategy(name)
        self.module = ContinualModule(self.backbone, self.strategy, assembly.optimizer_factory(name))
        self.module.adopt_precision(assembly.trainer(name))
        self.data = assembly.data(next(iter(assembly.orders)), 0, name)
        self.diverged = False

    def begin(self, position: int, task: Task, rows: int) -> None:
        """Call the hooks that stand before an item's first step.

        Args:
            position: Of the item in the curriculum.
            task: The item.
            rows: How many of its training rows the hooks get.
        """
        if self.diverged:  # which a run says by itself, and its later hooks never see
            self.strategy.before_task(self.backbone, task, [])
            return
        rows = min(max(rows, FEW), len(task.train))
        self.task = task if self.whole else replace(task, train=task.train.select(range(rows)))
        self.data.batch_size = self.data.batch_size if self.whole else -(-rows // 2)
        self.module.to(self.assembly.device)
        with self._on_few_rows():
            given = self.strategy.training_data(self.task, self.task.train)
            chosen = checked_rows(self.strategy, self.task, given)
            self.data.begin(self.backbone, position, self.task, chosen)
            self.strategy.before_task(self.backbone, self.task, self.data.batches())
        self.module.train()

    def end(self) -> None:
        """Call the hook that stands after an item's last step."""
        values = trainable_parameters(self.backbone, self.strategy).values()
        self.diverged = self.diverged or not all(bool(value.isfinite().all()) for value in values)
        if not self.diverged:
            with self._on_few_rows():
                self.strategy.after_task(self.backbone, self.task, self.data.batches())

    def finish(self, optimizer: Optimizer | None, scheduler: Any) -> None:
        """Score a few rows of everything that is tested, and write model and state where the results will be.

        Args:
            optimizer: Of the last item; None: nothing was trained.
            scheduler: Of the last item, if it has one.

        Raises:
            ConfigError: What failed. A loss that is not finite is no failure here: the run says so by itself.
        """
        if self.diverged:
            return
        with TemporaryDirectory(dir=disk_of(self.assembly.config.output), prefix=".workbench-") as folder:
            with self._told("its state cannot be saved"):
                check_state(self.module, optimizer, scheduler, Path(folder))
            for task in self.data.tested:
                with self._told(f"scoring {task.name} failed"):
                    self._score(task, Path(folder))
            with self._told("its model cannot be saved"):
                check_save(self.backbone, Path(folder) / "model")
            self._check_room(optimizer)

    def _score(self, task: Task, folder: Path) -> None:
        test = task.test.select(range(min(SCORED_ROWS, len(task.test))))
        few = replace(task, test=test, max_new_tokens=min(task.max_new_tokens, SCORED_TOKENS))
        with self.module.scoring_context():
            score = score_task(self.backbone, self.strategy, few, options=self.data.score_options)
        RunFolder(folder, writes=False).add_score(0, score)

    def _check_room(self, optimizer: Optimizer | None) -> None:
        moments = optimizer.state_dict()["state"] if optimizer else {}
        state = size_of(trainable_parameters(self.backbone, self.strategy).values()) + size_of(_tensors(moments))
        model = size_of(plain_state_dict(self.backbone.model).values())
        free = shutil.disk_usage(disk_of(self.assembly.config.output)).free
        if model + 2 * state > free:  # a new state is written beside the old one
            told = f"a run needs about {(model + 2 * state) / 1e9:.1f} GB of disk for its model and its last state"
            raise ConfigError([f"output: {told}; {free / 1e9:.1f} GB are free. Make room, or choose another disk."])

    @contextmanager
    def _on_few_rows(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a stranger's hook may raise anything
            if self.whole or isinstance(error, torch.OutOfMemoryError):
                raise
            raise AllRowsNeeded from error

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            told = f"strategies.{self.name}: {what}: {describe_error(error).rstrip('.')}"
            raise ConfigError([f"{told}. Mend it: a run would fail there after its training."]) from error


def check_state(module: nn.Module, optimizer: Optimizer | None, scheduler: Any, folder: Path) -> None:
    """Write what a saved state holds beside the weights, and read it back as a resumed run does; no tensor's bytes.

    Raises:
        ValueError: It holds more than tensors and plain values.
    """
    state = {name: value for name, value in module.state_dict().items() if not isinstance(value, Tensor)}
    content = {
        "state_dict": state,
        "optimizer": optimizer.state_dict() if optimizer else None,
        "scheduler": scheduler.state_dict() if scheduler else None,
    }
    file = folder / "state.ckpt"
    try:
        with skip_data():
            torch.save(content, file)
        torch.load(file, map_location="meta", weights_only=True)
    except (PickleError, TypeError, AttributeError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a {named[1]}" if named else str(error).splitlines()[0]
        remedy = "Give `get_extra_state`, the optimizer and the scheduler plain values alone"
        raise ValueError(f"it holds more than tensors, numbers, texts, lists and dicts: {what}. {remedy}") from error


def check_save(backbone: Backbone, folder: Path) -> None:
    """Save a model as a run does at its end, and load it again; of a large one only the tensors' names and sharing.

    Raises:
        ValueError: It does not load as it was saved.
    """
    with backbone.merged():
        state = plain_state_dict(backbone.model)
    if size_of(state.values()) > SAVED_WHOLE:
        with backbone.merged():
            backbone.model.save_pretrained(folder, state_dict=_without_bytes(state))
        backbone.tokenizer.save_pretrained(folder)
        save_adapters(backbone.model, folder / "adapters")
        return
    del state
    backbone.save(folder)
    load_weights(folder, backbone.model.dtype)


def scorer_problems(tasks: Iterable[Task]) -> list[str]:
    """Give the right answers to every scorer of every task: a sentence for each that raises or gives no number."""
    problems = []
    for task in tasks:
        if task.is_corpus:
            continue
        rows: Dataset = task.test.select(range(min(JUDGED_ROWS, len(task.test))))
        prompts, answers = rows["prompt"][:], rows["answer"][:]
        for name, scorer in task.scorers.items():
            try:
                value = judge(scorer, prompts, answers, answers)
                told = "" if value == value else "it gives nan for the right answers"
            except Exception as error:  # a stranger's scorer may raise anything
                told = describe_error(error)
            if told:
                problems.append(f"benchmark: {task.name}, scorer {name!r}: {told}. It has to give one number.")
    return problems


def disk_of(output: str | Path) -> Path:
    """The folder, on the disk where results will be, that is there already."""
    path = Path(output).expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _without_bytes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One value in place of each tensor; tensors that share their memory go on sharing it."""
    small: dict[tuple[Any, ...], Tensor] = {}
    for value in state.values():
        small.setdefault((value.data_ptr(), value.shape), torch.zeros(1, dtype=value.dtype))
    return {name: small[value.data_ptr(), value.shape] for name, value in state.items()}


def _tensors(value: Any) -> Sequence[Tensor]:
    """Every tensor of an optimizer's state."""
    return [item for state in value.values() for item in state.values() if isinstance(item, Tensor)]
