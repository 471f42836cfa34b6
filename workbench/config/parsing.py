"""Convert a mapping, as a YAML holds it, to a `StudyConfig`; all problems are collected and raised together."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import Field, fields
from functools import partial
from itertools import product
from typing import Any, TypeVar

from workbench.config.components import KEYS, Component, as_component, check_shape
from workbench.config.orders import names_of, read_orders
from workbench.config.schema import (
    DEFAULT_OPTIMIZER,
    BackboneConfig,
    Changes,
    DataConfig,
    StrategyConfig,
    StudyConfig,
    combined,
)
from workbench.config.type_check import check_type, joined
from workbench.errors import ConfigError, did_you_mean

Problems = list[str]
Reader = Callable[[Any, str, Problems], Any]
"""Converts a value, given its key; adds what is wrong with it to the problems, and returns something all the same."""
Section = TypeVar("Section", BackboneConfig, DataConfig)

LONGEST_NAME = 255  # bytes, on nearly all file systems
REQUIRED = ("name", "benchmark", "strategies")
CHANGE_KEYS = ("optimizer", "scheduler", "trainer")
SWEEP_EXAMPLE = "Write {optimizer.init_args.lr: [1.0e-4, 1.0e-3]}."


def parse(raw: Mapping[str, Any]) -> StudyConfig:
    """Convert a mapping to a study, for configs that are written in Python; a file is read by `load`.

    Args:
        raw: The config's keys and values, as a YAML holds them.

    Raises:
        ConfigError: Keys are unknown or missing, or values have a wrong type or are out of range.
    """
    problems = _unknown_keys(raw, [spec.name for spec in fields(StudyConfig)], "")
    problems += [f"{key}: missing; every study needs it." for key in REQUIRED if key not in raw]
    specs, hints = {spec.name: spec for spec in fields(StudyConfig)}, typing.get_type_hints(StudyConfig)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _READERS:
            values[key] = _READERS[key](value, key, problems)
        elif key in specs:
            problems += _check_field(value, specs[key], hints[key], key)
            values[key] = value
    if problems:
        raise ConfigError(problems)
    study = StudyConfig(**values)
    if problems := _check_trials(study.strategies, study.data.score_on) or _check_schedulers(study):
        raise ConfigError(problems)
    return study


def _section(cls: type[Section], value: Any, where: str, problems: Problems) -> Section:
    """Read a dataclass of plain values; those that are wrong keep their defaults."""
    raw, hints = _mapping(value, where, problems), typing.get_type_hints(cls)
    problems += _unknown_keys(raw, hints, where)
    valid: dict[str, Any] = {}
    for spec in fields(cls):
        if spec.name in raw:
            found = _check_field(raw[spec.name], spec, hints[spec.name], joined(where, spec.name))
            problems += found
            valid |= {} if found else {spec.name: raw[spec.name]}
    return cls(**valid)


def _check_field(value: Any, spec: Field[Any], annotation: Any, where: str) -> Problems:
    """Check the type of a plain value and its range, which the field's metadata states."""
    if problems := check_type(value, annotation, where):
        return problems
    least, below = spec.metadata.get("least"), spec.metadata.get("below")
    if value is None or ((least is None or value >= least) and (below is None or value < below)):
        return []
    return [f"{where}: {value} is out of range; it has to be at least {least}."]


def _name(value: Any, where: str, problems: Problems) -> Any:
    """Read the name of a folder, which must not lead out of its parent folder."""
    found = check_type(value, str, where)
    if not found and not re.fullmatch(r"\w([\w.+=@, -]*[\w+=@-])?", value):
        advice = "Begin with a letter or a digit, and leave out slashes."
        found = [f"{where}: {value!r} is not a plain folder name. {advice}"]
    if not found and (size := len(value.encode())) > LONGEST_NAME:
        found = [f"{where}: a folder's name of {size} bytes is too long; it has to be at most {LONGEST_NAME}."]
    problems += found
    return value


def _seeds(value: Any, where: str, problems: Problems) -> Any:
    """Read the seeds; PyTorch and NumPy both accept those below 2**32."""
    found = check_type(value, list[int], where)
    if not found:
        found = _check_list(value, where)
        found += [
            f"{where}: {seed} is out of range; a seed has to be at least 0 and below 2**32."
            for seed in value
            if not 0 <= seed < 2**32
        ]
    problems += found
    return value


def _orders(value: Any, where: str, problems: Problems) -> Any:
    """Read the orders, whose names are names of folders."""
    before = len(problems)
    entries = read_orders(value, where, problems)
    names = [name for entry in entries or () for name in names_of(entry)]
    if entries is not None and len(problems) == before:
        problems += _check_list(names, where)
    for name in names:
        _name(name, where, problems)
    return entries


def _component(value: Any, where: str, problems: Problems) -> Component:
    """Read a component, which has to name its class."""
    found = check_shape(value, where)
    problems += found
    return Component("") if found else as_component(value)


def _prepare(value: Any, where: str, problems: Problems) -> list[Component]:
    """Read the preparations: a component, or a list of them."""
    if isinstance(value, list):
        return [_component(item, joined(where, index), problems) for index, item in enumerate(value)]
    return [] if value is None else [_component(value, where, problems)]


def _optimizer(value: Any, where: str, problems: Problems) -> Component:
    """Read the study's optimizer; `init_args` without a `class_path` are added to the default's."""
    found = check_shape(value, where, partial=True)
    problems += found
    default = Changes(optimizer={"class_path": DEFAULT_OPTIMIZER, "init_args": {"lr": 1e-4}})
    return Component("") if found else as_component(combined(default, Changes(optimizer=value))["optimizer"])


def _scheduler(value: Any, where: str, problems: Problems) -> Component | None:
    """Read the study's scheduler; null for a constant learning rate."""
    return None if value is None else _component(value, where, problems)


def _strategies(value: Any, where: str, problems: Problems) -> dict[str, StrategyConfig]:
    """Read the strategies; null drops one, as the command line does."""
    listed = {str(name): item for name, item in _mapping(value, where, problems).items() if item is not None}
    raw: dict[str, Any] = {}
    for name, item in listed.items():
        raw |= _trials(name, item, joined(where, name), problems)
    if not raw and (value is None or isinstance(value, Mapping)):
        problems.append(f"{where}: empty; a study needs one strategy or more.")
    complete = [name for name, item in raw.items() if not isinstance(item, Mapping) or "class_path" in item]
    strategies = {}
    for name, item in raw.items():
        at = joined(where, name)
        _name(name, at, problems)
        if name in complete:
            strategies[name] = _strategy(item, at, problems)
        else:
            hint = did_you_mean(name, complete)
            problems.append(f"{at}.class_path: missing; this would be a new strategy.{hint}")
    return strategies


def _strategy(value: Any, where: str, problems: Problems) -> StrategyConfig:
    """Read one strategy: a component with its changes, or a list of them whose changes are combined in order."""
    members = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
    result = StrategyConfig([])
    if not members:
        problems.append(f"{where}: an empty list; name one component or more.")
    for index, member in members:
        at = where if index is None else joined(where, index)
        if not isinstance(member, Mapping):
            problems += check_shape(member, at)
            continue
        problems += _unknown_keys(member, (*KEYS, *CHANGE_KEYS, "per_task", "sweep", "trial_of"), at)
        result.components.append(_component({key: member[key] for key in KEYS if key in member}, at, problems))
        problems += check_type(member.get("trial_of"), str | None, joined(at, "trial_of"))
        result.trial_of = member.get("trial_of") or result.trial_of
        result.changes = combined(result.changes, _changes(member, at, problems))
        for task, changes in _per_task(member.get("per_task"), joined(at, "per_task"), problems).items():
            result.per_task[task] = combined(result.per_task.get(task, {}), changes)
    return result


def _per_task(value: Any, where: str, problems: Problems) -> dict[str, Changes]:
    """Read the changes of single tasks; `max_epochs` is short for `trainer: {max_epochs: …}`."""
    result = {}
    for task, item in _mapping(value, where, problems).items():
        at = joined(where, task)
        raw = _mapping(item, at, problems)
        problems += _unknown_keys(raw, ("max_epochs", *CHANGE_KEYS), at)
        changes = _changes(raw, at, problems)
        if "max_epochs" in raw:
            problems += check_type(raw["max_epochs"], int | None, joined(at, "max_epochs"))
            changes = combined(changes, Changes(trainer={"max_epochs": raw["max_epochs"]}))
        result[str(task)] = changes
    return result


def _changes(raw: Mapping[str, Any], where: str, problems: Problems) -> Changes:
    """Read those keys of a strategy or a task that override the study's."""
    changes = Changes()
    if "optimizer" in raw:
        problems += check_shape(raw["optimizer"], joined(where, "optimizer"), partial=True)
        changes["optimizer"] = raw["optimizer"]
    if "scheduler" in raw:
        if raw["scheduler"] is not None:
            problems += check_shape(raw["scheduler"], joined(where, "scheduler"), partial=True)
        changes["scheduler"] = raw["scheduler"]
    if "trainer" in raw:
        changes["trainer"] = _mapping(raw["trainer"], joined(where, "trainer"), problems)
    return changes


def _mapping(value: Any, where: str, problems: Problems) -> dict[str, Any]:
    """Read a mapping; a key without a value holds an empty one."""
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    problems.append(f"{where}: expected a mapping of keys, got {value!r} ({type(value).__name__}).")
    return {}


_READERS: dict[str, Reader] = {
    "name": _name,
    "seeds": _seeds,
    "orders": _orders,
    "executor": _component,
    "prepare": _prepare,
    "backbone": partial(_section, BackboneConfig),
    "benchmark": _component,
    "strategies": _strategies,
    "optimizer": _optimizer,
    "scheduler": _scheduler,
    "per_task": _per_task,
    "data": partial(_section, DataConfig),
    "trainer": _mapping,
}
"""Readers of the keys of `StudyConfig` that are not plain values."""


def _unknown_keys(raw: Mapping[str, Any], known: Collection[str], where: str) -> Problems:
    """Report keys that do not exist."""
    owner, others = where or "a study", f" Its keys are {', '.join(known)}."
    return [
        f"{joined(where, key)}: {owner} has no key '{key}'.{did_you_mean(str(key), known) or others}"
        for key in raw
        if key not in known
    ]


def _check_list(values: list[Any], where: str) -> Problems:
    """Report an empty list, and values listed twice: their runs would share a folder."""
    if not values:
        return [f"{where}: empty; name one or more."]
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    return [f"{where}: {value!r} is listed more than once." for value in twice]


def _check_schedulers(study: StudyConfig) -> Problems:
    """Report changes of a scheduler's `init_args` for tasks that have no scheduler."""
    problems: dict[str, None] = {}
    for name in study.strategies:
        for task in (None, *study.tasks(name)):
            try:
                study.settings(name, task)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
    return list(problems)


def _trials(name: str, entry: Any, where: str, problems: Problems) -> dict[str, Any]:
    """Expand a strategy's entry to one entry for each combination of the values that its `sweep` lists.

    Args:
        name: The strategy's name.
        entry: The strategy as in a YAML; each component of a composition may have a `sweep`.
        where: Its key.
        problems: Receives what is wrong with a `sweep`.

    Returns:
        The entries by name, such as "seqft lr=0.001"; the entry itself if it has no `sweep`.
    """
    members = entry if isinstance(entry, list) else [entry]
    axes: list[tuple[int, str, list[Any]]] = []
    for index, member in enumerate(members):
        at = joined(where, index) if isinstance(entry, list) else where
        axes += [(index, str(key), values) for key, values in _sweep(member, at, problems).items()]
    if not axes or not all(isinstance(member, Mapping) for member in members):
        return {name: entry}
    short = [key.rpartition(".")[2] for _, key, _ in axes]
    labels = [last if short.count(last) == 1 else key for last, (_, key, _) in zip(short, axes, strict=True)]
    trials = {}
    for values in product(*(listed for _, _, listed in axes)):
        copies = [{key: item for key, item in deepcopy(member).items() if key != "sweep"} for member in members]
        for (index, key, _), value in zip(axes, values, strict=True):
            _set(copies[index], key.split("."), value)
        copies[0]["trial_of"] = name
        settings = [f"{label}={_short(value)}" for label, value in zip(labels, values, strict=True)]
        trials[" ".join([name, *settings])] = copies if isinstance(entry, list) else copies[0]
    return trials


def _sweep(member: Any, where: str, problems: Problems) -> Mapping[str, list[Any]]:
    """Read a `sweep`: dotted keys of the strategy, each with a list of values."""
    sweep, at = member.get("sweep") if isinstance(member, Mapping) else None, joined(where, "sweep")
    if sweep is None:
        return {}
    if not isinstance(sweep, Mapping) or not sweep:
        problems.append(f"{at}: expected a mapping of dotted keys to lists, got {sweep!r}. {SWEEP_EXAMPLE}")
        return {}
    wrong = [key for key, values in sweep.items() if not isinstance(values, list) or not values]
    wrong += [key for key, values in sweep.items() if key not in wrong and len(set(map(_short, values))) < len(values)]
    problems += [
        f"{joined(at, key)}: expected a list of different values, got {sweep[key]!r}. {SWEEP_EXAMPLE}" for key in wrong
    ]
    return {} if wrong else sweep


def _set(entry: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Write a value at a dotted key; anything on the way that is not a mapping is wrong, and is replaced by one."""
    for key in keys[:-1]:
        if not isinstance(entry.get(key), dict):
            entry[key] = {}
        entry = entry[key]
    entry[keys[-1]] = value


def _short(value: Any) -> str:
    """Write a value as part of a folder's name."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_trials(strategies: Mapping[str, StrategyConfig], score_on: str) -> Problems:
    """Report an unfair choice: by scores on test rows, or among more trials for one method than for another."""
    counts: dict[str, int] = {}
    for name, strategy in strategies.items():
        counts[strategy.trial_of or name] = counts.get(strategy.trial_of or name, 0) + 1
    if not any(strategy.trial_of for strategy in strategies.values()):
        return []
    problems = []
    if score_on != "validation":
        reason = "a sweep chooses by the scores, and the test rows must have no part in the choice"
        problems.append(f"data.score_on: {score_on}; {reason}. Give data.score_on=validation.")
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{name} {count}" for name, count in counts.items())
        remedy = "Give each method as many, and methods without a sweep a study of their own."
        problems.append(f"strategies: the methods have different numbers of trials ({numbers}). {remedy}")
    return problems
