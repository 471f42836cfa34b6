"""The benchmark Lesson: three generated domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.lesson.domains import DOMAINS, MOST_ROWS
from workbench.benchmark import LazyBenchmark, Task, dataset_of_pairs, seeded_random


class Lesson(LazyBenchmark):
    """Three small domains in plain English for a pretrained model such as SmolLM2, without any data from elsewhere.

    `reviews` asks for a verdict in one letter, `islands` for invented facts that the weights have to store, `sums` for
    a number. The formats differ, so that a model that has just learned one of them loses another's format first.

    All rows are determined by `seed`. No prompt occurs in two splits. In a split whose number of rows is a multiple of
    twelve, every island occurs equally often; so what is tested is the fact, and not the sentence that asked for it.

    Args:
        seed: Seed of the rows.
        train_rows: Training rows of each domain.
        test_rows: Test rows of each domain.
        validation_rows: Validation rows of each domain.
        probes: Tasks that are tested and never trained, such as `benchmarks.everyday.questions`.
        general: A corpus of general text, such as `benchmarks.everyday.text`.

    Raises:
        ValueError: A number of rows is below 1, or they are more than 192 together.
    """

    name = "lesson"
    task_names = tuple(DOMAINS)

    def __init__(
        self,
        seed: int = 0,
        train_rows: int = 84,
        test_rows: int = 36,
        validation_rows: int = 12,
        probes: Sequence[Task] = (),
        general: Task | None = None,
    ) -> None:
        rows = {"train_rows": train_rows, "test_rows": test_rows, "validation_rows": validation_rows}
        if wrong := [f"{name}={count}" for name, count in rows.items() if count < 1]:
            raise ValueError(f"{', '.join(wrong)}: every split needs at least 1 row. Give it more.")
        if sum(rows.values()) > MOST_ROWS:
            stated = ", ".join(f"{name}={count}" for name, count in rows.items())
            raise ValueError(f"{stated} are {sum(rows.values())} rows together. Choose at most {MOST_ROWS} in all.")
        self.seed, self._probes, self._general = seed, tuple(probes), general
        self.train_rows, self.test_rows, self.validation_rows = train_rows, test_rows, validation_rows

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """The order of the domains, and its reverse."""
        return {"default": self.task_names, "reversed": self.task_names[::-1]}

    @property
    def probes(self) -> Sequence[Task]:
        """The tasks that are never trained, as given."""
        return self._probes

    @property
    def general(self) -> Task | None:
        """The general corpus, as given."""
        return self._general

    def build_task(self, name: str) -> Task:
        """Build the task of one domain.

        Args:
            name: Name of the domain.
        """
        domain = DOMAINS[name]
        held_out = self.test_rows + self.validation_rows
        rows = domain.draw(seeded_random("lesson", self.seed, name), held_out + self.train_rows)
        return Task(
            name=name,
            test=dataset_of_pairs(rows[: self.test_rows]),
            validation=dataset_of_pairs(rows[self.test_rows : held_out]),
            train=dataset_of_pairs(rows[held_out:]),
            scorers=domain.scorers(),
            max_new_tokens=domain.max_new_tokens,
            options=domain.options,
        )
