"""How far a task's files repeat one another, counted; and validation rows that are not the test's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.trace.files import Row, Splits

EVERY = 10


@dataclass(frozen=True)
class Overlap:
    """What a task's files share; a row is its prompt and its answer.

    Args:
        task: The task's name.
        rows: Rows in each of "train", "eval" and "test", as released.
        repeated_in_train: Rows of train that stood there before.
        test_in_train: Rows of test that are in train too: they can be answered by heart.
        eval_in_test: Rows of eval that are in test too: to choose by them is to choose by the test.
        carved: Rows of train that serve as validation rows, because every eval row is in test. Where validation rows
            are scored, nothing is trained on them.
        dropped: Rows of eval left out of validation, because some, not all, are in test.
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
    """Count what a task's files share.

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
    """Find validation rows without a prompt of the test.

    Where eval and test merely overlap, eval's rows with a prompt of the test are dropped and train stays
    whole. Where eval is test, and nothing would be left of it, every tenth prompt of train validates instead.
    Prompts are counted once, in the file's order, and those of the test are passed over. Each different row with a
    chosen prompt validates once. Nothing is random.

    Returns:
        The splits, train as released; train without any row that has a chosen prompt, or None where none validates;
        and what is to be said of it.
    """
    tested = {prompt for prompt, _ in splits["test"]}
    untested: list[Row] = [row for row in splits["eval"] if row[0] not in tested]
    if untested or not splits["eval"]:
        dropped = len(splits["eval"]) - len(untested)
        return {**splits, "eval": untested}, None, replace(overlap, dropped=dropped)
    prompts = [prompt for prompt in dict(splits["train"]) if prompt not in tested]
    chosen = set(prompts[EVERY - 1 :: EVERY])
    kept: list[Row] = [row for row in splits["train"] if row[0] not in chosen]
    validation: list[Row] = [row for row in dict.fromkeys(splits["train"]) if row[0] in chosen]
    return {**splits, "eval": validation}, kept, replace(overlap, carved=len(validation))
