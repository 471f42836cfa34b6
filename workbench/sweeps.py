"""A sweep: one method at several settings, each a trial, of which the best by its scores on validation rows is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from statistics import fmean
from typing import Any

from workbench.components import joined
from workbench.schema import StrategyConfig

COLUMNS = ("method", "trials", "strategy", "runs", "measure", "mean", "chosen")


def trials(name: str, entry: Any, where: str, problems: list[str]) -> dict[str, Any]:
    """Make a strategy's entry into one for each combination of what its `sweep` lists.

    Args:
        name: Of the strategy.
        entry: As a YAML holds it; of several components each may have a `sweep`.
        where: Its key.
        problems: Gets what is wrong with a `sweep`.

    Returns:
        The entries by name, such as "seqft lr=0.001"; the entry itself where it has no `sweep`.
    """
    members = entry if isinstance(entry, list) else [entry]
    axes: list[tuple[int, str, list[Any]]] = []
    for index, member in enumerate(members):
        for key, values in _lists(member, joined(where, index) if isinstance(entry, list) else where, problems).items():
            axes.append((index, key, values))
    if not axes:
        return {name: entry}
    short = [key.rpartition(".")[2] for _, key, _ in axes]
    labels = [last if short.count(last) == 1 else key for last, (_, key, _) in zip(short, axes, strict=True)]
    made = {}
    for chosen in product(*(values for _, _, values in axes)):
        copies = [{key: item for key, item in deepcopy(member).items() if key != "sweep"} for member in members]
        for (index, key, _), value in zip(axes, chosen, strict=True):
            _put(copies[index], key.split("."), value)
        copies[0]["trial_of"] = name
        said = " ".join(f"{label}={_short(value)}" for label, value in zip(labels, chosen, strict=True))
        made[f"{name} {said}"] = copies if isinstance(entry, list) else copies[0]
    return made


def _lists(member: Any, where: str, problems: list[str]) -> Mapping[str, list[Any]]:
    """Read a `sweep`: dotted keys of the strategy, each with a list of values."""
    sweep = member.get("sweep") if isinstance(member, Mapping) else None
    at, example = joined(where, "sweep"), "Write {optimizer.init_args.lr: [1.0e-4, 1.0e-3]}."
    if sweep is None:
        return {}
    if not isinstance(sweep, Mapping) or not sweep:
        problems.append(f"{at}: expected a mapping of dotted keys to lists, got {sweep!r}. {example}")
        return {}
    wrong = [key for key, values in sweep.items() if not isinstance(values, list) or not values]
    wrong += [key for key, values in sweep.items() if key not in wrong and len(set(map(_short, values))) < len(values)]
    problems += [
        f"{joined(at, key)}: expected a list of different values, got {sweep[key]!r}. {example}" for key in wrong
    ]
    return {} if wrong else sweep


def _put(entry: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Let a value stand at a dotted key; what is in its way there is no mapping, and wrong anyway."""
    for key in keys[:-1]:
        if not isinstance(entry.get(key), dict):
            entry[key] = {}
        entry = entry[key]
    entry[keys[-1]] = value


def _short(value: Any) -> str:
    """A value in a folder's name."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def trial_problems(strategies: Mapping[str, StrategyConfig], score_on: str) -> list[str]:
    """Tell a choice that would not be fair: one on test rows, or with more trials for one method than for another."""
    counts: dict[str, int] = {}
    for name, strategy in strategies.items():
        counts[strategy.trial_of or name] = counts.get(strategy.trial_of or name, 0) + 1
    if not any(strategy.trial_of for strategy in strategies.values()):
        return []
    problems = []
    if score_on != "validation":
        told = "a sweep chooses by the scores, and what is chosen by test rows has seen them"
        problems.append(f"data.score_on: {score_on}; {told}. Give data.score_on=validation.")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        remedy = "Give each method as many, and methods without a sweep a study of their own."
        problems.append(f"strategies: the methods have different numbers of trials ({told}). {remedy}")
    return problems


def trial_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a sweep found: a row for each trial, with how many its method had, and which is the best.

    A method's best trial is the one of the highest mean over orders and seeds, of OP, or of what a yardstick is read
    by. A trial with fewer runs than another of its method, such as one whose loss was not finite, is never chosen.

    Args:
        rows: Of `RunFolder.summary`; those of no trial are passed over.

    Returns:
        Rows of `COLUMNS`.
    """
    methods: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if row.get("trial_of"):
            methods.setdefault(row["trial_of"], {}).setdefault(row["strategy"], []).append(row)
    found: list[dict[str, Any]] = []
    for method, own in methods.items():
        most = max(map(len, own.values()))
        measures = {name: str(runs[0].get("bound") or "OP") for name, runs in own.items()}
        means = {name: fmean(run[measures[name]] for run in runs) for name, runs in own.items()}
        whole = [name for name, runs in own.items() if len(runs) == most and not math.isnan(means[name])]
        best = max(whole, key=means.__getitem__, default=None)
        for name, runs in own.items():
            counted = {"method": method, "trials": len(own), "strategy": name, "runs": len(runs)}
            found.append(counted | {"measure": measures[name], "mean": means[name], "chosen": name == best})
    return found
