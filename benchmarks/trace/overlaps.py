"""Rows shared by the files of a task, and validation rows without test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.trace.files import Row, Splits

EVERY = 10
"""Of the training prompts, one in so many is used for validation if the released validation rows cannot be."""


@dataclass(frozen=True)
class Overlap:
    """Numbers of rows, as pairs of prompt and answer, that the files of a task share.

    Args:
        task: Name of the task.
        rows: Number of rows in "train", "eval" and "test", as released or, of the first rows of each, as used.
        repeated_in_train: Rows of train that repeat an earlier row of train.
        test_in_train: Rows of test that are also in train, so that they can be memorized.
        eval_in_test: Rows of eval that are also in test: choices made on them are choices made on the test.
        carved: Rows of train that are used for validation because all eval rows are in test. If validation rows are
            scored, they are not trained on.
        dropped: Rows of eval that are not used for validation, because some of them are in test.
    """

    task: str
    rows: Mapping[str, int]
    repeated_in_train: int
    test_in_train: int
    eval_in_test: int
    carved: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        counts = (
            (self.repeated_in_train, "train", "training rows are repetitions"),
            (self.test_in_train, "test", "test rows are also in train"),
            (self.eval_in_test, "eval", "eval rows are also in test"),
        )
        parts = [f"{count} of {self.rows[split]} {what}" for count, split, what in counts if count]
        if self.carved:
            parts.append(
                f"{self.carved} rows of train validate in place of eval, and leave train where they are scored"
            )
        if self.dropped:
            parts.append(f"{self.dropped} rows of eval are left out of validation and train stays whole")
        return f"{self.task}: {', '.join(parts) or 'no row is repeated'}."


def overlap_of(task: str, splits: Splits) -> Overlap:
    """Count the rows that the files of a task share.

    >>> rows = [("1+1", "2"), ("1+2", "3"), ("1+1", "2")]
    >>> shared = overlap_of("sums", {"train": rows, "eval": [("1+3", "4")], "test": rows[:1]})
    >>> shared.repeated_in_train, shared.test_in_train, shared.eval_in_test
    (1, 1, 0)
    """
    train, test = set(splits["train"]), set(splits["test"])
    return Overlap(
        task=task,
        rows={split: len(rows) for split, rows in splits.items()},
        repeated_in_train=len(splits["train"]) - len(train),
        test_in_train=sum(row in train for row in splits["test"]),
        eval_in_test=sum(row in test for row in splits["eval"]),
    )


def with_own_validation(splits: Splits, overlap: Overlap) -> tuple[Splits, list[Row] | None, Overlap]:
    """Choose validation rows that share no prompt with the test rows.

    If some eval rows have other prompts than the test rows, these are the validation rows and train is unchanged. If
    none has, every tenth distinct prompt of train is used instead, in file order, test prompts skipped; each distinct
    row with a chosen prompt validates once. Nothing is random.

    Returns:
        The splits, with train as released; train without the rows of the chosen prompts, or None if no training row
        is used; and the overlap with the numbers of carved and dropped rows.
    """
    test_prompts = {prompt for prompt, _ in splits["test"]}
    usable: list[Row] = [row for row in splits["eval"] if row[0] not in test_prompts]
    if usable or not splits["eval"]:
        dropped = len(splits["eval"]) - len(usable)
        return {**splits, "eval": usable}, None, replace(overlap, dropped=dropped)
    prompts = [prompt for prompt in dict(splits["train"]) if prompt not in test_prompts]
    chosen = set(prompts[EVERY - 1 :: EVERY])
    without_chosen: list[Row] = [row for row in splits["train"] if row[0] not in chosen]
    validation: list[Row] = [row for row in dict.fromkeys(splits["train"]) if row[0] in chosen]
    return {**splits, "eval": validation}, without_chosen, replace(overlap, carved=len(validation))
