"""Multi-task learning: all tasks at once, which no sequence does; the usual upper bound."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy


class Joint(ContinualStrategy):
    """Learns the training rows of all tasks as one task, each under its own answer limit.

    An epoch passes over every row of every task once, shuffled together. So with the same number of epochs there
    are as many steps as in the sequence (but for the incomplete last batch of each task), and large tasks weigh
    more than small ones. Only the untouched model and the last row of the score matrix are measured: OP is there,
    and what compares with rows in between (BWT, FWT, forgetting, learning accuracy) is NaN.

    Tasks that state different numbers of epochs leave the united one with none: then `trainer.max_epochs`, the
    study's or this strategy's own, decides, or it is one. What `per_task` says of a task is not used, nor is the
    general corpus. What trains is not said here: alone these are all weights; after LoRA or block expansion in a
    list, theirs. Beside Replay it is Joint: nothing is left to be replayed.
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
        epochs = {task.max_epochs for task in tasks}
        return [
            Task(
                "joint",
                train=Dataset.from_list([row for task in tasks for row in task.rows_to_mix()]),
                test=tasks[0].test,  # never scored
                scorers=tasks[0].scorers,
                max_new_tokens=max(task.max_new_tokens for task in tasks),
                max_epochs=epochs.pop() if len(epochs) == 1 else None,
            )
        ]
