"""The experiment: learn task after task, and score everything after each."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.callbacks import ForgettingMonitor, SeedBatches, StrategyHooks, TrainingCurve
from workbench.data import ContinualDataModule
from workbench.display import Display
from workbench.module import ContinualModule
from workbench.results import RunFolder
from workbench.scoring import majority_answer
from workbench.seeding import seed_all

MakeTrainer = Callable[[Task, list[Callback]], Trainer]
TERMINATED = 143


def learn_in_sequence(
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    results: RunFolder,
    display: Display | None = None,
    score_every_n_steps: int | None = None,
) -> None:
    """Learns the curriculum item by item and writes everything that is measured.

    Args:
        module: Backbone and strategy, untouched.
        data: The tasks in the order of this run, and what else is tested.
        make_trainer: Builds a fresh Trainer for a task around the callbacks given. One Trainer for all would train
            no step in its second `fit`, without an error.
        results: The run's folder. Where it has row 0 already, the untouched model is not scored again.
        display: What a person sees.
        score_every_n_steps: Also score in mid-task, into `within.csv`, after so many optimizer steps.
    """
    backbone, strategy, display = module.backbone, module.continual_strategy, display or Display()
    results.add_to_environment("protocol", matrix_layout(data))
    score_untouched(module, data, make_trainer, results, display)
    loaded, device, started = count_parameters(backbone), backbone.device, time.monotonic()
    seed_all(data.seed, "setup")
    strategy.setup(backbone)
    items = strategy.curriculum(data.tasks, data.general)
    steps = 0
    for position, (item, row) in enumerate(zip(items, scored_rows(items, data.tasks), strict=True)):
        module.to(device)  # the end of a fit leaves it on the CPU
        seed_all(data.seed, "task", position)
        data.begin(backbone, position, item, strategy.training_data(item, item.train))
        strategy.before_task(backbone, item, data.batches())
        module.begin(item.name, steps)
        display.item_begins(item.name, f"task {position + 1} of {len(items)}", describe_trainable(backbone))
        _record_item(item, module, data, results, display)
        trains = count_trainable(backbone)
        curve = TrainingCurve(results, item.name, steps, display)
        within = score_every_n_steps if item.prepares is None else None  # an expert alone is not the model yet
        monitor = ForgettingMonitor(data, results, row, display, within)
        _learn(module, data, item, make_trainer, (SeedBatches(data.seed, position), curve, monitor))
        steps += curve.steps
        parameters = {"trainable_parameters": trains, "added_parameters": count_parameters(backbone) - loaded}
        results.add_costs({"item": item.name, **parameters, **_spent(curve, monitor, time.monotonic() - started)})
        started = time.monotonic()
    backbone.save(results.path / "model")


def score_untouched(
    module: ContinualModule,
    data: ContinualDataModule,
    make_trainer: MakeTrainer,
    results: RunFolder,
    display: Display,
) -> None:
    """Scores row 0, unless it is there, in the precision that training will have."""
    module.adopt_precision(make_trainer(data.tasks[0], []))
    if not results.has_row(0):
        ForgettingMonitor(data, results, 0, display).score(module)


def _record_item(
    item: Task, module: ContinualModule, data: ContinualDataModule, results: RunFolder, display: Display
) -> None:
    cut = data.cut_rows()
    results.add_to_environment("trainable", {item.name: sorted(module.backbone.trainable())})
    results.add_to_environment("cut_in_training", {item.name: cut})
    if any(cut.values()):
        display.note(f"  too long, and cut: {cut['prompts']} prompts and {cut['answers']} answers")


def _learn(
    module: ContinualModule,
    data: ContinualDataModule,
    item: Task,
    make_trainer: MakeTrainer,
    watchers: tuple[SeedBatches, TrainingCurve, ForgettingMonitor],
) -> None:
    """Trains one item, lets the strategy finish it, and scores; without rows there is no training."""
    seeds, curve, monitor = watchers
    if data.rows is None:
        module.continual_strategy.after_task(module.backbone, item, data.batches())
        monitor.score(module)
    else:
        _fit(make_trainer(item, [seeds, curve, StrategyHooks(item, data), monitor]), module, data)


def _fit(trainer: Trainer, module: ContinualModule, data: ContinualDataModule) -> None:
    """Trains one task; an interrupt leaves as one, where Lightning would exit with 1, or with 0 when terminated."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data)
    except SIGTERMException as error:
        raise SystemExit(TERMINATED) from error
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)  # Lightning turned it off
        raise KeyboardInterrupt from error


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
        "test_rows": {task.name: len(task.test) for task in data.tested},
        "training_rows": {task.name: len(task.train) for task in data.tasks},
        "majority": {name: list(found) for name, found in majority.items() if found},
    }


def count_parameters(backbone: Backbone) -> int:
    """How many values the model holds; tied ones once."""
    return sum(parameter.numel() for parameter in backbone.model.parameters())


def count_trainable(backbone: Backbone) -> int:
    """How many values train now."""
    return sum(parameter.numel() for parameter in backbone.trainable().values())


def describe_trainable(backbone: Backbone) -> str:
    """What trains, for a person: how many values of how many, and in which layers."""
    trainable = backbone.trainable()
    text = f"{count_trainable(backbone):,} of {count_parameters(backbone):,} parameters"
    found = [re.search(r"layers\.(\d+)\.", name) for name in trainable]
    layers = sorted({int(match.group(1)) for match in found if match})
    if all(found) and layers and len(layers) < backbone.model.config.num_hidden_layers:
        return f"{text} (layers {', '.join(map(str, layers))})"
    return text


def _spent(curve: TrainingCurve, monitor: ForgettingMonitor, seconds: float) -> dict[str, Any]:
    return {
        "steps": curve.steps,
        "tokens": int(curve.tokens),
        "train_seconds": round(seconds - monitor.seconds, 3),
        "eval_seconds": round(monitor.seconds, 3),
        "decoded_tokens": monitor.decoded_tokens,
        "decode_seconds": round(monitor.decode_seconds, 3),
    }
