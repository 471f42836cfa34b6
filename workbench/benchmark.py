"""What is learnt, in which order, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from datasets import Dataset
from torchmetrics import Metric

from workbench.errors import name_problem, refuse_bare_strings

NATS_PER_BYTE = "nats_per_byte"
LIKELIEST_OPTION = "likeliest_option"
PROTOCOL_PARTS = (
    "tokenization",
    "training rows",
    "optimizer",
    "rate",
    "rows in a step",
    "loss",
    "epochs",
    "decoding",
)
"""Parts of a published protocol that a run can state of itself too."""
PRETRAINING = "pretraining"
"""The name of the item that continues pretraining before the first task: what trains then may be something else."""


def no_rows() -> Dataset:
    """The empty split of a task that is only ever tested."""
    return Dataset.from_dict({"prompt": [], "answer": []})


@dataclass(frozen=True)
class Task:
    """One domain: rows to learn from, rows to be tested on, and how an answer is judged.

    Args:
        name: Unique within a benchmark, whatever the case of its letters; it names files, so no path separators, and at
            most 230 bytes in UTF-8.
        test: Rows of {"prompt", "answer"} or, for a corpus, {"text"}. Never empty.
        train: Rows of the same columns; empty for a probe.
        validation: Rows of the same columns; may be empty.
        train_without_validation: For a task whose validation rows come out of `train`: the training rows without them.
            They are trained on in place of `train` where validation rows are scored, and only there. None: `validation`
            has rows of its own.
        scorers: Metric name to a metric with `update(prompts, predictions, answers)` and a
            scalar `compute()` in [0, 1], higher is better. The first is the primary one, which
            enters OP, BWT and the rest. Empty for a corpus, which is scored in nats per byte.
        max_new_tokens: The longest answer, in tokens, that is generated or learnt from.
        max_prompt_length: The longest prompt, in tokens, that this task's protocol states;
            `data.max_prompt_length` in a config wins over it.
        max_epochs: Passes over `train` that this task's protocol states; `trainer.max_epochs`
            or `per_task` in a config wins over it. The tasks that a curriculum is given state what the run does. An
            item that a strategy puts into the curriculum keeps its own: only `per_task` wins over that.
        max_steps: Optimizer steps, for an item that a strategy puts into the curriculum; it wins over the study's
            `trainer.max_epochs`, and `per_task` in a config over it.
        packed: Whether a corpus' texts stand one after the other in rows of the longest length while they are
            learnt, as in pretraining. Scoring never packs.
        prepares: For an inserted item that stands before the task of this name, such as an expert's own training:
            the row of the task before is scored ahead of it. Other inserted items belong to the task before them.
        options: What an answer can begin with, where that is one of a few texts, such as the letters of a choice; see
            `data.score_options`.

    Raises:
        ValueError: The name cannot be a file's, a split has other columns, the test split is empty, there is no scorer,
            or a single option.
    """

    name: str
    test: Dataset
    train: Dataset = field(default_factory=no_rows)
    validation: Dataset = field(default_factory=no_rows)
    scorers: Mapping[str, Metric] = field(default_factory=dict)
    max_new_tokens: int = 64
    max_prompt_length: int | None = None
    max_epochs: int | None = None
    max_steps: int | None = None
    packed: bool = False
    prepares: str | None = None
    options: Sequence[str] = ()
    train_without_validation: Dataset | None = None

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            raise ValueError(f"{self.name!r:.60} is no name for a task: {problem}.")
        if len(self.test) == 0:
            raise ValueError(
                f"{self.name}: the test split has no rows, so nothing could be measured on it. Give it one."
            )
        for split in ("train", "validation", "test"):
            self._check_columns(split)
        if not self.is_corpus and not self.scorers:
            raise ValueError(f"{self.name}: no scorer is given. Give at least one, the primary one first.")
        if self.options and (isinstance(self.options, str) or "" in self.options or len({*self.options}) < 2):
            raise ValueError(f"{self.name}: options={self.options!r}. Give a list of two or more different answers.")

    def _check_columns(self, split: str) -> None:
        dataset: Dataset = getattr(self, split)
        if len(dataset) == 0:
            return
        needed = {"text"} if self.is_corpus else {"prompt", "answer"}
        if missing := needed - set(dataset.column_names):
            told = f"column {sorted(missing)[0]!r} is missing (there: {dataset.column_names}). Rename or add it."
            raise ValueError(f"{self.name}, {split}: {told}")

    def scored_on_validation(self) -> Task:
        """The task with its validation rows in the test rows' place, and trained on none of them."""
        train = self.train if self.train_without_validation is None else self.train_without_validation
        return replace(self, train=train, test=self.validation, train_without_validation=None)

    @property
    def is_corpus(self) -> bool:
        """Whether the rows are plain text, learnt whole and scored in nats per byte."""
        return "text" in self.test.column_names

    def rows_to_mix(self) -> list[dict[str, Any]]:
        """The training rows as they can stand among another task's: a corpus' text, or prompt, answer and limit.

        Each row carries `max_new_tokens`, so that its answer is cut where this task cuts it and not where the
        other one does.
        """
        if self.is_corpus:
            return [{"text": row["text"]} for row in self.train]
        return [
            {
                "prompt": row["prompt"],
                "answer": row["answer"],
                "max_new_tokens": row.get("max_new_tokens") or self.max_new_tokens,
            }
            for row in self.train
        ]

    @property
    def primary(self) -> str:
        """The metric that enters OP; for a corpus, nats per byte."""
        return next(iter(self.scorers), NATS_PER_BYTE)


@dataclass(frozen=True)
class PublishedProtocol:
    """How a publication encodes and trains, where that differs from the workbench's default.

    A benchmark that is to be run in this way has it as its attribute `protocol`. A key in the config wins over it.

    Args:
        name: The publication's.
        tokenization: Stands in for `data.tokenization`.
        carry_optimizer: Stands in for `carry_optimizer`.
        parts: Each part of the publication's protocol in words, by its name in `PROTOCOL_PARTS`. Each run's
            `environment.json` states them beside the run's own.

    Raises:
        ValueError: A part has another name.
    """

    name: str
    tokenization: Literal["apart", "joint"] = "apart"
    carry_optimizer: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.parts if name not in PROTOCOL_PARTS]:
            raise ValueError(f"parts: there is no {unknown[0]!r}. Choose from {', '.join(PROTOCOL_PARTS)}.")


def published_protocol(benchmark: object) -> PublishedProtocol:
    """The protocol that a benchmark is to be run in; without a name where that is the workbench's default."""
    return getattr(benchmark, "protocol", None) or PublishedProtocol("")


@runtime_checkable
class Benchmark(Protocol):
    """A sequence of tasks, named orders of it, and what is tested but never trained.

    It may also have a `protocol`, a `PublishedProtocol`.
    """

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """Named permutations of the tasks' names; a study chooses. The first is the default."""

    @property
    def probes(self) -> Sequence[Task]:
        """Tasks that are only ever tested: their change is the general-ability delta."""

    @property
    def general(self) -> Task | None:
        """A corpus of general text, or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Task: ...


class Subset:
    """A few of a benchmark's tasks, with its probes and its corpus: for a first look, or a question about one task.

    Args:
        of: The benchmark.
        tasks: Names of the tasks that stay; each order keeps its own sequence of them.

    Raises:
        ValueError: No task is named, one that the benchmark does not have, or a string instead of a list of names.
    """

    def __init__(self, of: Benchmark, tasks: Sequence[str]) -> None:
        refuse_bare_strings(tasks=tasks)
        there = [of[index].name for index in range(len(of))]
        if unknown := [name for name in tasks if name not in there]:
            raise ValueError(f"tasks: there is no {unknown[0]!r}. Choose from {', '.join(there)}.")
        if not tasks:
            raise ValueError(f"tasks: empty. Name one or more of {', '.join(there)}.")
        self.of = of
        self.protocol: PublishedProtocol | None = getattr(of, "protocol", None)
        self.overlaps = [entry for entry in getattr(of, "overlaps", ()) if entry.task in tasks]
        self._places = [index for index, name in enumerate(there) if name in tasks]

    def __str__(self) -> str:
        """Which tasks of what, and what that says of its data."""
        kept = ", ".join(task.name for task in map(self.__getitem__, range(len(self))))
        notes = "" if type(self.of).__str__ is object.__str__ else f"\n{self.of}"
        return f"{kept} of {type(self.of).__name__}{notes}"

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """The benchmark's, without the tasks that are left out."""
        kept = {task.name for task in map(self.__getitem__, range(len(self)))}
        return {name: [task for task in order if task in kept] for name, order in self.of.orders.items()}

    @property
    def probes(self) -> Sequence[Task]:
        """The benchmark's."""
        return self.of.probes

    @property
    def general(self) -> Task | None:
        """The benchmark's."""
        return self.of.general

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Task:
        return self.of[self._places[index]]
