"""Compare finished runs: means, intervals, paired differences and flags."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from workbench.errors import ConfigError, did_you_mean
from workbench.report.runs import ADVICE, Found, aspects, difference_in_words, gather, labels
from workbench.report.settings import Settings, own_settings, what_differs
from workbench.results import RunFolder
from workbench.statistics import (
    FEWEST,
    NORMAL,
    SOLVED,
    Estimate,
    paired_difference,
    student_interval,
    within_test_noise,
)

COMPARED = ("OP", "BWT", "forgetting", "learning_accuracy", "general_delta")


def flags(comparison: Comparison) -> list[str]:
    """Yardsticks that bound nothing, tasks solved before, differences within the noise, and too few seeds."""
    return [*_no_bounds(comparison), *_solved(comparison), *_within_noise(comparison), *_few_seeds(comparison)]


def _no_bounds(comparison: Comparison) -> Iterator[str]:
    for name, why in comparison.no_bounds.items():
        yield f"{name} is no bound here: {why}."


def _solved(comparison: Comparison) -> Iterator[str]:
    before: dict[str, list[float]] = {}
    for run in comparison.runs:
        protocol = run.environment()["protocol"]
        for task in protocol["order"]:
            before.setdefault(task, []).append(run.value(0, task, protocol["primary"][task]))
    for task, values in before.items():
        if fmean(values) >= SOLVED:
            yield f"The untouched model already solves {task} ({fmean(values):.2f}): there is nothing to forget there."


def _within_noise(comparison: Comparison) -> Iterator[str]:
    base = comparison.baseline
    for order in comparison.orders:
        where = f", order {order}" if len(comparison.orders) > 1 else ""
        for strategy in comparison.strategies:
            if strategy == base:
                continue
            told = {name: comparison.difference(strategy, base, order, name) for name in COMPARED}
            known = {name: difference for name, difference in told.items() if not math.isnan(difference.mean)}
            pair = f"{strategy} against {base}{where}"
            if known and not any(difference.mean for difference in known.values()):
                yield f"{pair}: the same numbers; within the noise, no difference."
                continue
            apart = {
                name: difference for name, difference in known.items() if difference.mean or difference.half_width > 0
            }
            noisy = [f"{name} {_signed(difference)}" for name, difference in apart.items() if difference.holds_zero]
            if noisy:
                yield f"{pair}: within the noise in {', '.join(noisy)}."
            errors = [comparison.test_error(name, order) for name in (strategy, base)]
            difference = told["OP"]
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


MEASURES = ("OP", "BWT", "FWT", "forgetting", "learning_accuracy", "general_delta")
BUDGET = (
    "trainable_parameters",
    "added_parameters",
    "steps",
    "tokens",
    "replay_rows",
    "train_seconds",
    "eval_seconds",
    "peak_memory_bytes",
    "disk_bytes",
)
WITHIN = 0.99
"""Share of the sequence's tokens from which a yardstick was trained as long as it."""
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


class Comparison:
    """Runs whose numbers may stand in one table, and what they say.

    Args:
        found: Runs that agree in all that makes numbers comparable, finished or not.
        names: The name of each run's strategy in all tables of the report; None: as the runs say it.
        baseline: The strategy that the others are compared with; the study's first, unless it is there.
        apart: Why these runs stand apart from those of the first table; empty: they are the first.
        problems: Of folders that could not be read.
        differs: The keys in which rows differ, with the values and whose they are.

    Attributes:
        title: Names of the studies.
        runs: The finished ones.
        unfinished: The others, with how far they are.
        problems: Torn files, runs without predictions and such, a sentence each.
        strategies: Names, in the order of the study's config; "name (study)" where runs of a name are not one row.
        orders: Names.
        baseline: A strategy; empty without a finished run.
    """

    def __init__(
        self,
        found: Sequence[Found],
        names: Sequence[str] | None = None,
        *,
        baseline: str | None = None,
        apart: str = "",
        problems: Sequence[str] = (),
        differs: Sequence[str] = (),
    ) -> None:
        self.apart, self.differs = apart, list(differs)
        self.title = ", ".join(dict.fromkeys(one.study.name for one in found))
        self.problems = [*problems, *(problem for one in found for problem in one.problems)]
        self.runs: list[RunFolder] = []
        self.unfinished: list[tuple[RunFolder, str]] = []
        self._protocols = [one.protocol for one in found]
        self._cells: dict[tuple[str, str, int], tuple[RunFolder, dict[str, Any]]] = {}
        self._settings: dict[str, list[tuple[str, Settings]]] = {}
        self._bare: dict[str, str] = {}
        for one, label in _in_order(found, names or [str(one.protocol["strategy"]) for one in found]):
            self._take(one, label)
        self.strategies = list(dict.fromkeys(strategy for strategy, _, _ in self._cells))
        self.orders = list(dict.fromkeys(order for _, order, _ in self._cells))
        self._seeds: dict[tuple[str, str], list[int]] = {}
        for strategy, order, seed in sorted(self._cells):
            self._seeds.setdefault((strategy, order), []).append(seed)
        chosen = [name for name in self.strategies if baseline in (name, self._bare[name])]
        self.baseline = next(iter([*chosen, *self.strategies]), "")

    def _take(self, one: Found, label: str) -> None:
        if not one.summary:
            self.unfinished.append((one.run, one.progress()))
            return
        cell = (label, str(one.summary["order"]), int(one.summary["seed"]))
        if cell in self._cells:
            first, what = self._cells[cell][0].path, f"{label}, order {cell[1]}, seed {cell[2]}"
            self.problems.append(f"{first} and {one.run.path} are both {what}: the second is left out.")
            return
        self.runs.append(one.run)
        self._cells[cell] = (one.run, {**one.summary, "strategy": label})
        self._settings.setdefault(label, []).append((str(one.study), one.settings))
        self._bare[label] = str(one.protocol["strategy"])

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What is the same for all the runs, unfinished ones included."""
        first = self._protocols[0]
        own = [name for name in first if name not in OF_ONE_RUN]
        return {name: first[name] for name in own if all(other.get(name) == first[name] for other in self._protocols)}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """`RunFolder.summary` of each finished run, with the strategy's name as it is here."""
        return [summary for _, summary in self._cells.values()]

    def named(self, strategy: str) -> str:
        """The name of a strategy in its study's config."""
        return self._bare[strategy]

    def rows_of(self, strategy: str, order: str | None = None) -> list[dict[str, Any]]:
        """Those of one strategy, in one of the orders or in all."""
        places = [order] if order is not None else self.orders
        return [self._cells[strategy, place, seed][1] for place in places for seed in self.seeds(strategy, place)]

    def seeds(self, strategy: str, order: str) -> list[int]:
        """The seeds of the finished runs."""
        return list(self._seeds.get((strategy, order), ()))

    def of(self, strategy: str, order: str, seed: int) -> RunFolder | None:
        """One finished run."""
        return self._cells.get((strategy, order, seed), (None, None))[0]

    def values(self, strategy: str, order: str, measure: str) -> dict[int, float]:
        """A column of the summary by seed."""
        seeds = self.seeds(strategy, order)
        return {seed: float(self._cells[strategy, order, seed][1][measure]) for seed in seeds}

    def estimate(self, strategy: str, order: str | None, measure: str) -> Estimate:
        """A measure's mean over seeds, with the interval of three seeds or more.

        Args:
            strategy: One of `strategies`.
            order: One of `orders`; None: the mean of all orders' means, which has no interval, as a few chosen
                orders are no sample of all. NaN where the strategy has not met each of them.
            measure: One of `MEASURES`, or another number of the summary.
        """
        if order is not None:
            return student_interval(list(self.values(strategy, order, measure).values()))
        means = [self.estimate(strategy, each, measure).mean for each in self.orders]
        return Estimate(fmean(means) if means else math.nan, math.nan, len(means))

    def difference(self, strategy: str, baseline: str, order: str | None, measure: str) -> Estimate:
        """The mean of strategy − baseline over the seeds that both have; over orders as in `estimate`."""
        if order is None:
            means = [self.difference(strategy, baseline, each, measure).mean for each in self.orders]
            return Estimate(fmean(means) if means else math.nan, math.nan, len(means))
        one, other = (self.values(name, order, measure) for name in (strategy, baseline))
        return paired_difference(one, other)

    def test_error(self, strategy: str, order: str) -> float:
        """The standard error of OP that the finite test sets leave, the mean over seeds: all answer the same rows."""
        errors = list(self.values(strategy, order, "OP_error").values())
        return fmean(errors) if errors else math.nan

    def budget(self, strategy: str) -> dict[str, Any]:
        """What a strategy takes: means over its runs, each of `BUDGET`, and whether it is told the task at test."""
        own = self.rows_of(strategy)
        told = any(row["task_id_at_test"] for row in own)
        return {**{name: fmean(row[name] for row in own) for name in BUDGET}, "task_id_at_test": told}

    def untouched(self) -> float:
        """The mean score of the untouched model on the tasks, over all runs: where every strategy began."""
        runs = [run.matrix()[0].tolist() for run in self.runs]
        return fmean(value for row in runs for value in row) if runs else math.nan

    @cached_property
    def own_settings(self) -> dict[str, str]:
        """Each strategy's method with its arguments, and what a sweep has set; of several studies, their names."""
        told = own_settings(self._settings)
        studies = {name: dict.fromkeys(Path(study).name for study, _ in own) for name, own in self._settings.items()}
        of = {name: f"; {', '.join(those)} with the same settings and other seeds" for name, those in studies.items()}
        return {name: text + (of[name] if len(studies[name]) > 1 else "") for name, text in told.items()}

    @cached_property
    def bounds(self) -> dict[str, str]:
        """The strategies that are yardsticks, each with the measure that it is one by, but for `no_bounds`."""
        return {name: measure for name, measure in self._yardsticks.items() if name not in self.no_bounds}

    @cached_property
    def no_bounds(self) -> dict[str, str]:
        """The yardsticks that bound nothing here, as they were trained on another budget than the sequence: why."""
        sequence = {name: self._tokens_in_sequence(name) for name in self.strategies}
        longest = max(sequence, key=lambda name: sequence[name], default="")
        found = {}
        for name in self._yardsticks:
            tokens = self.budget(name)["tokens"]
            other = dict.fromkeys(key for _, one in self._settings[name] for key in one.own_budget)
            if other:
                found[name] = f"its training budget is not the study's: it has {', '.join(other)} of its own"
            elif tokens < WITHIN * sequence[longest]:
                told = f"trained on {tokens:,.0f} tokens, {longest} on {sequence[longest]:,.0f}"
                found[name] = f"its training budget is smaller than the sequence's: {told}"
        return found

    @cached_property
    def _yardsticks(self) -> dict[str, str]:
        return {row["strategy"]: row["bound"] for row in self.rows if row.get("bound")}

    def _tokens_in_sequence(self, strategy: str) -> float:
        """Tokens that a strategy is trained on in the tasks' turns; 0 where other rows are mixed in or not counted."""
        counts = []
        for run in (run for (name, _, _), (run, _) in self._cells.items() if name == strategy):
            tasks = run.environment()["protocol"]["order"]
            own = [item for item in run.records.costs if item["item"] in tasks and item.get("replay_rows") == "0"]
            counts.append(sum(float(item["tokens"]) for item in own) if len(own) == len(tasks) else 0.0)
        return fmean(counts) if counts else 0.0

    @cached_property
    def warnings(self) -> list[str]:
        """What keeps a reader from taking a number for more than it is, a sentence each."""
        return flags(self)

    @cached_property
    def references(self) -> dict[str, list[str]]:
        """Each strategy's papers, a line each."""
        return self._cited("references")

    @cached_property
    def bibtex(self) -> dict[str, list[str]]:
        """Their BibTeX entries, one for each line of `references`; empty where the strategy gives none."""
        told = self._cited("bibtex")
        return {name: told[name] or [""] * len(lines) for name, lines in self.references.items()}

    def _cited(self, name: str) -> dict[str, list[str]]:
        runs = {strategy: run for (strategy, _, _), (run, _) in self._cells.items()}
        return {strategy: list(run.environment()["protocol"].get(name, [])) for strategy, run in runs.items()}


def compare(folders: Sequence[str | Path], baseline: str | None = None) -> list[Comparison]:
    """All runs under some folders, those that may stand in one table together.

    What has to be equal: benchmark, data, tasks, scorers, rows, model, precision, text policy, decoding, and the
    training budget: epochs, steps or time of each task, and rows of an optimizer step. All other keys in which rows
    differ are in `Comparison.differs`. What a strategy adds to the budget (replayed rows, other items) is its own.

    Args:
        folders: Of studies, of runs, or above them.
        baseline: A strategy's name.

    Raises:
        ConfigError: A folder has no run, none of the runs can be read, or no strategy is named like the baseline.
    """
    found, problems = gather(folders)
    if not found:
        raise ConfigError([problem if "Delete" in problem else f"{problem} {ADVICE}" for problem in problems])
    known = aspects(found)
    kinds = [tuple(sorted(one.items())) for one in known]
    names = labels(found, kinds)
    differs = _differences(found, names, known)
    made, first = [], known[0]
    for place, kind in enumerate(dict.fromkeys(kinds)):
        own = [index for index, other in enumerate(kinds) if other == kind]
        made.append(
            Comparison(
                [found[index] for index in own],
                [names[index] for index in own],
                baseline=baseline,
                apart=_why_apart(found[own[0]], known[own[0]], first) if place else "",
                problems=() if place else problems,
                differs=differs[own[0]],
            )
        )
    there = {name: None for one in made for label in one.strategies for name in (label, one.named(label))}
    if baseline is not None and baseline not in there:
        hint = did_you_mean(baseline, there) or f" There are {', '.join(there) or 'none'}."
        raise ConfigError([f"baseline: no finished run is of a strategy {baseline!r}.{hint}"])
    return made


def _why_apart(one: Found, here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Why runs do not stand in the first table."""
    told = difference_in_words(here, there)
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if all(name in one.settings.budget or name not in here for name in different):
        return f"{told}: another training budget, so the two are not ranked"
    return told


def _differences(found: Sequence[Found], names: Sequence[str], known: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """For each run, in what the rows differ that it may share a table with, or could if their budgets were equal."""
    kinds = [
        tuple(sorted((name, value) for name, value in own.items() if name not in one.settings.budget))
        for one, own in zip(found, known, strict=True)
    ]
    rows: dict[object, dict[str, list[tuple[str, Settings]]]] = {}
    for one, name, kind in zip(found, names, kinds, strict=True):
        if one.summary:
            rows.setdefault(kind, {}).setdefault(name, []).append((str(one.study), one.settings))
    order = {label: place for place, (_, label) in enumerate(_in_order(found, names))}
    lines = {kind: what_differs(dict(sorted(own.items(), key=lambda row: order[row[0]]))) for kind, own in rows.items()}
    return [lines.get(kind, []) for kind in kinds]


def _in_order(found: Sequence[Found], labels: Sequence[str]) -> list[tuple[Found, str]]:
    """The runs with their strategies' names: study by study, in the order of its config."""
    listed: dict[Path, Sequence[str]] = {}
    for one in found:
        listed[one.study] = max(listed.get(one.study, ()), one.protocol.get("strategies", ()), key=len)
    studies = list(listed)

    def place(pair: tuple[Found, str]) -> tuple[int, int]:
        one, names = pair[0], listed[pair[0].study]
        name = one.protocol["strategy"]
        return studies.index(one.study), names.index(name) if name in names else len(names)

    return sorted(zip(found, labels, strict=True), key=place)
