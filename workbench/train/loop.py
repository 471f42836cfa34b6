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
from workbench.runtime.distributed import barrier, is_first
from workbench.runtime.files import sync_tree
from workbench.runtime.seeding import seed_all
from workbench.scorers import described
from workbench.strategy import OWN, ContinualStrategy, checked_items, checked_rows, trainable_parameters
from workbench.train.callbacks import (
    CacheFrozenStates,
    ForgettingMonitor,
    FrozenWeights,
    SeedBatches,
    StrategyHooks,
    TrainingCurve,
)
from workbench.train.checkpoint import Intervals, Progress, Saved, Saver, StateFolder, load_tensors
from workbench.train.data import ContinualDataModule
from workbench.train.evaluation import majority_answer
from workbench.train.module import ContinualModule

MakeTrainer = Callable[[Task, list[Callback]], Trainer]
"""Builds a new Trainer for a task, with the given callbacks."""
TERMINATED = 143
"""Exit status after SIGTERM: 128 and the signal's number."""


def learn_in_sequence(
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    results: RunFolder,
    display: Display | None = None,
    intervals: Intervals | None = None,
) -> None:
    """Train on each item of the strategy's curriculum in turn, and score all tasks after each of the run's tasks.

    If the results' folder holds a saved state of the same run, training resumes from it: `setup` and `before_task` are
    replayed to rebuild the structure, the saved tensors are loaded, and cells that were scored are not scored again.
    On a CPU, the result is bitwise that of an uninterrupted run.

    Args:
        module: Backbone as loaded, and strategy.
        data: The tasks in the order of this run, and what else is tested.
        make_trainer: Builds a new Trainer for each task. A Trainer that is used again would execute no step in its
            second `fit`, without an error.
        results: The run's folder. If it already holds row 0, the model as loaded is not scored again.
        display: Progress display; None: no output.
        intervals: How often to score and to save within a task.

    Raises:
        ConfigError: The folder holds a state that does not fit this run.
    """
    run = SequenceRun(module, data, make_trainer, results, display or Display(), intervals or Intervals())
    saved = run.last_state()
    results.add_to_environment("protocol", matrix_layout(data))
    score_zero_shot(module, data, make_trainer, results, run.display)
    seed_all(data.seed, "setup")
    run.strategy.setup(run.backbone)
    items = checked_items(run.strategy, run.strategy.curriculum(data.tasks, data.general))
    for position, (item, row) in enumerate(zip(items, scored_rows(items, data.tasks), strict=True)):
        if saved and position < saved.stamp.position:
            run.replay(position, item)
            continue
        run.begin(position, item, saved)
        trainable = describe_trainable(run.backbone, run.strategy)
        run.display.item_begins(item.name, f"task {position + 1} of {len(items)}", trainable)
        run.learn(item, row, saved)
        saved = None
    run.end()


def score_zero_shot(
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    results: RunFolder,
    display: Display,
) -> None:
    """Score the model as loaded (row 0, zero-shot) where cells are missing, in the precision of training.

    Args:
        module: Backbone as loaded, and strategy.
        data: What is tested.
        make_trainer: Its Trainer determines the precision.
        results: The run's folder.
        display: Progress display.
    """
    module.adopt_precision(make_trainer(data.tasks[0], []))
    if not all(results.has_cell(0, task.name) for task in data.tested):
        ForgettingMonitor(data, results, 0, display).score(module)


def scored_rows(items: Sequence[Task], tasks: Sequence[Task]) -> list[int | None]:
    """Return the row of the score matrix that is scored after each curriculum item, or None.

    An inserted item, such as a review, belongs to the task before it, whose row is then scored after both, unless the
    item states which task it prepares. The last row is always scored after the last item.

    Args:
        items: The curriculum.
        tasks: The run's tasks in order, T of them.

    Returns:
        For each item a number in 1 … T, or None.
    """
    row_of = {task.name: index + 1 for index, task in enumerate(tasks)}
    rows: list[int | None] = []
    current = None
    for item, following in zip(items, [*items, None][1:], strict=True):
        current = row_of.get(item.name, current)
        ends = following is None or following.name in row_of or following.prepares is not None
        rows.append(current if ends and item.prepares is None else None)
    if rows:
        rows[-1] = len(tasks)
    return rows


def matrix_layout(data: ContinualDataModule) -> dict[str, Any]:
    """Return what the names in `scores.csv` mean: columns in order, probes, the corpus, each task's primary metric.

    "majority" holds, for each task whose answers are labels, the most frequent answer and the score of always giving
    it.
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
        "majority": {name: list(answer) for name, answer in majority.items() if answer},
    }


class SequenceRun:
    """State and steps of a single training run, including resume.

    An item of the curriculum takes two steps: `begin` sets up the model and the data, `learn` trains and scores.
    After a stop, `replay` rebuilds the structure of the items that were finished before.

    Args:
        module: Backbone and strategy.
        data: The tasks.
        make_trainer: Builds a new Trainer for each task.
        results: The run's folder.
        display: Progress display.
        intervals: How often to score and to save within a task.
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
        self.loaded_parameters = count_parameters(self.backbone)
        self.steps = 0  # optimizer steps of the items before
        self.rows = {"rows": 0, "replay_rows": 0}
        self.trained_own: set[str] = set()  # names of the strategy's own parameters that have trained

    def last_state(self) -> Saved | None:
        """Return the state to resume from, or None.

        Raises:
            ConfigError: The journal has lost records that were written before the state was saved.
        """
        saved = self.states.latest()
        if saved and not self.results.journal.has(saved.stamp.records, saved.stamp.checksum):
            problem = "has lost lines that were written before the last state was saved"
            remedy = f"Delete {self.results.path} to make the run again."
            raise ConfigError([f"{self.results.journal.file} {problem}. {remedy}"])
        barrier()  # before any process writes
        return saved

    def replay(self, position: int, item: Task) -> None:
        """Rebuild the structure of an item; its learnt weights are loaded later."""
        self.module.to(self.device)  # a fit leaves the module on the CPU
        seed_all(self.data.seed, "task", position)
        self.strategy.before_task(self.backbone, item, [])
        self._note_own_parameters()

    def begin(self, position: int, item: Task, saved: Saved | None) -> None:
        """Set up an item: its rows, its structure, and the saved state if there is one.

        Raises:
            ConfigError: The state was saved with other training rows than the strategy returns now.
        """
        self.steps = saved.stamp.steps_before if saved else self.steps
        progress = Progress(position, self.steps, saved.stamp if saved else None)  # its clock starts here
        if saved:
            self._restore_item(position, item, saved)
        else:
            self._set_up_item(position, item)
        self._note_own_parameters()
        progress.rows = self.data.fingerprint
        self.saver.begin(progress)
        self.module.begin(item.name, self.steps)
        self._record(item)
        self._carry_optimizer_state(item, saved)
        if position > 0 and not saved:
            self.saver.between(self.module, "begun")

    def learn(self, item: Task, row: int | None, saved: Saved | None) -> None:
        """Train on an item, call `after_task`, and score; an item without rows is not trained on.

        Args:
            item: What to learn.
            row: The row of the score matrix that is scored afterwards; None: none.
            saved: The state that `begin` has restored.
        """
        progress, data, results = self.saver.progress, self.data, self.results
        trainable = count_trainable(self.backbone, self.strategy)
        every_n_steps = self.score_every_n_steps if item.prepares is None else None  # an expert alone is not the model
        curve = TrainingCurve(results, item.name, progress, self.display)
        frozen = FrozenWeights()
        hooks = StrategyHooks(item, data, self.saver, frozen)
        monitor = ForgettingMonitor(data, results, row, self.display, every_n_steps, progress)
        stage = saved.stamp.stage if saved else "begun"
        if data.rows is None or stage == "trained":
            hooks.after_task(self.module)
            monitor.score(self.module)
        else:
            cache = CacheFrozenStates(data, item.name, results, self.display)
            callbacks = [SeedBatches(data.seed, progress.position), frozen, curve, cache, hooks, monitor, self.saver]
            state = saved.file if saved and stage == "training" else None
            _fit(self.make_trainer(item, callbacks), self.module, data, state)
            self.saver.check_weights(self.module)
        if len(results.records.costs) <= progress.position:
            parameters = {"trainable_parameters": trainable, "added_parameters": self._count_added()}
            results.add_costs({"item": item.name, **parameters, **_costs(results, progress, row), **self.rows})
        self.steps += progress.steps

    def end(self) -> None:
        """Write the final model, and delete the saved state."""
        if is_first():
            self.backbone.save(self.results.path / "model")
            self._save_own_parameters()
            self.results.end()
            self.states.clear()
        barrier()

    def _set_up_item(self, position: int, item: Task) -> None:
        self.module.to(self.device)
        rows = self._choose_rows(position, item)
        seed_all(self.data.seed, "task", position)
        encoder_state = self.backbone.encoder.state
        self.strategy.before_task(self.backbone, item, self.data.batches())
        if self.backbone.encoder.state != encoder_state:  # it added tokens
            self.data.begin(self.backbone, position, item, rows)
        if position == 0:
            self.saver.weights.note(self.module)

    def _restore_item(self, position: int, item: Task, saved: Saved) -> None:
        self.replay(position, item)
        self.saver.weights.note(self.module)
        load_tensors(self.module, saved, self.results.path)
        if self.module.carried is not None:
            self.module.carried.load(dict(self.module.named_parameters()), saved.moments)
        self._choose_rows(position, item)
        if saved.stamp.rows != self.data.fingerprint:
            problem = f"{item.name} was begun with other rows than the strategy gives now"
            raise ConfigError([f"{saved.file}: {problem}. Delete {self.results.path} to make the run again."])

    def _choose_rows(self, position: int, item: Task) -> Dataset:
        seed_all(self.data.seed, "rows", position)
        rows = checked_rows(self.strategy, item, self.strategy.training_data(item, item.train))
        self.rows = {"rows": len(rows), "replay_rows": count_replayed(rows, item.train)}
        self.data.begin(self.backbone, position, item, rows)
        return rows

    def _record(self, item: Task) -> None:
        """Write what trains and what was cut to `environment.json`."""
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

    def _carry_optimizer_state(self, item: Task, saved: Saved | None) -> None:
        if self.module.carried is None:
            return
        counts = self.module.carried.prepare(dict(self.module.named_parameters()))
        if saved is None and self.data.rows is not None:
            self.results.add_to_environment("carried_optimizer_state", {item.name: counts})

    def _note_own_parameters(self) -> None:
        names, prefix = trainable_parameters(self.backbone, self.strategy), f"{OWN}."
        self.trained_own |= {name.removeprefix(prefix) for name in names if name.startswith(prefix)}

    def _save_own_parameters(self) -> None:
        """Write the strategy's state beside the model if parameters of its own have trained."""
        if self.trained_own:
            folder = self.results.path / "model" / OWN
            folder.mkdir()
            tensors = {key: value for key, value in self.strategy.state_dict().items() if isinstance(value, Tensor)}
            state = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            sync_tree(folder)

    def _count_added(self) -> int:
        """Return how many parameters the strategy has added, in the backbone and of its own."""
        own = sum(value.numel() for name, value in self.strategy.named_parameters() if name in self.trained_own)
        return count_parameters(self.backbone) - self.loaded_parameters + own


def _fit(trainer: Trainer, module: ContinualModule, data: ContinualDataModule, state: Path | None) -> None:
    """Train one task; signals end it as they end any program, where Lightning would exit with status 1 or 0."""
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
        problem = "data.num_workers: a process that makes batches was lost, which lack of memory may have caused"
        raise ChildProcessError(f"{problem} ({' '.join(str(error).split())}). Lower data.num_workers") from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning has disabled it
        raise KeyboardInterrupt from error
    trainer.strategy.optimizers = []  # frees the moments: the Trainer and the module keep each other alive for long


def _costs(results: RunFolder, progress: Progress, row: int | None) -> dict[str, Any]:
    """Return an item's steps, tokens and seconds, over all its resumes."""
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


def describe_trainable(backbone: Backbone, strategy: ContinualStrategy) -> str:
    """Return a phrase on what trains: how many parameters of how many, and in which layers."""
    trainable, of_backbone = trainable_parameters(backbone, strategy), backbone.trainable()
    own = sum(value.numel() for name, value in trainable.items() if name not in of_backbone)
    text = f"{count_trainable(backbone, strategy):,} of {count_parameters(backbone) + own:,} parameters"
    matches = [re.search(r"layers\.(\d+)\.", name) for name in trainable]
    layers = sorted({int(match.group(1)) for match in matches if match})
    if all(matches) and layers and len(layers) < backbone.model.config.num_hidden_layers:
        return f"{text} (layers {', '.join(map(str, layers))})"
    return text


def count_parameters(backbone: Backbone) -> int:
    """Return the model's number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in backbone.model.parameters())


def count_bytes(backbone: Backbone) -> int:
    """Return the size of the model's parameters in bytes, tied ones counted once."""
    return sum(parameter.nbytes for parameter in backbone.model.parameters())


def count_trainable(backbone: Backbone, strategy: ContinualStrategy) -> int:
    """Return the number of trainable parameters, the strategy's own included."""
    return sum(parameter.numel() for parameter in trainable_parameters(backbone, strategy).values())


def count_replayed(rows: Dataset, own: Dataset) -> int:
    """Return how many training rows exceed the task's own: other rows, and more copies of a row than the task has.

    >>> own = Dataset.from_dict({"prompt": ["1", "2"], "answer": ["a", "b"]})
    >>> count_replayed(Dataset.from_dict({"prompt": ["1", "1", "3"], "answer": ["a", "a", "c"]}), own)
    2
    """
    if rows is own:
        return 0
    return (_count_texts(rows) - _count_texts(own)).total()


def _count_texts(rows: Dataset) -> Counter[tuple[str, ...]]:
    columns = [rows[name][:] for name in ("prompt", "answer", "text") if name in rows.column_names]
    return Counter(zip(*columns, strict=True))
