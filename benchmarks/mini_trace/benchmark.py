"""The benchmark MiniTrace: eight domains, probes and general text."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset

from benchmarks.mini_trace.domains import DOMAINS, LABELS
from benchmarks.mini_trace.mix import MIX, episode
from benchmarks.mini_trace.sampling import Row, distinct_rows
from benchmarks.mini_trace.style import Conflict, Similarity, Style
from workbench.benchmark import LazyBenchmark, Task, dataset_of_pairs, seeded_random
from workbench.scorers import ExactMatch

PROBES = {"who_wants": 2, "option_letter": 2, "flip": 8, "add": 4}
"""Skills of the pretraining mix that serve as probes, and the longest answer of each in tokens, end token included."""

PROBE_ROWS = 64
GENERAL_TRAIN_ROWS = 8192
SMALLEST = {"train_rows": 1, "test_rows": 1, "validation_rows": 0}
LARGEST = 4096

ORDERS: Mapping[str, tuple[str, ...]] = {
    "default": tuple(DOMAINS),
    "second": (
        "number_cm", "number_ds", "policy_stance", "simplify",
        "topic_stance", "code_line", "meeting_summary", "choice",
    ),
    "reversed": tuple(DOMAINS)[::-1],
}  # fmt: skip
"""TRACE's order 1, its order 2, and order 1 reversed."""

HARDER: Mapping[str, Any] = {"label_conflict": "full", "similarity": "high", "train_rows": 128}
"""A harder preset that leaves room for improvement: `MiniTrace(**HARDER)`, used in configs/mini_trace_harder.yaml."""


class MiniTrace(LazyBenchmark):
    """Eight generated domains that mirror TRACE's, for runs of minutes on a laptop, without a download.

    All rows are determined by `seed`; the test rows do not depend on the number of training rows. No prompt occurs in
    two splits. Rows are generated when a task is first requested.

    Args:
        seed: Seed of the rows.
        train_rows: Training rows of each domain, 1 to 4096.
        test_rows: Test rows of each domain, 1 to 4096.
        validation_rows: Validation rows of each domain, 0 to 4096.
        label_conflict: How many of the three letters have another meaning in the second stance domain: "none", "half"
            (two of them, as between C-STANCE and FOMC) or "full".
        similarity: How similar the domains look, "low" or "high"; see `Style`.

    Raises:
        ValueError: A number of rows is out of range, or `label_conflict` or `similarity` has another value.
    """

    name = "mini_trace"
    task_names = tuple(DOMAINS)

    def __init__(
        self,
        seed: int = 0,
        train_rows: int = 512,
        test_rows: int = 128,
        validation_rows: int = 128,
        label_conflict: Conflict = "half",
        similarity: Similarity = "low",
    ) -> None:
        self.style = Style(label_conflict, similarity)
        rows = {"train_rows": train_rows, "test_rows": test_rows, "validation_rows": validation_rows}
        for argument, value in rows.items():
            if not SMALLEST[argument] <= value <= LARGEST:
                raise ValueError(f"{argument}={value} is out of range. Choose {SMALLEST[argument]} to {LARGEST}.")
        self.seed = seed
        self.train_rows, self.test_rows, self.validation_rows = train_rows, test_rows, validation_rows

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """TRACE's order 1 ("default"), its order 2 ("second"), and order 1 reversed ("reversed")."""
        return ORDERS

    @cached_property
    def probes(self) -> Sequence[Task]:
        """Skills of the backbone, with prompts as in its pretraining."""
        return [self._probe(name, longest) for name, longest in PROBES.items()]

    @cached_property
    def general(self) -> Task:
        """Text as in the backbone's pretraining: one question with its answer a row, without the probes' questions."""
        rng = seeded_random("mini_trace", self.seed, "general")
        rows = distinct_rows(lambda rng: episode(rng)[0], rng, PROBE_ROWS + GENERAL_TRAIN_ROWS)
        texts = [f"{prompt} {answer}" for prompt, answer in rows]
        asked = [prompt for probe in self.probes for prompt in probe.test["prompt"]]
        learnt = [text for text in texts[PROBE_ROWS:] if not any(prompt in text for prompt in asked)]
        test, train = (Dataset.from_dict({"text": part}) for part in (texts[:PROBE_ROWS], learnt))
        return Task(name="general_text", train=train, test=test)

    def build_task(self, name: str) -> Task:
        """Build the task of one domain.

        Args:
            name: Name of the domain.
        """
        domain = DOMAINS[name]
        scorers = domain.scorers()
        held_out = self.test_rows + self.validation_rows
        rng = seeded_random("mini_trace", self.seed, name)
        rows = distinct_rows(lambda rng: domain.make(rng, self.style), rng, held_out + self.train_rows)
        return Task(
            name=name,
            test=dataset_of_pairs(rows[: self.test_rows]),
            validation=dataset_of_pairs(rows[self.test_rows : held_out]),
            train=dataset_of_pairs(rows[held_out:]),
            scorers=scorers,
            max_new_tokens=domain.max_new_tokens,
            options=LABELS if "valid" in scorers else (),
        )

    def _probe(self, name: str, longest: int) -> Task:
        skill = MIX[name]

        def first_turn(rng: random.Random) -> Row:
            return skill(rng)[0]

        rows = distinct_rows(first_turn, seeded_random("mini_trace", self.seed, "probe", name), PROBE_ROWS)
        return Task(name=name, test=dataset_of_pairs(rows), scorers={"accuracy": ExactMatch()}, max_new_tokens=longest)
