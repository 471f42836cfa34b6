"""The protocol of a run, as `environment.json` states it: what the scores mean and how they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Columns of the score matrix, as `learn_in_sequence` states them before anything is scored.

    Args:
        order: Names of the tasks, in the order in which they are learnt.
        probes: Names of the tasks that are tested and never trained.
        general: Name of the corpus of general text; None: there is none.
        primary: Primary metric of each name in `tested`.
        scorers: Description of each metric by task and metric; empty in older folders.
        test_rows: Number of test rows by name.
        training_rows: Number of training rows by task.
        majority: For each task of labels, the commonest answer and the score that it alone would have.
    """

    order: Sequence[str]
    probes: Sequence[str]
    general: str | None
    primary: Mapping[str, str]
    scorers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    test_rows: Mapping[str, int] = field(default_factory=dict)
    training_rows: Mapping[str, int] = field(default_factory=dict)
    majority: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def tested(self) -> list[str]:
        """All columns: the tasks in order, the probes, the corpus of general text."""
        return [*self.order, *self.probes, *filter(None, [self.general])]


@dataclass(frozen=True, kw_only=True)
class Protocol(Layout):
    """All that has to stand beside a run's numbers, as a study states it; see `Layout` for the columns.

    Defaults are what folders of earlier versions mean where they lack a key.

    Args:
        strategy: Name of the strategy in the study's config.
        order_name: Name of the order of tasks.
        seed: Seed of the run.
        backbone: Path or hub id of the model.
        benchmark: Import path of the benchmark's class.
        text: Text policy: lengths in tokens, truncation, template, tokenization.
        decoding: How answers are decoded.
        precision: `trainer.precision`.
        training_rows: Number of training rows by task.
        dtype: Data type in which the weights were loaded.
        dequantised: Which quantised file the weights come from: its name, the number of tensors of each type, and of a
            fetched model the file's origin; None: they were not quantised.
        end_token: End-of-sequence token.
        deterministic: `trainer.deterministic`.
        processes: Number of processes that trained together.
        scored_on: Split that was scored, "test" or "validation".
        carry_optimizer: Whether the optimizer's state is carried from task to task.
        task_id_at_test: Whether the strategy is given the task's identity at test time.
        bound: Measure that the strategy bounds from above; None: it is a method to be compared.
        trial_of: Name of the strategy that a sweep tries out in this run; None: it is no trial.
        strategies: Names of all strategies of the study, in the order of its config.
        references: Papers of the strategy, a line each.
        bibtex: A BibTeX entry for each line of `references`; "" where there is none.
        benchmark_notes: What the benchmark says of its own data.
        published: Each part of a published protocol beside this run's own.
    """

    strategy: str
    order_name: str
    seed: int
    backbone: str
    benchmark: str
    text: Mapping[str, Any]
    decoding: str
    precision: str | int
    training_rows: Mapping[str, int]
    dtype: str | None = None
    dequantised: Mapping[str, Any] | None = None
    end_token: str | None = None
    deterministic: bool | str | None = None
    processes: int | None = None
    scored_on: str = "test"
    carry_optimizer: bool = False
    task_id_at_test: bool = False
    bound: str | None = None
    trial_of: str | None = None
    strategies: Sequence[str] = ()
    references: Sequence[str] = ()
    bibtex: Sequence[str] = ()
    benchmark_notes: str | None = None
    published: Mapping[str, Any] | None = None

    @property
    def tokenization(self) -> str:
        """How prompt and answer are tokenised: "joint", or "apart", as in all older folders."""
        return str(self.text.get("tokenization", "apart"))


Stated = TypeVar("Stated", bound=Layout)


def read_stated(kind: type[Stated], environment: Mapping[str, Any]) -> Stated:
    """Read `Layout` or `Protocol` from the content of `environment.json`; unknown keys are ignored.

    Raises:
        KeyError: The section "protocol", or one of its keys that has no default, is missing.
    """
    section = environment["protocol"]
    for part in fields(kind):
        if part.default is MISSING and part.default_factory is MISSING and part.name not in section:
            raise KeyError(part.name)
    return kind(**{part.name: section[part.name] for part in fields(kind) if part.name in section})
