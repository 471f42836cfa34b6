"""KeyValueArithmetic: SUBS, NUM and MATH as a benchmark of the workbench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal, get_args

from datasets import Dataset

from benchmarks.key_value_arithmetic.expressions import Expressions, Make, Row, distinct, seeded
from workbench.benchmark import Task, no_rows
from workbench.scorers import ExactMatch

TrainOn = Literal["math", "subs"]
PROBE_ROWS = 256


class KeyValueArithmetic:
    """MATH with held-out keys, after learning from few of them (Bansal et al., 2024, arXiv 2401.02412, section 4.1).

    It has one task, "math". Its test rows are MATH over test keys and its validation rows MATH over validation keys.
    Its training rows are over the seen keys alone, and what they ask is `train_on`: the paper's section 3.2 has the
    composition learn arithmetic, its section 4.1 has it learn SUBS. Under "subs" the task is therefore trained on one
    kind of row and tested on another. Beside it three probes are tested and never trained: MATH with seen keys, SUBS
    with test keys, and NUM.

    A seed's keys are those of `Pretrain` with the same seed and `expressions`. The test rows depend on neither the
    share nor the number of training rows.

    Args:
        seed: Which keys there are, and which rows.
        share: Of all keys, those that the training rows are made of; at most 0.5.
        train_on: "math" or "subs".
        train_rows: Rows with different prompts, at most: 50 keys make 5000 sums and differences of two, and no more.
        test_rows: Of the test split, and as many of the validation split.
        expressions: Arguments of `Expressions`, its seed aside.

    Raises:
        ValueError: A number is out of range, or there is no such reading.
    """

    name = "key_value_arithmetic"

    def __init__(
        self,
        seed: int = 0,
        share: float = 0.2,
        train_on: TrainOn = "math",
        train_rows: int = 12_800,
        test_rows: int = 512,
        expressions: Mapping[str, Any] | None = None,
    ) -> None:
        if train_on not in get_args(TrainOn):
            raise ValueError(f"train_on={train_on!r}: choose 'math' or 'subs'.")
        for name, value in {"train_rows": train_rows, "test_rows": test_rows}.items():
            if value < 1:
                raise ValueError(f"{name}={value} is out of range. Choose 1 or more.")
        self.expressions = Expressions(seed, **(expressions or {}))
        self.seen = self.expressions.seen(share)
        self.train_on, self.train_rows, self.test_rows = train_on, train_rows, test_rows

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Task:
        return [self._math][index]

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """There is one task."""
        return {"default": ("math",)}

    @property
    def general(self) -> None:
        """There is no general text."""

    @cached_property
    def probes(self) -> Sequence[Task]:
        """MATH with seen keys, SUBS with test keys, NUM."""
        made = self.expressions
        makers: dict[str, Make] = {
            "math_seen": partial(made.math, keys=self.seen),
            "subs": partial(made.subs, keys=made.held_out["test"]),
            "num": made.num,
        }
        return [self._task(name, test=self._rows(name, make, PROBE_ROWS)) for name, make in makers.items()]

    @cached_property
    def _math(self) -> Task:
        made = self.expressions
        learnt = made.math if self.train_on == "math" else made.subs
        test, validation = (
            self._rows(split, partial(made.math, keys=made.held_out[split]), self.test_rows)
            for split in ("test", "validation")
        )
        count = min(self.train_rows, made.different(len(self.seen)))
        train = self._rows(f"train_{self.train_on}", partial(learnt, keys=self.seen), count)
        return self._task("math", test, validation, train)

    def _rows(self, name: str, make: Make, count: int) -> list[Row]:
        try:
            return distinct(make, seeded("key_value", self.expressions.seed, "rows", name), count)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _task(self, name: str, test: list[Row], validation: Sequence[Row] = (), train: Sequence[Row] = ()) -> Task:
        return Task(
            name=name,
            test=_dataset(test),
            validation=_dataset(validation),
            train=_dataset(train),
            scorers={"exact_match": ExactMatch()},
            max_new_tokens=2 * max(self.expressions.operands),
        )


def _dataset(rows: Sequence[Row]) -> Dataset:
    if not rows:
        return no_rows()
    return Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in rows])
