"""The experiment: learn task after task, and score everything after each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.benchmark import Task
from workbench.course import Course, MakeTrainer, describe_trainable, score_untouched
from workbench.data import ContinualDataModule
from workbench.display import Display
from workbench.module import ContinualModule
from workbench.results import RunFolder
from workbench.returned import checked_items
from workbench.saving import Intervals
from workbench.scorers import described
from workbench.scoring import majority_answer
from workbench.seeding import seed_all


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
