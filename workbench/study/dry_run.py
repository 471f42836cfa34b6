"""Dry run of a strategy: its hooks and optimizers on a few rows of each task, then scoring and saving.

What would make a run fail hours later, at the end of its first task or of its last, fails here, before a folder is
created.
"""

from __future__ import annotations

import heapq
import re
import shutil
import time
import warnings
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
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.serialization import skip_data

from workbench.backbone import Backbone, Batch
from workbench.backbone.adapters import plain_state_dict, save_adapters
from workbench.backbone.loading import load_weights
from workbench.benchmark import Task
from workbench.errors import ConfigError, describe_error, in_words
from workbench.results import RunFolder
from workbench.strategy import OWN, checked_items, checked_penalties, checked_rows, overrides, trainable_parameters
from workbench.study.build import Assembly, counting_arguments
from workbench.study.timing import Spent, wait
from workbench.train import ContinualModule, Sharded, score_task
from workbench.train.evaluation import judge

SAVED_WHOLE = 200_000_000
"""Bytes of weights up to which the model is really written and read again."""
FIRST_ROWS = 64
"""Most rows at a task's beginning that are searched for the shortest ones, and that are encoded to count batches."""
STEP_HOOKS = ("penalties", "edit_gradients", "after_step")
TRIAL_SCORE_ROWS = 2
"""Rows of a task on which answering and scoring are tried."""
TRIAL_SCORE_TOKENS = 2
"""Most tokens of an answer in that trial."""
TRIAL_SCORER_ROWS = 64
"""Most rows of a task whose right answers each scorer is given."""
SCHEDULER_STEPS = 10_000
"""Steps up to which a scheduler is tried: a fraction of a second."""


Structure = tuple[Any, ...]


class AllRowsNeeded(Exception):
    """A hook failed on a few rows of a task: try it on all of them before the strategy is refused."""


class DryRun:
    """A strategy on the real model, taken through its curriculum on a few rows of each item.

    The methods are called in the order of a run: `setup`; for each item `begin`, `build_optimizer`, `step`,
    `try_scheduler` and `end`; then `finish`. The model is changed, and has to be restored afterwards.

    Args:
        assembly: Objects of the study.
        name: Name of the strategy in the config.
        all_rows: Give the hooks all rows of an item, after they failed on a few.

    Attributes:
        optimizer: Of the current item; None: nothing trains.
        scheduler: Of the current item, if it has one.
        stepped: The optimizer of the last step, which has a state; None: there was no step.
        diverged: Whether a weight is no longer finite. A run stops there and says so; the hooks that a run would not
            reach are not called here either.
    """

    def __init__(self, assembly: Assembly, name: str, all_rows: bool = False) -> None:
        self.assembly, self.name, self.all_rows = assembly, name, all_rows
        self.backbone: Backbone = assembly.backbone.to(assembly.device)
        self.strategy = assembly.strategy(name)
        self.module = ContinualModule(self.backbone, self.strategy, assembly.optimizer_factory(name))
        self.module.adopt_precision(assembly.trainer(name))
        self.data = assembly.data(next(iter(assembly.orders)), 0, name)
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.stepped: Any = None
        self.diverged = False

    def setup(self) -> list[Task]:
        """Call the hook `setup`, and return the items of the curriculum that have training rows."""
        self.strategy.setup(self.backbone)
        items = checked_items(self.strategy, self.strategy.curriculum(self.data.tasks, self.data.general))
        return [item for item in items if len(item.train)]

    def begin(self, position: int, task: Task, texts: Sequence[int]) -> None:
        """Call the hooks before an item's first step.

        Args:
            position: Of the item in the curriculum.
            task: The item.
            texts: Indices of the training rows that the hooks get.
        """
        if not self.all_rows:
            task = replace(task, train=task.train.select(texts))
            self.data.batch_size = -(-len(texts) // 2)
        self.task = task
        if self.diverged:
            self.data.begin(self.backbone, position, task, task.train)
            self.strategy.before_task(self.backbone, task, [])
            return
        self.module.to(self.assembly.device)
        with self._on_few_rows():
            rows = checked_rows(self.strategy, task, self.strategy.training_data(task, task.train))
            self.data.begin(self.backbone, position, task, rows)
            state = self.backbone.encoder.state
            self.strategy.before_task(self.backbone, task, self.data.batches())
            if self.backbone.encoder.state != state:  # it added tokens
                self.data.begin(self.backbone, position, task, rows)
        self.module.train()

    def build_optimizer(self, task: Task, steps: int) -> list[str]:
        """Build an item's optimizer and scheduler over what trains; none where nothing does.

        Args:
            task: The item, after its `before_task`.
            steps: Optimizer steps of the item.

        Returns:
            A sentence for each thing that is wrong with them.
        """
        self.optimizer = self.scheduler = None
        parameters = trainable_parameters(self.backbone, self.strategy)
        scheduler = self.assembly.config.settings(self.name, task.name).scheduler
        counted = counting_arguments(scheduler) if scheduler else []
        if counted and max(self.assembly.length(self.name, task)) < 0:
            message = f"{counted[0]} is the number of a task's steps, which is unknown where max_time alone limits them"
            remedy = f"Give scheduler.init_args.{counted[0]}, or trainer.max_steps."
            return [*self._unsharded(parameters), f"scheduler: {message}. {remedy}"]
        try:
            if parameters:
                factory = self.module.make_optimizer
                self.optimizer, self.scheduler = factory(task.name, list(parameters.values()), lambda: steps)
        except ConfigError as error:
            return [*self._unsharded(parameters), *error.problems]
        return self._unsharded(parameters)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The item's encoded rows; none where the strategy gives nothing to train on."""
        encoded = self.data.rows
        return [] if encoded is None else [encoded[row] for row in range(len(encoded))]

    @property
    def trains(self) -> bool:
        """Whether the item has both something that trains and rows to train on."""
        return self.optimizer is not None and bool(self.rows)

    @property
    def hooked(self) -> bool:
        """Whether the strategy has hooks around or within a step, which have to be tried with each item."""
        return any(overrides(self.strategy, hook) for hook in (*STEP_HOOKS, "before_task", "after_task"))

    def structure(self, task: Task) -> Structure:
        """Return what the seconds and the memory of an item's steps depend on, beside the length of its rows.

        Strategies share it where they change nothing within a step.

        Args:
            task: The item, after its `before_task`.
        """
        chosen = self.assembly.config.settings(self.name, task.name).optimizer
        trained = trainable_parameters(self.backbone, self.strategy)
        shapes = frozenset((name, tuple(value.shape), str(value.dtype)) for name, value in trained.items())
        own = self.name if any(overrides(self.strategy, hook) for hook in STEP_HOOKS) else ""
        arguments = sorted((key, repr(value)) for key, value in chosen.init_args.items() if key != "lr")
        precision = str(self.assembly.trainer(self.name, task).precision)
        return shapes, size_of(self.backbone.parameters()), own, chosen.class_path, precision, tuple(arguments)

    def step(self, batch: Batch) -> Spent:
        """Take one optimizer step, with the strategy's penalties and its edits of the gradients.

        As in Lightning, the gradients of the step before are cleared after the forward.

        Returns:
            The seconds that it took.

        Raises:
            ConfigError: The optimizer fails, for another reason than memory.
        """
        started = time.monotonic()
        with self.module.scoring_context():  # the precision of training
            output = self.backbone(batch)
            penalties = checked_penalties(self.strategy, self.strategy.penalties(self.backbone, batch, output))
            loss = sum(penalties.values(), output.loss)
        self.stepped = self.optimizer
        self.optimizer.zero_grad()
        loss.backward()
        wait(self.backbone.device)
        passed = time.monotonic()
        self.strategy.edit_gradients(self.backbone)
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            class_path = self.assembly.config.settings(self.name, self.task.name).optimizer.class_path
            raise ConfigError(in_words(error, "optimizer", class_path)) from error
        self.strategy.after_step(self.backbone)
        wait(self.backbone.device)
        return Spent(passed - started, time.monotonic() - passed)

    def try_scheduler(self, task: Task, steps: int) -> list[str]:
        """Step the item's scheduler as often as the item will; a sentence if it raises."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimizer does not step along
                for _ in range(min(steps, SCHEDULER_STEPS) if self.scheduler else 0):
                    self.scheduler.step(*([0.0] if isinstance(self.scheduler, ReduceLROnPlateau) else []))
        except Exception as error:
            chosen = self.assembly.config.settings(self.name, task.name).scheduler
            return in_words(error, "scheduler", chosen.class_path if chosen else "")
        return []

    def end(self) -> None:
        """Call the hook after an item's last step."""
        values = trainable_parameters(self.backbone, self.strategy).values()
        self.diverged = self.diverged or not all(bool(value.isfinite().all()) for value in values)
        if not self.diverged:
            with self._on_few_rows():
                self.strategy.after_task(self.backbone, self.task, self.data.batches())

    def finish(self, everything: bool = True) -> None:
        """Score a few rows of everything that is tested, and write model and state to the disk of the results.

        Args:
            everything: Score each task, and not the first one alone, which stands for the others if a strategy before
                has scored each and this one does not answer in its own way.

        Raises:
            ConfigError: What failed. A loss that is not finite is no failure here: the run reports it.
        """
        if self.diverged:
            return
        with TemporaryDirectory(dir=disk_of(self.assembly.config.output), prefix=".workbench-") as folder:
            with self._failure("its state cannot be saved"):
                check_state(self.module, self.stepped or self.optimizer, self.scheduler, Path(folder))
            everything = everything or overrides(self.strategy, "answer")
            for task in self.data.tested if everything else self.data.tested[:1]:
                with self._failure(f"scoring {task.name} failed"):
                    self._score(task, Path(folder))
            with self._failure("its model cannot be saved"):
                check_save(self.backbone, Path(folder) / "model")
            self._check_room()

    def _unsharded(self, parameters: Iterable[str]) -> list[str]:
        """Refuse parameters of the strategy itself where only the backbone is sharded: nothing sums their gradients."""
        own = [parameter for parameter in parameters if parameter.startswith(f"{OWN}.")]
        if not own or not isinstance(self.assembly.trainer(self.name).strategy, Sharded):
            return []
        message = f"{own[0]} is the strategy's own and is not sharded. Give trainer.strategy=ddp."
        return [f"strategies.{self.name}: {message}"]

    @contextmanager
    def _on_few_rows(self) -> Iterator[None]:
        """Raise AllRowsNeeded in place of what a hook raises on a few rows."""
        try:
            yield
        except Exception as error:  # a stranger's hook may raise anything
            if self.all_rows or isinstance(error, torch.OutOfMemoryError):
                raise
            raise AllRowsNeeded from error

    @contextmanager
    def _failure(self, what: str) -> Iterator[None]:
        """Turn what is raised inside, but for a lack of memory, into a ConfigError that says what failed."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            message = f"strategies.{self.name}: {what}: {describe_error(error).rstrip('.')}"
            raise ConfigError([f"{message}. Fix it: a run would fail there after its training."]) from error

    def _score(self, task: Task, folder: Path) -> None:
        test = task.test.select(shortest(task.test, TRIAL_SCORE_ROWS))
        few = replace(task, test=test, max_new_tokens=min(task.max_new_tokens, TRIAL_SCORE_TOKENS))
        with self.module.scoring_context():
            score = score_task(self.backbone, self.strategy, few, options=self.data.score_options)
        RunFolder(folder, writes=False).add_score(0, score)

    def _check_room(self) -> None:
        trained = trainable_parameters(self.backbone, self.strategy).values()
        state = size_of(trained) + (size_of(state_tensors(self.stepped)) if self.stepped else 0)
        model = size_of(plain_state_dict(self.backbone.model).values())
        free = shutil.disk_usage(disk_of(self.assembly.config.output)).free
        needed = model + 2 * state  # a new state is written beside the old one
        if needed > free:
            message = f"a run needs about {needed / 1e9:.1f} GB of disk for its model and its last state"
            raise ConfigError([f"output: {message}; {free / 1e9:.1f} GB are free. Make room, or choose another disk."])


def shortest(rows: Dataset, count: int) -> list[int]:
    """Return the indices of the shortest of a task's first rows, in their order: they are tried in no time."""
    columns = [
        rows[: min(FIRST_ROWS, len(rows))][name] for name in ("text", "prompt", "answer") if name in rows.features
    ]
    characters = [sum(map(len, texts)) for texts in zip(*columns, strict=True)]
    return sorted(heapq.nsmallest(count, range(len(characters)), key=characters.__getitem__))


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
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"a {refused[1]}" if refused else str(error).splitlines()[0]
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


def _without_bytes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put one value in place of each tensor; tensors that share their memory still share it."""
    small: dict[tuple[Any, ...], Tensor] = {}
    for value in state.values():
        small.setdefault((value.data_ptr(), value.shape), torch.zeros(1, dtype=value.dtype))
    return {name: small[value.data_ptr(), value.shape] for name, value in state.items()}


def disk_of(output: str | Path) -> Path:
    """Return the nearest folder that exists: it is on the disk where the results will be."""
    path = Path(output).expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, each counted once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """Return the tensors of an optimizer's state."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def scorer_problems(tasks: Iterable[Task]) -> list[str]:
    """Give every task's scorers the right answers; return a sentence for each that raises or gives no number."""
    problems = []
    for task in tasks:
        if task.is_corpus:
            continue
        rows: Dataset = task.test.select(range(min(TRIAL_SCORER_ROWS, len(task.test))))
        prompts, answers = rows["prompt"][:], rows["answer"][:]
        for name, scorer in task.scorers.items():
            try:
                value = judge(scorer, prompts, answers, answers)
                problem = "" if value == value else "it gives nan for the right answers"
            except Exception as error:  # a stranger's scorer may raise anything
                problem = describe_error(error)
            if problem:
                problems.append(f"benchmark: {task.name}, scorer {name!r}: {problem}. It has to give one number.")
    return problems
