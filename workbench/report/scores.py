"""Scores and answers behind a report's figures and tables, read once from the runs of a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import cast

from workbench.report.comparison import Comparison
from workbench.results import Layout, RunFolder
from workbench.statistics import Estimate, mean, student_interval

NATS = "nats_per_token"
SHOWN_ROWS = 3
LONGEST_TEXT = 280


@dataclass(frozen=True)
class Loss:
    """One domain right after it was learnt and at the end, by three measures.

    Attributes:
        domain: Name of the domain.
        strict: Primary score, (learnt, end).
        lenient: Primary score where the answer may stand among other words, (learnt, end); NaN where no scorer has it.
        nats: Nats per token of the right answer, (learnt, end).
    """

    domain: str
    strict: tuple[float, float]
    lenient: tuple[float, float]
    nats: tuple[float, float]


@dataclass(frozen=True)
class Answer:
    """Answers of a strategy to one test row: zero-shot, after the domain, at the end; None where none is known."""

    strategy: str
    before: str | None
    learnt: str | None
    end: str | None


@dataclass(frozen=True)
class Asked:
    """One test row with the answers of each strategy's first run."""

    prompt: str
    expected: str
    answers: list[Answer]


class View:
    """Every cell of a comparison's finished runs; means are over seeds within an order.

    Args:
        comparison: Runs that may stand in one table.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.strategies, self.orders = comparison.strategies, comparison.orders
        self._cells: dict[tuple[str, str, int], dict[tuple[int, str, str], float]] = {}
        self._layouts: dict[str, Layout] = {}
        self._seeds = {
            (name, order): comparison.seeds(name, order) for name, order in product(self.strategies, self.orders)
        }
        for (strategy, order), seeds in self._seeds.items():
            for seed in seeds:
                run = self._run(strategy, order, seed)
                self._layouts.setdefault(order, run.layout)
                self._cells[strategy, order, seed] = cells_of(run)

    @property
    def main_order(self) -> str | None:
        """Order to show first; None: the mean over orders.

        The mean is shown where there are several orders and each strategy has runs in all of them, otherwise the order
        in which most strategies have runs.
        """
        if len(self.orders) != 1 and all(self._seeds.values()):
            return None
        return max(self.orders, key=lambda order: sum(bool(self._seeds[name, order]) for name in self.strategies))

    def tasks(self, order: str) -> list[str]:
        """Return the domains in the order in which they are learnt."""
        return list(self._layouts[order].order)

    def tested(self, order: str) -> list[str]:
        """Return all that is scored: the domains, the probes, the corpus of general text."""
        return self._layouts[order].tested

    def metric(self, name: str) -> str:
        """Return the primary metric of a domain, a probe or the corpus."""
        return next(iter(self._layouts.values())).primary[name]

    def is_score(self, name: str) -> bool:
        """Return True if the primary metric is between 0 and 1, and not in nats."""
        return not self.metric(name).startswith("nats")

    def cell(self, strategy: str, order: str, place: tuple[int, str], metric: str = "") -> Estimate:
        """Return one score, the mean over the seeds of an order; NaN where a seed lacks it.

        Args:
            strategy: Name of the strategy.
            order: Name of the order.
            place: Number of tasks learnt, and the name of what was scored.
            metric: Name of the metric; "" for the primary one.
        """
        after, on = place
        key = (after, on, metric or self.metric(on))
        cells = [self._cells[strategy, order, seed] for seed in self._seeds[strategy, order]]
        return student_interval([own.get(key, math.nan) for own in cells])

    def over_tasks(self, strategy: str, order: str, on: str, metric: str = "") -> list[Estimate]:
        """Return a score after 0, 1, … T tasks."""
        return [self.cell(strategy, order, (after, on), metric) for after in range(len(self.tasks(order)) + 1)]

    def matrix(self, strategy: str, order: str, seed: int | None = None) -> list[list[float]]:
        """Return the (T+1, columns) scores of all that is tested, of one seed or the mean over seeds (None)."""
        columns, rows = self.tested(order), range(len(self.tasks(order)) + 1)
        if seed is None:
            return [[self.cell(strategy, order, (after, on)).mean for on in columns] for after in rows]
        cells = self._cells[strategy, order, seed]
        return [[cells.get((after, on, self.metric(on)), math.nan) for on in columns] for after in rows]

    def losses(self, strategy: str) -> list[Loss]:
        """Return each domain's scores when it was learnt and at the end, means over seeds, then over orders."""
        orders = [order for order in self.orders if self._seeds[strategy, order]]

        def moments(domain: str, metric: str) -> tuple[float, float]:
            pairs = []
            for order in orders:
                tasks = self.tasks(order)
                places = (tasks.index(domain) + 1, len(tasks))
                pairs.append([self.cell(strategy, order, (after, domain), metric).mean for after in places])
            return mean([learnt for learnt, _ in pairs]), mean([end for _, end in pairs])

        domains = self.tasks(orders[0]) if orders else []
        kinds = [("", f"{self.metric(domain)}_lenient", NATS) for domain in domains]
        return [Loss(domain, *(moments(domain, kind) for kind in kinds[place])) for place, domain in enumerate(domains)]

    def asked(self, domain: str) -> list[Asked]:
        """Return the first test rows of a domain with the answers zero-shot, right after it was learnt and at the end.

        Rows and runs are the first ones, not chosen: each strategy's first order and seed.
        """
        prompts: dict[str, str] = {}
        answers: dict[str, list[Answer]] = {}
        for strategy in self.strategies:
            run, order = self.first_run(strategy)
            tasks = self.tasks(order)
            moments = [read_answers(run.path, after, domain) for after in (0, tasks.index(domain) + 1, len(tasks))]
            for rows in reversed(moments):
                prompts |= {prompt: row["answer"] for prompt, row in rows.items() if prompt not in prompts}
            for prompt in prompts:
                texts = [moment[prompt]["prediction"] if prompt in moment else None for moment in moments]
                answers.setdefault(prompt, []).append(Answer(strategy, *map(shortened, texts)))
        return [
            Asked(shortened(prompt) or "", shortened(prompts[prompt]) or "", answers[prompt])
            for prompt in islice(prompts, SHOWN_ROWS)
        ]

    def first_run(self, strategy: str) -> tuple[RunFolder, str]:
        """Return a strategy's first run and the name of its order."""
        order = next(order for order in self.orders if self._seeds[strategy, order])
        return self._run(strategy, order, self._seeds[strategy, order][0]), order

    def _run(self, strategy: str, order: str, seed: int) -> RunFolder:
        return cast(RunFolder, self.comparison.of(strategy, order, seed))


def cells_of(run: RunFolder) -> dict[tuple[int, str, str], float]:
    """Return a run's scores and likelihoods by (tasks learnt, name of what was scored, metric)."""
    rows = [*run.records.scores, *run.records.nll]
    return {(int(row["after"]), row["on"], row["metric"]): float(row["value"]) for row in rows}


def shortened(text: str | None, longest: int = LONGEST_TEXT) -> str | None:
    """Leave out the middle of a long text: the question is at a prompt's end.

    >>> shortened("abcdefghij", 5)
    'ab … ij'
    """
    if text is None or len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … {text[-half:]}"


def read_answers(folder: Path, after: int, task: str) -> dict[str, dict[str, str]]:
    """Return the first rows of a file of predictions, by prompt; none where the file is missing."""
    file = folder / "predictions" / f"{after}-{task}.jsonl"
    return {row["prompt"]: row for row in _rows(file)} if file.is_file() else {}


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in islice(lines, SHOWN_ROWS):
            try:
                row = json.loads(line)
            except ValueError:  # a torn last line
                return
            if isinstance(row, dict) and {"prompt", "prediction", "answer"} <= row.keys():
                yield {name: str(row[name]) for name in ("prompt", "prediction", "answer")}
