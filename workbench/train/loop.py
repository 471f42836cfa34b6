"""Learn tasks one after another and score every task after each of them."""

from __future__ import annotations

import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import save_file
from torch import Tensor

from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.display import Display
from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.runtime.distributed import is_first, together
from workbench.runtime.files import sync_tree
from workbench.runtime.seeding import seed_all
from workbench.scorers import described
from workbench.strategy import OWN, ContinualStrategy, checked_items, checked_rows, trainable_parameters
from workbench.train.callbacks import (
    ForgettingMonitor,
    FrozenWeights,
    KeepsFrozenStates,
    SeedBatches,
    StrategyHooks,
    TrainingCurve,
)
from workbench.train.checkpoint import Intervals, Progress, Saved, Saver, StateFolder, load_tensors
from workbench.train.data import ContinualDataModule
from workbench.train.evaluation import majority_answer
from workbench.train.module import ContinualModule

MakeTrainer = Callable[[Task, list[Callback]], Trainer]
TERMINATED = 143


class Course:
    """One run on its way: what stays the same from item to item, and where it stands.

    Args:
        module: Backbone and strategy.
        data: The tasks.
        make_trainer: Builds a fresh Trainer for a task.
        results: The run's folder.
        display: What a person sees.
        intervals: How often there is scoring and saving in mid-task.
    """

    def __init__(
        self,
        module: ContinualModule,
        data: ContinualDataModule,
        make_trainer: MakeTrainer,
        results: RunFolder,
        display: Display,
        intervals: Intervals,
    ) -> None:
        self.module, self.backbone, self.strategy = module, module.backbone, module.continual_strategy
        self.data, self.make_trainer, self.results, self.display = data, make_trainer, results, display
        self.score_every_n_steps = intervals.score_every_n_steps
        self.states = StateFolder(results.path / "checkpoint")
        self.saver = Saver(self.states, results, intervals)
        self.device = self.backbone.device
        self.parameters = count_parameters(self.backbone)
        self.steps = 0
        self.rows = {"rows": 0, "replay_rows": 0}
        self.own: set[str] = set()  # names of the strategy's own parameters that have trained

    def last_state(self) -> Saved | None:
        """Where a run that was stopped goes on.

        Raises:
            ConfigError: The journal has lost what the state counts on.
        """
        saved = self.states.latest()
        if saved and not self.results.journal.has(saved.stamp.records, saved.stamp.checksum):
            told = "has lost lines that were written before the last state was saved"
            raise ConfigError(
                [f"{self.results.journal.file} {told}. Delete {self.results.path} to make the run again."]
            )
        together()  # before anything else is written
        return saved

    def replay(self, position: int, item: Task) -> None:
        """Makes the structure of an item that is over; what it learnt is loaded later."""
        self.module.to(self.device)  # the end of a fit leaves it on the CPU
        seed_all(self.data.seed, "task", position)
        self.strategy.before_task(self.backbone, item, [])
        self._note_own()

    def begin(self, position: int, item: Task, saved: Saved | None) -> None:
        """Turns to an item: its rows, its structure, and what a saved state knows of it.

        Raises:
            ConfigError: The state was saved with other rows than the strategy gives now.
        """
        if saved:
            self.steps = saved.stamp.steps_before
        progress = Progress(position, self.steps, saved.stamp if saved else None)
        if saved:
            self.replay(position, item)
            self.saver.weights.note(self.module)
            load_tensors(self.module, saved, self.results.path)
            if self.module.carried is not None:
                self.module.carried.load(dict(self.module.named_parameters()), saved.moments)
            self._choose_rows(position, item)
            if saved.stamp.rows != self.data.fingerprint:
                told = f"{item.name} was begun with other rows than the strategy gives now"
                raise ConfigError([f"{saved.file}: {told}. Delete {self.results.path} to make the run again."])
        else:
            self.module.to(self.device)
            rows = self._choose_rows(position, item)
            seed_all(self.data.seed, "task", position)
            state = self.backbone.encoder.state
            self.strategy.before_task(self.backbone, item, self.data.batches())
            if self.backbone.encoder.state != state:  # it added tokens, which the rows are made of from here on
                self.data.begin(self.backbone, position, item, rows)
            if position == 0:
                self.saver.weights.note(self.module)
        self._note_own()
        progress.rows = self.data.fingerprint
        self.saver.begin(progress)
        self.module.begin(item.name, self.steps)
        self._record(item)
        self._carry(item, saved)
        if position > 0 and not saved:
            self.saver.between(self.module, "begun")

    def learn(self, item: Task, row: int | None, saved: Saved | None) -> None:
        """Trains an item, lets the strategy finish it, and scores; without rows there is no training."""
        progress, data, results = self.saver.progress, self.data, self.results
        trains = count_trainable(self.backbone, self.strategy)
        within = self.score_every_n_steps if item.prepares is None else None  # an expert alone is not the model yet
        curve = TrainingCurve(results, item.name, progress, self.display)
        frozen = FrozenWeights()
        hooks = StrategyHooks(item, data, self.saver, frozen)
        monitor = ForgettingMonitor(data, results, row, self.display, within, progress)
        stage = saved.stamp.stage if saved else "begun"
        if data.rows is None or stage == "trained":
            hooks.after_task(self.module)
            monitor.score(self.module)
        else:
            kept = KeepsFrozenStates(data, item.name, results, self.display)
            callbacks = [SeedBatches(data.seed, progress.position), frozen, curve, kept, hooks, monitor, self.saver]
            state = saved.file if saved and stage == "training" else None
            _fit(self.make_trainer(item, callbacks), self.module, data, state)
            self.saver.check_weights(self.module)
        if len(results.records.costs) <= progress.position:
            parameters = {"trainable_parameters": trains, "added_parameters": self._added()}
            results.add_costs({"item": item.name, **parameters, **_spent(results, progress, row), **self.rows})
        self.steps += progress.steps

    def end(self) -> None:
        """Writes the model; the state that led to it is not needed any more."""
        if is_first():
            self.backbone.save(self.results.path / "model")
            self._save_own()
            self.results.end()
            self.states.clear()
        together()

    def _added(self) -> int:
        own = sum(value.numel() for name, value in self.strategy.named_parameters() if name in self.own)
        return count_parameters(self.backbone) - self.parameters + own

    def _note_own(self) -> None:
        names, before = trainable_parameters(self.backbone, self.strategy), f"{OWN}."
        self.own |= {name.removeprefix(before) for name in names if name.startswith(before)}

    def _save_own(self) -> None:
        """Writes the strategy's state beside the model, where parameters of its own have trained."""
        if self.own:
            folder = self.results.path / "model" / OWN
            folder.mkdir()
            tensors = {key: value for key, value in self.strategy.state_dict().items() if isinstance(value, Tensor)}
            state = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            sync_tree(folder)

    def _choose_rows(self, position: int, item: Task) -> Dataset:
        seed_all(self.data.seed, "rows", position)
        rows = checked_rows(self.strategy, item, self.strategy.training_data(item, item.train))
        self.rows = {"rows": len(rows), "replay_rows": count_strange(rows, item.train)}
        self.data.begin(self.backbone, position, item, rows)
        return rows

    def _carry(self, item: Task, saved: Saved | None) -> None:
        if self.module.carried is None:
            return
        counts = self.module.carried.prepare(dict(self.module.named_parameters()))
        if saved is None and self.data.rows is not None:
            self.results.add_to_environment("carried_optimizer_state", {item.name: counts})

    def _record(self, item: Task) -> None:
        cut = self.data.cut_rows()
        if self.backbone.encoder.policy.joint and self.data.rows is not None:
            tokenizer = self.backbone.tokenizer
            without = self.data.rows.without(tokenizer.bos_token_id, tokenizer.eos_token_id)
            self.results.add_to_environment("trained_without", {item.name: without})
        trainable = sorted(trainable_parameters(self.backbone, self.strategy))
        self.results.add_to_environment("trainable", {item.name: trainable})
        self.results.add_to_environment("cut_in_training", {item.name: cut})
        if any(cut.values()):
            self.display.note(f"  too long, and cut: {cut['prompts']} prompts and {cut['answers']} answers")


def score_untouched(
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    results: RunFolder,
    display: Display,
) -> None:
    """Scores row 0, as far as it is not there, in the precision that training will have."""
    module.adopt_precision(make_trainer(data.tasks[0], []))
    if not all(results.has_cell(0, task.name) for task in data.tested):
        ForgettingMonitor(data, results, 0, display).score(module)


def _fit(trainer: Trainer, module: ContinualModule, data: ContinualDataModule, state: Path | None) -> None:
    """Trains one task; an interrupt leaves as one, where Lightning would exit with 1, or with 0 when terminated."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
            trainer.fit(module, datamodule=data, ckpt_path=state, weights_only=True)
    except SIGTERMException as error:
        raise SystemExit(TERMINATED) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        told = "data.num_workers: a process that makes batches was lost, which lack of memory may have caused"
        raise ChildProcessError(f"{told} ({' '.join(str(error).split())}). Lower data.num_workers") from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning turned it off
        raise KeyboardInterrupt from error
    trainer.strategy.optimizers = []  # a Trainer and what it trained hold each other for long; moments must not pile up


def count_parameters(backbone: Backbone) -> int:
    """How many values the model holds; tied ones once."""
    return sum(parameter.numel() for parameter in backbone.model.parameters())


def count_bytes(backbone: Backbone) -> int:
    """What the model's values take in memory; tied ones once."""
    return sum(parameter.nbytes for parameter in backbone.model.parameters())


def count_trainable(backbone: Backbone, strategy: ContinualStrategy) -> int:
    """How many values train now, the strategy's own among them."""
    return sum(parameter.numel() for parameter in trainable_parameters(backbone, strategy).values())


def count_strange(rows: Dataset, own: Dataset) -> int:
    """How many rows are beyond the task's own: other ones, and those that are there more often than in the task.

    >>> own = Dataset.from_dict({"prompt": ["1", "2"], "answer": ["a", "b"]})
    >>> count_strange(Dataset.from_dict({"prompt": ["1", "1", "3"], "answer": ["a", "a", "c"]}), own)
    2
    """
    if rows is own:
        return 0
    return (_texts(rows) - _texts(own)).total()


def _texts(rows: Dataset) -> Counter[tuple[str, ...]]:
    columns = [rows[name][:] for name in ("prompt", "answer", "text") if name in rows.column_names]
    return Counter(zip(*columns, strict=True))


def describe_trainable(backbone: Backbone, strategy: ContinualStrategy) -> str:
    """What trains, for a person: how many values of how many, and in which layers."""
    trainable = trainable_parameters(backbone, strategy)
    own = sum(value.numel() for name, value in trainable.items() if name not in backbone.trainable())
    text = f"{count_trainable(backbone, strategy):,} of {count_parameters(backbone) + own:,} parameters"
    found = [re.search(r"layers\.(\d+)\.", name) for name in trainable]
    layers = sorted({int(match.group(1)) for match in found if match})
    if all(found) and layers and len(layers) < backbone.model.config.num_hidden_layers:
        return f"{text} (layers {', '.join(map(str, layers))})"
    return text


def _spent(results: RunFolder, progress: Progress, row: int | None) -> dict[str, Any]:
    """An item's steps, tokens and seconds, over all the times that it was resumed."""
    first = progress.steps_before
    steps = range(first + 1 if first else 0, first + progress.steps + 1)
    scoring = results.spent(row, steps)
    return {
        "steps": progress.steps,
        "tokens": int(progress.tokens),
        "train_seconds": round(progress.seconds, 3),
        "eval_seconds": round(scoring["seconds"], 3),
        "decoded_tokens": int(scoring["decoded_tokens"]),
        "decode_seconds": round(scoring["decode_seconds"], 3),
    }


def learn_in_sequence(
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    results: RunFolder,
    display: Display | None = None,
    intervals: Intervals | None = None,
) -> None:
    """Learns the curriculum item by item and writes everything that is measured.

    Where the results' folder holds a state of the same run, it goes on there: the structure is made again by `setup`
    and `before_task`, what has changed is loaded, and what was scored is not scored again. On the CPU the end is bit
    for bit that of a run that nothing stopped.

    Args:
        module: Backbone and strategy, untouched.
        data: The tasks in the order of this run, and what else is tested.
        make_trainer: Builds a fresh Trainer for a task around the callbacks given. One Trainer for all would train
            no step in its second `fit`, without an error.
        results: The run's folder. Where it has row 0 already, the untouched model is not scored again.
        display: What a person sees.
        intervals: How often there is scoring and saving in mid-task.

    Raises:
        ConfigError: The folder holds a state that does not fit.
    """
    course = Course(module, data, make_trainer, results, display or Display(), intervals or Intervals())
    saved = course.last_state()
    results.add_to_environment("protocol", matrix_layout(data))
    score_untouched(module, data, make_trainer, results, course.display)
    seed_all(data.seed, "setup")
    course.strategy.setup(course.backbone)
    items = checked_items(course.strategy, course.strategy.curriculum(data.tasks, data.general))
    for position, (item, row) in enumerate(zip(items, scored_rows(items, data.tasks), strict=True)):
        if saved and position < saved.stamp.position:
            course.replay(position, item)
            continue
        course.begin(position, item, saved)
        course.display.item_begins(
            item.name, f"task {position + 1} of {len(items)}", describe_trainable(course.backbone, course.strategy)
        )
        course.learn(item, row, saved)
        saved = None
    course.end()


def scored_rows(items: Sequence[Task], tasks: Sequence[Task]) -> list[int | None]:
    """The row of the score matrix that each curriculum item ends, or None.

    An inserted item, such as a review, belongs to the task before it, and that task's row is scored after both,
    unless the item says which task it prepares; the last item always ends the last row.

    Args:
        items: What is learnt.
        tasks: The benchmark's tasks in order, T of them.
    """
    place = {task.name: index + 1 for index, task in enumerate(tasks)}
    rows: list[int | None] = []
    current = None
    for item, following in zip(items, [*items, None][1:], strict=True):
        current = place.get(item.name, current)
        ends = following is None or following.name in place or following.prepares is not None
        rows.append(current if ends and item.prepares is None else None)
    if rows:
        rows[-1] = len(tasks)
    return rows


def matrix_layout(data: ContinualDataModule) -> dict[str, Any]:
    """What the names in `scores.csv` mean: columns in order, probes, the corpus, each one's primary metric.

    "majority" holds, for each domain of labels, the commonest answer and what it would score.
    """
    majority = {task.name: majority_answer(task) for task in data.tasks}
    return {
        "order": [task.name for task in data.tasks],
        "probes": [task.name for task in data.probes],
        "general": data.general.name if data.general else None,
        "primary": {task.name: task.primary for task in data.tested},
        "scorers": {
            task.name: {name: described(metric) for name, metric in task.scorers.items()} for task in data.tested
        },
        "test_rows": {task.name: len(task.test) for task in data.tested},
        "training_rows": {task.name: len(task.train) for task in data.tasks},
        "majority": {name: list(found) for name, found in majority.items() if found},
    }
