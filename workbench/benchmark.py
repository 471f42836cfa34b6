"""Tasks and benchmarks: what is learnt, in which order, and how answers are scored."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

from datasets import Dataset, Features, Value
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
"""Parts of a published protocol. Each run records its own value of every one of them."""
PRETRAINING = "pretraining"
"""Name of the curriculum item that continues pretraining before the first task."""


def dataset_of_pairs(pairs: Iterable[tuple[str, str]]) -> Dataset:
    """Return pairs of a prompt and its answer as a dataset with these two columns, in the given order.

    Args:
        pairs: One for each row; none is an empty dataset whose columns are still of type string.

    >>> dataset_of_pairs([("1 + 1 =", "2")])[0]
    {'prompt': '1 + 1 =', 'answer': '2'}
    """
    prompts, answers = [], []
    for prompt, answer in pairs:
        prompts.append(prompt)
        answers.append(answer)
    columns = Features(prompt=Value("string"), answer=Value("string"))
    return Dataset.from_dict({"prompt": prompts, "answer": answers}, features=columns)


def seeded_random(*parts: str | int) -> random.Random:
    """Return a random number generator whose seed depends only on `parts`, in every process and on every machine.

    Args:
        parts: Numbers and words, such as a benchmark's name, its seed and the name of a split.

    >>> seeded_random("sums", 0, "train").random() == seeded_random("sums", 0, "train").random()
    True
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def no_rows() -> Dataset:
    """Return an empty split, such as the training split of a probe."""
    return dataset_of_pairs(())


@dataclass(frozen=True)
class Task:
    """One domain: rows for training, validation and test, and how answers are scored.

    Args:
        name: Unique within a benchmark, regardless of case. It is used in file names: no path separators, at most 230
            bytes in UTF-8.
        test: Rows of {"prompt", "answer"} or, for a corpus, {"text"}. Never empty.
        train: Rows of the same columns; empty for a probe, which is only tested.
        validation: Rows of the same columns; may be empty.
        train_without_validation: For a task whose validation rows are part of `train`: the training rows without
            them. Used in place of `train` only if validation rows are scored. None: `validation` is a separate split.
        scorers: Metrics by name, each with `update(prompts, predictions, answers)` and a scalar `compute()` in
            [0, 1], higher is better. The first is the primary metric, which enters OP, BWT and the other summary
            metrics. Empty for a corpus, which is scored in nats per byte.
        max_new_tokens: Maximum length of an answer in tokens, in training and in generation.
        max_prompt_length: Maximum length of a prompt in tokens under the task's protocol. `data.max_prompt_length` in
            a config takes precedence.
        max_epochs: Passes over `train` under the task's protocol. `trainer.max_epochs` and `per_task` in a config
            take precedence; the tasks passed to `curriculum` carry the resulting number. For an item that a strategy
            inserts into the curriculum only `per_task` takes precedence.
        max_steps: Optimizer steps of an item that a strategy inserts into the curriculum. It takes precedence over
            `trainer.max_epochs`, and `per_task` over it.
        packed: For a corpus: concatenate the texts into rows of the maximum length for training, as in pretraining.
            Scoring never packs.
        prepares: For an inserted item: name of the task that it prepares, such as a task whose expert is trained
            first. The score row of the previous task is then measured before the item. Without it, an inserted item
            counts as part of the previous task.
        options: Texts that an answer can begin with, such as the letters of a multiple choice; see
            `data.score_options`.

    Raises:
        ValueError: The name cannot be used in a file name, a split lacks a column, the test split is empty, there is
            no scorer, or only one option.
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
            message = f"column {sorted(missing)[0]!r} is missing (there: {dataset.column_names}). Rename or add it."
            raise ValueError(f"{self.name}, {split}: {message}")

    def scored_on_validation(self) -> Task:
        """Return the task with its validation rows as the test split, and none of them in the training split."""
        train = self.train if self.train_without_validation is None else self.train_without_validation
        return replace(self, train=train, test=self.validation, train_without_validation=None)

    @property
    def is_corpus(self) -> bool:
        """Whether the rows are plain text, trained on as a whole and scored in nats per byte."""
        return "text" in self.test.column_names

    def rows_to_mix(self) -> list[dict[str, Any]]:
        """Return the training rows in a form that can be mixed into another task's rows.

        Rows with answers carry `max_new_tokens`, so that they keep this task's answer limit.
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
        """Name of the metric that enters OP; "nats_per_byte" for a corpus."""
        return next(iter(self.scorers), NATS_PER_BYTE)


@dataclass(frozen=True)
class PublishedProtocol:
    """Protocol of a publication, where it differs from the workbench's defaults.

    A benchmark that follows one has it in its attribute `protocol`. Keys in a config take precedence.

    Args:
        name: Name of the publication.
        tokenization: Default of `data.tokenization`.
        carry_optimizer: Default of `carry_optimizer`.
        parts: Description of each part of the protocol by its name in `PROTOCOL_PARTS`. Each run's
            `environment.json` shows them next to the run's own values.

    Raises:
        ValueError: A part has a name that is not in `PROTOCOL_PARTS`.
    """

    name: str
    tokenization: Literal["apart", "joint"] = "apart"
    carry_optimizer: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.parts if name not in PROTOCOL_PARTS]:
            raise ValueError(f"parts: there is no {unknown[0]!r}. Choose from {', '.join(PROTOCOL_PARTS)}.")


def published_protocol(benchmark: object) -> PublishedProtocol:
    """Return the published protocol of a benchmark; with an empty name if it has none."""
    return getattr(benchmark, "protocol", None) or PublishedProtocol("")


@runtime_checkable
class Benchmark(Protocol):
    """A sequence of tasks, its named orders, and tasks that are tested but never trained.

    A benchmark may also have an attribute `protocol`, a `PublishedProtocol`.
    """

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """Permutations of the task names, by name. A study chooses among them; the first is the default."""

    @property
    def probes(self) -> Sequence[Task]:
        """Tasks that are only tested. Their mean change is the general-ability delta."""

    @property
    def general(self) -> Task | None:
        """Corpus of general text, or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Task: ...


class LazyBenchmark(ABC):
    """Base class of a benchmark that builds each task when it is first requested.

    A subclass sets `task_names` and defines `build_task`. By default there is one order, "default", no probe and no
    general text. A benchmark needs no base class; this one saves the methods that generated benchmarks have in common.

    >>> from workbench.scorers import ExactMatch
    >>> class Sums(LazyBenchmark):
    ...     task_names = ("sums",)
    ...
    ...     def build_task(self, name: str) -> Task:
    ...         rows = dataset_of_pairs([("1 + 1 =", "2")])
    ...         return Task(name, test=rows, train=rows, scorers={"accuracy": ExactMatch()})
    >>> [task.name for task in Sums()], Sums().orders
    (['sums'], {'default': ('sums',)})

    Attributes:
        task_names: Names of the tasks, in the default order.
    """

    task_names: Sequence[str] = ()

    @abstractmethod
    def build_task(self, name: str) -> Task:
        """Build a task; called once for each name.

        Args:
            name: One of `task_names`.
        """

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """One order, "default"."""
        return {"default": self.task_names}

    @property
    def probes(self) -> Sequence[Task]:
        """No task is only tested."""
        return ()

    @property
    def general(self) -> Task | None:
        """No general text."""
        return None

    def __len__(self) -> int:
        return len(self.task_names)

    def __getitem__(self, index: int) -> Task:
        name = self.task_names[index]
        if name not in self._built:
            self._built[name] = self.build_task(name)
        return self._built[name]

    @cached_property
    def _built(self) -> dict[str, Task]:
        """The tasks built so far, by name."""
        return {}


class Subset:
    """A benchmark reduced to some of its tasks, with its probes and its general corpus.

    Args:
        of: The benchmark.
        tasks: Names of the tasks to keep; each order keeps its own sequence of them.

    Raises:
        ValueError: `tasks` is empty, names a task that the benchmark does not have, or is a string instead of a list.
    """

    def __init__(self, of: Benchmark, tasks: Sequence[str]) -> None:
        refuse_bare_strings(tasks=tasks)
        names = [of[index].name for index in range(len(of))]
        if unknown := [name for name in tasks if name not in names]:
            raise ValueError(f"tasks: there is no {unknown[0]!r}. Choose from {', '.join(names)}.")
        if not tasks:
            raise ValueError(f"tasks: empty. Name one or more of {', '.join(names)}.")
        self.of = of
        self.protocol: PublishedProtocol | None = getattr(of, "protocol", None)
        self.overlaps = [entry for entry in getattr(of, "overlaps", ()) if entry.task in tasks]
        self._indices = [index for index, name in enumerate(names) if name in tasks]
        self._names = [names[index] for index in self._indices]

    def __str__(self) -> str:
        """Names of the kept tasks, and the benchmark's own description if it has one."""
        names = ", ".join(self._names)
        description = "" if type(self.of).__str__ is object.__str__ else f"\n{self.of}"
        return f"{names} of {type(self.of).__name__}{description}"

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """The benchmark's orders, reduced to the kept tasks."""
        return {name: [task for task in order if task in self._names] for name, order in self.of.orders.items()}

    @property
    def probes(self) -> Sequence[Task]:
        """The benchmark's probes."""
        return self.of.probes

    @property
    def general(self) -> Task | None:
        """The benchmark's general corpus."""
        return self.of.general

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Task:
        return self.of[self._indices[index]]
