"""Multi-task learning on all tasks at once: the usual upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from datasets import Dataset

from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy


class Joint(ContinualStrategy):
    """Train on the rows of all tasks as one task, each row with its own answer limit   (Caruana, 1997).

    The rows are shuffled together, and each is used as often as in the sequence: as many times as its task has
    epochs under `per_task`, `trainer.max_epochs` or the task itself. If all tasks have the same number of epochs, each
    row occurs once per epoch. With different numbers e_t, there are g = gcd(e_1, ..., e_T) epochs, in each of which a
    row of task t occurs e_t / g times. The number of optimizer steps is that of the sequence, except for the
    incomplete last batch of each epoch, and large tasks have more weight than small ones.

    Only row 0 (the model as loaded) and the last row of the score matrix are measured. OP is defined; metrics that
    need rows in between (BWT, FWT, forgetting, learning accuracy) are NaN.

    `trainer.max_steps` and `trainer.max_time` limit the united task as a whole. It is then trained less than the
    sequence, and a report does not mark it as a bound. Optimizers and schedulers of single tasks in `per_task` are not
    used, nor is the general corpus. The strategy does not choose the trainable parameters: alone, all weights are
    trained; in a list after LoRA or block expansion, those that they train. In a list with Replay nothing is replayed.
    """

    bound = "OP"
    reference = "Caruana, 1997 (Machine Learning 28)"
    bibtex = """@article{caruana1997multitask,
  author = {Caruana, Rich},
  title = {Multitask Learning},
  year = {1997},
  journal = {Machine Learning},
  volume = {28}
}"""

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        """Return one task, "joint", with the training rows of all tasks; it is not scored itself.

        Raises:
            ValueError: Some tasks are corpora and others have answers.
        """
        corpora = [task.name for task in tasks if task.is_corpus]
        if 0 < len(corpora) < len(tasks):
            answered = next(task.name for task in tasks if not task.is_corpus)
            raise ValueError(
                f"Joint cannot unite texts and answers: {corpora[0]} is a corpus and {answered} is not. "
                "Give tasks of one kind."
            )
        epochs, repeats = _epochs(tasks)
        return [
            Task(
                "joint",
                train=Dataset.from_list(
                    [row for task, count in zip(tasks, repeats, strict=True) for row in task.rows_to_mix() * count]
                ),
                test=tasks[0].test,  # never scored
                scorers=tasks[0].scorers,
                max_new_tokens=max(task.max_new_tokens for task in tasks),
                max_epochs=epochs,
            )
        ]


def _epochs(tasks: Sequence[Task]) -> tuple[int | None, list[int]]:
    """Return the number of epochs of the united task, and how often each task's rows occur in one of them.

    If the number of epochs of a task is unknown, the result is None, and all rows occur once.

    >>> rows = Dataset.from_dict({"text": ["a"]})
    >>> _epochs([Task(name, rows, rows, max_epochs=epochs) for name, epochs in {"a": 6, "b": 4}.items()])
    (2, [3, 2])
    """
    passes = [task.max_epochs for task in tasks if task.max_epochs]
    if len(passes) < len(tasks):
        return None, [1] * len(tasks)
    common = gcd(*passes)
    return common, [count // common for count in passes]
