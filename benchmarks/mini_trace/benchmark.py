"""MiniTrace: the domains, probes and general text as a benchmark of the workbench."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset

from benchmarks.mini_trace.domains import DOMAINS, LABELS
from benchmarks.mini_trace.mix import MIX, episode
from benchmarks.mini_trace.sampling import Row, distinct_rows, seeded
from benchmarks.mini_trace.style import Conflict, Similarity, Style
from workbench.benchmark import Task, no_rows
from workbench.scorers import ExactMatch

PROBES = {"who_wants": 2, "option_letter": 2, "flip": 8, "add": 4}
"""Each probe, a skill of the pretraining mix, and its longest answer with the end token, in tokens."""

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
"""TRACE's order 1, its order 2, and order 1 from its end."""


HARDER: Mapping[str, Any] = {"label_conflict": "full", "similarity": "high", "train_rows": 128}
"""The preset that leaves room above today's methods: `MiniTrace(**HARDER)`, and configs/mini_trace_harder.yaml."""


class MiniTrace:
    """Eight generated domains, one after the other: TRACE in minutes, on a laptop, without a download.

    Every row follows from `seed`; the test rows do not depend on how many training rows are asked for. Splits
    share no prompt. Nothing is generated before a task is asked for.

    Args:
        seed: Which rows are drawn.
        train_rows: Rows a domain, 1 to 4096.
        test_rows: Rows a domain, 1 to 4096.
        validation_rows: Rows a domain, 0 to 4096.
        label_conflict: How many letters change their meaning between the two stance domains: "none", "half" (two of
            three, as between C-STANCE and FOMC) or "full".
        similarity: How alike the domains look, "low" or "high"; see `Style`.

    Raises:
        ValueError: A number of rows is out of range, or a knob has no such value.
    """

    name = "mini_trace"

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
        self._tasks: dict[str, Task] = {}

    def __len__(self) -> int:
        return len(DOMAINS)

    def __getitem__(self, index: int) -> Task:
        name = list(DOMAINS)[index]
        if name not in self._tasks:
            self._tasks[name] = self._build(name)
        return self._tasks[name]

    @property
    def orders(self) -> Mapping[str, Sequence[str]]:
        """ "default" is TRACE's order 1, "second" its order 2, "reversed" the first from its end."""
        return ORDERS

    @cached_property
    def probes(self) -> Sequence[Task]:
        """Skills that the backbone was pretrained on, asked as they were there; never trained again."""
        return [self._probe(name, longest) for name, longest in PROBES.items()]

    @cached_property
    def general(self) -> Task:
        """Text as the backbone was pretrained on: one question and its answer a row, none of them a probe's."""
        rng = seeded("mini_trace", self.seed, "general")
        rows = distinct_rows(lambda rng: episode(rng)[0], rng, PROBE_ROWS + GENERAL_TRAIN_ROWS)
        texts = [f"{prompt} {answer}" for prompt, answer in rows]
        asked = [prompt for probe in self.probes for prompt in probe.test["prompt"]]
        learnt = [text for text in texts[PROBE_ROWS:] if not any(prompt in text for prompt in asked)]
        test, train = (Dataset.from_dict({"text": part}) for part in (texts[:PROBE_ROWS], learnt))
        return Task(name="general_text", train=train, test=test)

    def _build(self, name: str) -> Task:
        domain = DOMAINS[name]
        scorers = domain.scorers()
        held_out = self.test_rows + self.validation_rows
        rng = seeded("mini_trace", self.seed, name)
        rows = distinct_rows(lambda rng: domain.make(rng, self.style), rng, held_out + self.train_rows)
        return Task(
            name=name,
            test=_dataset(rows[: self.test_rows]),
            validation=_dataset(rows[self.test_rows : held_out]),
            train=_dataset(rows[held_out:]),
            scorers=scorers,
            max_new_tokens=domain.max_new_tokens,
            options=LABELS if "valid" in scorers else (),
        )

    def _probe(self, name: str, longest: int) -> Task:
        skill = MIX[name]

        def first_turn(rng: random.Random) -> Row:
            return skill(rng)[0]

        rows = distinct_rows(first_turn, seeded("mini_trace", self.seed, "probe", name), PROBE_ROWS)
        return Task(name=name, test=_dataset(rows), scorers={"accuracy": ExactMatch()}, max_new_tokens=longest)


def _dataset(rows: Sequence[Row]) -> Dataset:
    if not rows:
        return no_rows()
    return Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in rows])
