"""The benchmark KeyValueArithmetic: the tasks SUBS, NUM and MATH of CALM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal, get_args

from benchmarks.key_value_arithmetic.expressions import Expressions, Make, Row, distinct
from workbench.benchmark import LazyBenchmark, Task, dataset_of_pairs, seeded_random
from workbench.scorers import ExactMatch

TrainOn = Literal["math", "subs"]
PROBE_ROWS = 256


class KeyValueArithmetic(LazyBenchmark):
    """Arithmetic over held-out keys, learnt from few others (Bansal et al., 2024, arXiv 2401.02412, section 4.1).

    The one task, "math", is tested on MATH over test keys and validated on MATH over validation keys. It is trained
    on rows over the seen keys only, of the kind `train_on`: in the paper's section 3.2 the composition learns
    arithmetic (MATH), in its section 4.1 it learns SUBS. With "subs" the training rows are therefore of another kind
    than the test rows. The probes are MATH over seen keys, SUBS over test keys, and NUM.

    The keys are those of `Pretrain` with the same seed and `expressions`. The test rows depend neither on `share` nor
    on `train_rows`.

    Args:
        seed: Seed of the keys and of the rows.
        share: Share of all keys that occur in training rows, more than 0 and at most 0.5.
        train_on: Kind of the training rows, "math" or "subs".
        train_rows: Maximum number of training rows. Prompts are distinct, so there may be fewer: 50 keys give 5000
            sums and differences of two keys.
        test_rows: Number of test rows and of validation rows.
        expressions: Arguments of `Expressions` other than the seed.

    Raises:
        ValueError: A number is out of range, or `train_on` has another value.
    """

    name = "key_value_arithmetic"
    task_names = ("math",)

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

    def build_task(self, name: str) -> Task:
        """Build the task, "math".

        Args:
            name: "math".
        """
        source = self.expressions
        make_train = source.math if self.train_on == "math" else source.subs
        test, validation = (
            self._rows(split, partial(source.math, keys=source.held_out[split]), self.test_rows)
            for split in ("test", "validation")
        )
        count = min(self.train_rows, source.different(len(self.seen)))
        train = self._rows(f"train_{self.train_on}", partial(make_train, keys=self.seen), count)
        return self._task(name, test, validation, train)

    @cached_property
    def probes(self) -> Sequence[Task]:
        """MATH over seen keys, SUBS over test keys, and NUM."""
        source = self.expressions
        makers: dict[str, Make] = {
            "math_seen": partial(source.math, keys=self.seen),
            "subs": partial(source.subs, keys=source.held_out["test"]),
            "num": source.num,
        }
        return [self._task(name, test=self._rows(name, make, PROBE_ROWS)) for name, make in makers.items()]

    def _rows(self, name: str, make: Make, count: int) -> list[Row]:
        try:
            return distinct(make, seeded_random("key_value", self.expressions.seed, "rows", name), count)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _task(self, name: str, test: list[Row], validation: Sequence[Row] = (), train: Sequence[Row] = ()) -> Task:
        return Task(
            name=name,
            test=dataset_of_pairs(test),
            validation=dataset_of_pairs(validation),
            train=dataset_of_pairs(train),
            scorers={"exact_match": ExactMatch()},
            max_new_tokens=2 * max(self.expressions.operands),
        )
