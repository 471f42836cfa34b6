"""The numbers behind a report's figures and tables, read once from the runs of a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, cast

from workbench.report.comparison import Comparison
from workbench.results import RunFolder
from workbench.statistics import Estimate, student_interval

NATS = "nats_per_token"
SHOWN_ROWS = 3
LONGEST_TEXT = 280
UNKNOWN = Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True)
class Loss:
    """One domain, right after it was learnt and in the end, by three measures.

    Attributes:
        domain: Its name.
        strict: The primary score, (learnt, end).
        lenient: The same where the answer may stand among other words, (learnt, end); NaN where nobody measures it.
        nats: Nats per token of the right answer, (learnt, end).
    """

    domain: str
    strict: tuple[float, float]
    lenient: tuple[float, float]
    nats: tuple[float, float]


@dataclass(frozen=True)
class Answer:
    """What a run answered to one test row; None where it was not asked."""

    strategy: str
    before: str | None
    learnt: str | None
    end: str | None


@dataclass(frozen=True)
class Asked:
    """One test row, and what each strategy's first run made of it."""

    prompt: str
    expected: str
    answers: list[Answer]


class View:
    """Every cell of a comparison's finished runs; means are over seeds within an order.

    Args:
        comparison: What may stand in one table.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.strategies, self.orders = comparison.strategies, comparison.orders
        self._cells: dict[tuple[str, str, int], dict[tuple[int, str, str], float]] = {}
        self._protocols: dict[str, dict[str, Any]] = {}
        self._seeds = {
            (name, order): comparison.seeds(name, order) for name, order in product(self.strategies, self.orders)
        }
        for (strategy, order), seeds in self._seeds.items():
            for seed in seeds:
                run = self._run(strategy, order, seed)
                self._protocols.setdefault(order, run.environment()["protocol"])
                self._cells[strategy, order, seed] = cells_of(run)

    @property
    def main_order(self) -> str | None:
        """What to show first: the mean over orders (None) where there are several and each strategy has met them all,
        or else the order that most strategies have met. None without an order, too.
        """
        if len(self.orders) != 1 and all(self._seeds.values()):
            return None
        return max(self.orders, key=lambda order: sum(bool(self._seeds[name, order]) for name in self.strategies))

    def tasks(self, order: str) -> list[str]:
        """The domains in the order in which they are learnt."""
        return list(self._protocols[order]["order"])

    def tested(self, order: str) -> list[str]:
        """All that is scored: the domains, the probes, the corpus of general text."""
        protocol = self._protocols[order]
        return [*protocol["order"], *protocol["probes"], *filter(None, [protocol["general"]])]

    def metric(self, name: str) -> str:
        """The primary metric of a domain, a probe or the corpus."""
        return str(next(iter(self._protocols.values()))["primary"][name])

    def is_score(self, name: str) -> bool:
        """Whether it is scored between 0 and 1, and not in nats."""
        return not self.metric(name).startswith("nats")

    def cell(self, strategy: str, order: str, place: tuple[int, str], metric: str = "") -> Estimate:
        """One score over the seeds of an order.

        Args:
            strategy: Its name.
            order: Its name.
            place: After how many tasks, and on what.
            metric: The primary one unless another is named.
        """
        after, on = place
        key = (after, on, metric or self.metric(on))
        cells = [self._cells[strategy, order, seed] for seed in self._seeds[strategy, order]]
        return student_interval([own.get(key, math.nan) for own in cells])

    def course(self, strategy: str, order: str, on: str, metric: str = "") -> list[Estimate]:
        """A score after 0, 1, … T tasks."""
        return [self.cell(strategy, order, (after, on), metric) for after in range(len(self.tasks(order)) + 1)]

    def matrix(self, strategy: str, order: str, seed: int | None = None) -> list[list[float]]:
        """(T+1, columns) scores of all that is tested, of one seed or the mean over seeds."""
        columns, rows = self.tested(order), range(len(self.tasks(order)) + 1)
        if seed is None:
            return [[self.cell(strategy, order, (after, on)).mean for on in columns] for after in rows]
        cells = self._cells[strategy, order, seed]
        return [[cells.get((after, on, self.metric(on)), math.nan) for on in columns] for after in rows]

    def losses(self, strategy: str) -> list[Loss]:
        """Domain by domain what was known when it was learnt and what in the end, means over seeds, then orders."""
        orders = [order for order in self.orders if self._seeds[strategy, order]]

        def moments(domain: str, metric: str) -> tuple[float, float]:
            found = []
            for order in orders:
                tasks = self.tasks(order)
                pair = (tasks.index(domain) + 1, len(tasks))
                found.append([self.cell(strategy, order, (after, domain), metric).mean for after in pair])
            return mean([learnt for learnt, _ in found]), mean([end for _, end in found])

        domains = self.tasks(orders[0]) if orders else []
        kinds = [("", f"{self.metric(domain)}_lenient", NATS) for domain in domains]
        return [Loss(domain, *(moments(domain, kind) for kind in kinds[place])) for place, domain in enumerate(domains)]

    def asked(self, domain: str) -> list[Asked]:
        """The first test rows of a domain, and the answers before, right after its training and in the end.

        They are the first ones, not chosen: one run of each strategy, its first order and seed.
        """
        prompts: dict[str, str] = {}
        answers: dict[str, list[Answer]] = {}
        for strategy in self.strategies:
            run, order = self.first_run(strategy)
            tasks = self.tasks(order)
            moments = [read_answers(run.path, after, domain) for after in (0, tasks.index(domain) + 1, len(tasks))]
            for given in reversed(moments):
                prompts |= {prompt: row["answer"] for prompt, row in given.items() if prompt not in prompts}
            for prompt in prompts:
                texts = [moment[prompt]["prediction"] if prompt in moment else None for moment in moments]
                answers.setdefault(prompt, []).append(Answer(strategy, *map(shortened, texts)))
        return [
            Asked(shortened(prompt) or "", shortened(prompts[prompt]) or "", answers[prompt])
            for prompt in islice(prompts, SHOWN_ROWS)
        ]

    def first_run(self, strategy: str) -> tuple[RunFolder, str]:
        """A strategy's first run and the name of its order."""
        order = next(order for order in self.orders if self._seeds[strategy, order])
        return self._run(strategy, order, self._seeds[strategy, order][0]), order

    def _run(self, strategy: str, order: str, seed: int) -> RunFolder:
        return cast(RunFolder, self.comparison.of(strategy, order, seed))


def cells_of(run: RunFolder) -> dict[tuple[int, str, str], float]:
    """A run's scores and likelihoods by (after, on, metric)."""
    rows = [*run.records.scores, *run.records.nll]
    return {(int(row["after"]), row["on"], row["metric"]): float(row["value"]) for row in rows}


def mean(values: Sequence[float]) -> float:
    """The mean; NaN where one is, or where there is none.

    >>> mean([1.0, 2.0]), mean([])
    (1.5, nan)
    """
    return math.fsum(values) / len(values) if values else math.nan


def shortened(text: str | None, longest: int = LONGEST_TEXT) -> str | None:
    """A text with its middle left out where it is long: a prompt's end is what is asked.

    >>> shortened("abcdefghij", 5)
    'ab … ij'
    """
    if text is None or len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … {text[-half:]}"


def read_answers(folder: Path, after: int, task: str) -> dict[str, dict[str, str]]:
    """The first rows of a file of predictions, by prompt; none where the file is not there."""
    file = folder / "predictions" / f"{after}-{task}.jsonl"
    return {row["prompt"]: row for row in _rows(file)} if file.is_file() else {}


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in islice(lines, SHOWN_ROWS):
            try:
                row = json.loads(line)
            except ValueError:  # a torn last line: what was read before it stands
                return
            if isinstance(row, dict) and {"prompt", "prediction", "answer"} <= row.keys():
                yield {name: str(row[name]) for name in ("prompt", "prediction", "answer")}
