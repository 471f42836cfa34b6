"""Multi-task learning: all tasks at once, which no sequence does; the usual upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from datasets import Dataset

from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy


class Joint(ContinualStrategy):
    """Learns the training rows of all tasks as one task, each under its own answer limit.

    Every row is passed over as often as in the sequence, shuffled together: as often as `per_task`,
    `trainer.max_epochs` or the task itself says. With the same number of epochs for all tasks, an epoch passes over
    every row once. With different numbers e_t, it passes over each row e_t / g times and there are g epochs, where g is
    their greatest common divisor. So there are as many steps as in the sequence (but for the incomplete last batch of
    each epoch), and large tasks weigh more than small ones. Only the untouched model and the last row of the score
    matrix are measured: OP is there, and what compares with rows in between (BWT, FWT, forgetting, learning accuracy)
    is NaN.

    Where optimizer steps or time limit a task (`trainer.max_steps`, `trainer.max_time`), they limit the united one as a
    whole. It then learns less than the sequence does, and a report does not mark it as a bound. An optimizer or
    scheduler that `per_task` gives a task is not used, nor is the general corpus. What trains is not said here: alone
    these are all weights; after LoRA or block expansion in a list, theirs. Beside Replay it is Joint: nothing is left
    to be replayed.
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
        """One task, "joint", of all training rows; it is never scored itself.

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
    """Epochs of the united task, and how often each task's rows stand in one of them.

    The number of epochs is None, and all rows stand there once, where the passes over some task are not known.

    >>> rows = Dataset.from_dict({"text": ["a"]})
    >>> _epochs([Task(name, rows, rows, max_epochs=epochs) for name, epochs in {"a": 6, "b": 4}.items()])
    (2, [3, 2])
    """
    passes = [task.max_epochs for task in tasks if task.max_epochs]
    if len(passes) < len(tasks):
        return None, [1] * len(tasks)
    common = gcd(*passes)
    return common, [count // common for count in passes]
