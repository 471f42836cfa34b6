"""Compare finished runs: means, intervals, paired differences and warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, did_you_mean
from workbench.report.runs import ADVICE, FoundRun, aspects, difference_in_words, gather, labels
from workbench.report.settings import Settings, own_settings, what_differs
from workbench.results import RunFolder
from workbench.statistics import (
    FEWEST,
    NORMAL,
    SOLVED,
    Estimate,
    mean,
    paired_difference,
    student_interval,
    within_test_noise,
)

MEASURES = {
    "OP": "overall performance: mean score over all domains at the end",
    "BWT": "backward transfer: change of a domain's score since it was learnt; below 0 is forgetting",
    "FWT": "forward transfer: change of a domain's score before its own training, from training on other domains",
    "forgetting": "fall of a domain's score from its best; less is better",
    "learning_accuracy": "score of a domain right after it was learnt",
    "general_delta": "change of the score on the probes, which are never trained",
}
"""Measures of a score matrix by the names of their columns, with their meaning."""
BUDGET = {
    "trainable_parameters": "trains",
    "added_parameters": "adds",
    "steps": "steps",
    "tokens": "tokens",
    "replay_rows": "replayed",
    "train_seconds": "training",
    "eval_seconds": "scoring",
    "peak_memory_bytes": "memory",
    "disk_bytes": "disk",
}
"""Costs of a run by the names of their columns, with the short headings of tables."""
COMPARED = ("OP", "BWT", "forgetting", "learning_accuracy", "general_delta")
"""Measures that are tested for a difference from the baseline."""


def flags(comparison: Comparison) -> list[str]:
    """Name bounds that do not hold, tasks solved zero-shot, differences within the noise, and too few seeds."""
    return [*_no_bounds(comparison), *_solved(comparison), *_within_noise(comparison), *_few_seeds(comparison)]


def _no_bounds(comparison: Comparison) -> Iterator[str]:
    for name, why in comparison.no_bounds.items():
        yield f"{name} is no bound here: {why}."


def _solved(comparison: Comparison) -> Iterator[str]:
    before: dict[str, list[float]] = {}
    for run in comparison.runs:
        layout = run.layout
        for task in layout.order:
            before.setdefault(task, []).append(run.value(0, task, layout.primary[task]))
    for task, values in before.items():
        if mean(values) >= SOLVED:
            yield f"The model solves {task} zero-shot ({mean(values):.2f}): there is nothing to forget there."


def _within_noise(comparison: Comparison) -> Iterator[str]:
    base = comparison.baseline
    for order in comparison.orders:
        where = f", order {order}" if len(comparison.orders) > 1 else ""
        for strategy in comparison.strategies:
            if strategy == base:
                continue
            every = {name: comparison.difference(strategy, base, order, name) for name in COMPARED}
            known = {name: difference for name, difference in every.items() if not math.isnan(difference.mean)}
            pair = f"{strategy} against {base}{where}"
            if known and not any(difference.mean for difference in known.values()):
                yield f"{pair}: the same numbers; within the noise, no difference."
                continue
            noisy = [
                f"{name} {_signed(difference)}"
                for name, difference in known.items()
                if difference.holds_zero and (difference.mean or difference.half_width > 0)
            ]
            if noisy:
                yield f"{pair}: within the noise in {', '.join(noisy)}."
            errors = [comparison.test_error(name, order) for name in (strategy, base)]
            difference = every["OP"]
            if not difference.holds_zero and within_test_noise(difference.mean, *errors):
                limit = NORMAL * math.hypot(*errors)
                yield f"{pair}: OP {difference.mean:+.3f} is within the noise of the finite test sets (± {limit:.3f})."


def _signed(difference: Estimate) -> str:
    interval = "" if math.isnan(difference.half_width) else f" ± {difference.half_width:.3f}"
    return f"{difference.mean:+.3f}{interval}"


def _few_seeds(comparison: Comparison) -> Iterator[str]:
    counts = {
        strategy: min(len(seeds) for order in comparison.orders if (seeds := comparison.seeds(strategy, order)))
        for strategy in comparison.strategies
    }
    few = [f"{strategy} ({count})" for strategy, count in counts.items() if count < FEWEST]
    if few:
        yield f"Fewer than {FEWEST} seeds, so no interval and no test of a difference over seeds: {', '.join(few)}."


WITHIN = 0.99
"""Share of the sequence's tokens from which a bound counts as trained on as many."""
OF_ONE_RUN = (
    "strategy",
    "order_name",
    "seed",
    "references",
    "bibtex",
    "task_id_at_test",
    "strategies",
    "order",
    "bound",
    "trial_of",
)
"""Fields of `Protocol` in which the runs of a table may differ."""


class Comparison:
    """Runs whose numbers may stand in one table, with their means, intervals and differences.

    Args:
        found: Runs that agree in all that makes numbers comparable, finished or not.
        names: Name of each run's strategy in all tables of the report; None: as the runs state it.
        baseline: Strategy that the others are compared with; the study's first one where no run is of it.
        apart: Why these runs are not in the first table; "" for those that are.
        problems: Folders that could not be read, a sentence each.
        differs: Keys of the config in which rows differ, with the values and their rows.

    Attributes:
        title: Names of the studies.
        runs: Finished runs.
        unfinished: Other runs, each with its progress.
        problems: Torn files, runs without predictions and the like, a sentence each.
        strategies: Names, in the order of the study's config; "name (study)" where runs of a name are not one row.
        orders: Names of the orders of tasks.
        baseline: Name of a strategy; "" without a finished run.
    """

    def __init__(
        self,
        found: Sequence[FoundRun],
        names: Sequence[str] | None = None,
        *,
        baseline: str | None = None,
        apart: str = "",
        problems: Sequence[str] = (),
        differs: Sequence[str] = (),
    ) -> None:
        self.apart, self.differs = apart, list(differs)
        self.title = ", ".join(dict.fromkeys(entry.study.name for entry in found))
        self.problems = [*problems, *(problem for entry in found for problem in entry.problems)]
        self.runs: list[RunFolder] = []
        self.unfinished: list[tuple[RunFolder, str]] = []
        self._protocols = [entry.protocol for entry in found]
        self._cells: dict[tuple[str, str, int], tuple[RunFolder, dict[str, Any]]] = {}
        self._settings: dict[str, list[tuple[str, Settings]]] = {}
        self._bare: dict[str, str] = {}
        for entry, label in _in_order(found, names or [entry.protocol.strategy for entry in found]):
            self._take(entry, label)
        self.strategies = list(dict.fromkeys(strategy for strategy, _, _ in self._cells))
        self.orders = list(dict.fromkeys(order for _, order, _ in self._cells))
        self._seeds: dict[tuple[str, str], list[int]] = {}
        for strategy, order, seed in sorted(self._cells):
            self._seeds.setdefault((strategy, order), []).append(seed)
        chosen = [name for name in self.strategies if baseline in (name, self._bare[name])]
        self.baseline = next(iter([*chosen, *self.strategies]), "")

    def _take(self, entry: FoundRun, label: str) -> None:
        if not entry.summary:
            self.unfinished.append((entry.run, entry.progress()))
            return
        cell = (label, str(entry.summary["order"]), int(entry.summary["seed"]))
        if cell in self._cells:
            first, same = self._cells[cell][0].path, f"{label}, order {cell[1]}, seed {cell[2]}"
            self.problems.append(f"{first} and {entry.run.path} are both {same}: the second is left out.")
            return
        self.runs.append(entry.run)
        self._cells[cell] = (entry.run, {**entry.summary, "strategy": label})
        self._settings.setdefault(label, []).append((str(entry.study), entry.settings))
        self._bare[label] = entry.protocol.strategy

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The fields of `Protocol` in which all runs agree, unfinished ones included."""
        every = [vars(protocol) for protocol in self._protocols]
        return {
            name: value
            for name, value in every[0].items()
            if name not in OF_ONE_RUN and all(other[name] == value for other in every)
        }

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """`RunFolder.summary` of each finished run, with the strategy's name in this report."""
        return [summary for _, summary in self._cells.values()]

    def named(self, strategy: str) -> str:
        """Return the name of a strategy in its study's config."""
        return self._bare[strategy]

    def rows_of(self, strategy: str, order: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of one strategy, in one order or in all."""
        places = [order] if order is not None else self.orders
        return [self._cells[strategy, place, seed][1] for place in places for seed in self.seeds(strategy, place)]

    def seeds(self, strategy: str, order: str) -> list[int]:
        """Return the seeds of the finished runs of a strategy in an order."""
        return list(self._seeds.get((strategy, order), ()))

    def of(self, strategy: str, order: str, seed: int) -> RunFolder | None:
        """Return one finished run; None: there is none."""
        return self._cells.get((strategy, order, seed), (None, None))[0]

    def values(self, strategy: str, order: str, measure: str) -> dict[int, float]:
        """Return a column of the summary by seed."""
        seeds = self.seeds(strategy, order)
        return {seed: float(self._cells[strategy, order, seed][1][measure]) for seed in seeds}

    def estimate(self, strategy: str, order: str | None, measure: str) -> Estimate:
        """Return a measure's mean over seeds, with an interval from three seeds on.

        Args:
            strategy: One of `strategies`.
            order: One of `orders`; None: the mean of all orders' means, which has no interval, as a few chosen
                orders are no sample of all. NaN where the strategy has no run in one of them.
            measure: One of `MEASURES`, or another number of the summary.
        """
        if order is not None:
            return student_interval(list(self.values(strategy, order, measure).values()))
        means = [self.estimate(strategy, each, measure).mean for each in self.orders]
        return Estimate(mean(means), math.nan, len(means))

    def difference(self, strategy: str, baseline: str, order: str | None, measure: str) -> Estimate:
        """Return the mean of strategy − baseline over the seeds that both have; over orders as in `estimate`."""
        if order is None:
            means = [self.difference(strategy, baseline, each, measure).mean for each in self.orders]
            return Estimate(mean(means), math.nan, len(means))
        return paired_difference(self.values(strategy, order, measure), self.values(baseline, order, measure))

    def test_error(self, strategy: str, order: str) -> float:
        """Return the standard error of OP over the test rows, as a mean over seeds: all answer the same rows."""
        return mean(list(self.values(strategy, order, "OP_error").values()))

    def budget(self, strategy: str) -> dict[str, Any]:
        """Return the costs of a strategy: means over its runs of each of `BUDGET`, and its "task_id_at_test"."""
        rows = self.rows_of(strategy)
        means = {name: mean([row[name] for row in rows]) for name in BUDGET}
        return {**means, "task_id_at_test": any(row["task_id_at_test"] for row in rows)}

    def untouched(self) -> float:
        """Return the mean zero-shot score on the tasks, over all runs: where every strategy begins."""
        return mean([value for run in self.runs for value in run.matrix()[0].tolist()])

    @cached_property
    def own_settings(self) -> dict[str, str]:
        """Each strategy's method with its arguments, and the keys that a sweep set; of several studies, their names."""
        texts = {}
        for name, text in own_settings(self._settings).items():
            studies = dict.fromkeys(Path(study).name for study, _ in self._settings[name])
            seeds = f"; {', '.join(studies)} with the same settings and other seeds" if len(studies) > 1 else ""
            texts[name] = text + seeds
        return texts

    @cached_property
    def bounds(self) -> dict[str, str]:
        """Strategies that are bounds, each with the measure that it bounds; without those of `no_bounds`."""
        return {name: measure for name, measure in self._stated_bounds.items() if name not in self.no_bounds}

    @cached_property
    def no_bounds(self) -> dict[str, str]:
        """Bounds that do not hold, as their training budget is not that of the sequence, each with the reason."""
        sequence = {name: self._tokens_in_sequence(name) for name in self.strategies}
        longest = max(sequence, key=lambda name: sequence[name], default="")
        reasons = {}
        for name in self._stated_bounds:
            tokens = self.budget(name)["tokens"]
            other = dict.fromkeys(key for _, settings in self._settings[name] for key in settings.own_budget)
            if other:
                reasons[name] = f"its training budget is not the study's: it has {', '.join(other)} of its own"
            elif tokens < WITHIN * sequence[longest]:
                counts = f"trained on {tokens:,.0f} tokens, {longest} on {sequence[longest]:,.0f}"
                reasons[name] = f"its training budget is smaller than the sequence's: {counts}"
        return reasons

    @cached_property
    def _stated_bounds(self) -> dict[str, str]:
        return {row["strategy"]: row["bound"] for row in self.rows if row.get("bound")}

    def _tokens_in_sequence(self, strategy: str) -> float:
        """Return a strategy's training tokens on the tasks, a mean over runs; 0 for a run that mixes in other rows."""
        counts = []
        for run in (run for (name, _, _), (run, _) in self._cells.items() if name == strategy):
            tasks = run.layout.order
            items = [item for item in run.records.costs if item["item"] in tasks and item.get("replay_rows") == "0"]
            counts.append(sum(float(item["tokens"]) for item in items) if len(items) == len(tasks) else 0.0)
        return mean(counts)

    @cached_property
    def warnings(self) -> list[str]:
        """Reasons to read the numbers with care, a sentence each."""
        return flags(self)

    @cached_property
    def references(self) -> dict[str, list[str]]:
        """Each strategy's papers, a line each."""
        return {strategy: list(run.protocol.references) for (strategy, _, _), (run, _) in self._cells.items()}

    @cached_property
    def bibtex(self) -> dict[str, list[str]]:
        """BibTeX entries, one for each line of `references`; "" where the strategy gives none."""
        runs = {strategy: run for (strategy, _, _), (run, _) in self._cells.items()}
        return {name: list(runs[name].protocol.bibtex) or [""] * len(lines) for name, lines in self.references.items()}


def compare(folders: Sequence[str | Path], baseline: str | None = None) -> list[Comparison]:
    """Read all runs under some folders and group those that may stand in one table.

    What has to be equal: benchmark, data, tasks, scorers, rows, model, precision, text policy, decoding, and the
    training budget: epochs, steps or time of each task, and rows of an optimizer step. All other keys in which rows
    differ are in `Comparison.differs`. What a strategy adds to the budget (replayed rows, other items) is its own.

    Args:
        folders: Folders of studies or of runs, or folders above them.
        baseline: Name of a strategy.

    Returns:
        One comparison for each table, that of the first run first.

    Raises:
        ConfigError: A folder has no run, none of the runs can be read, or no strategy has the baseline's name.
    """
    found, problems = gather(folders)
    if not found:
        raise ConfigError([problem if "Delete" in problem else f"{problem} {ADVICE}" for problem in problems])
    shared = aspects(found)
    kinds = [tuple(sorted(own.items())) for own in shared]
    names = labels(found, kinds)
    differs = _differences(found, names, shared)
    comparisons = []
    for place, kind in enumerate(dict.fromkeys(kinds)):
        group = [index for index, other in enumerate(kinds) if other == kind]
        comparisons.append(
            Comparison(
                [found[index] for index in group],
                [names[index] for index in group],
                baseline=baseline,
                apart=_why_apart(found[group[0]], shared[group[0]], shared[0]) if place else "",
                problems=() if place else problems,
                differs=differs[group[0]],
            )
        )
    known = {name: None for one in comparisons for label in one.strategies for name in (label, one.named(label))}
    if baseline is not None and baseline not in known:
        hint = did_you_mean(baseline, known) or f" There are {', '.join(known) or 'none'}."
        raise ConfigError([f"baseline: no finished run is of a strategy {baseline!r}.{hint}"])
    return comparisons


def _why_apart(entry: FoundRun, here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Say why a run is not in the first table."""
    reason = difference_in_words(here, there)
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if all(name in entry.settings.budget or name not in here for name in different):
        return f"{reason}: another training budget, so the two are not ranked"
    return reason


def _differences(
    found: Sequence[FoundRun], names: Sequence[str], shared: Sequence[Mapping[str, str]]
) -> list[list[str]]:
    """For each run, return the differences among the rows of its table and of those that differ in budget alone."""
    kinds = [
        tuple(sorted((name, value) for name, value in own.items() if name not in entry.settings.budget))
        for entry, own in zip(found, shared, strict=True)
    ]
    rows: dict[object, dict[str, list[tuple[str, Settings]]]] = {}
    for entry, name, kind in zip(found, names, kinds, strict=True):
        if entry.summary:
            rows.setdefault(kind, {}).setdefault(name, []).append((str(entry.study), entry.settings))
    order = {label: place for place, (_, label) in enumerate(_in_order(found, names))}
    lines = {kind: what_differs(dict(sorted(own.items(), key=lambda row: order[row[0]]))) for kind, own in rows.items()}
    return [lines.get(kind, []) for kind in kinds]


def _in_order(found: Sequence[FoundRun], labels: Sequence[str]) -> list[tuple[FoundRun, str]]:
    """Sort runs, each with its strategy's name: study by study, in the order of its config."""
    listed: dict[Path, Sequence[str]] = {}
    for entry in found:
        listed[entry.study] = max(listed.get(entry.study, ()), entry.protocol.strategies, key=len)
    studies = list(listed)

    def place(pair: tuple[FoundRun, str]) -> tuple[int, int]:
        entry, names = pair[0], listed[pair[0].study]
        name = entry.protocol.strategy
        return studies.index(entry.study), names.index(name) if name in names else len(names)

    return sorted(zip(found, labels, strict=True), key=place)
