"""A mapping, as a YAML holds it, to a `StudyConfig`: all that does not fit is collected and told at once."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import partial
from itertools import product
from typing import Any, TypeVar

from workbench.config.components import KEYS, Component, as_component, check_plain, check_shape, joined
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
from workbench.errors import ConfigError, did_you_mean

Problems = list[str]
Reader = Callable[[Any, str, Problems], Any]
Section = TypeVar("Section", BackboneConfig, DataConfig)

LONGEST_NAME = 255  # bytes, on nearly all file systems
CHANGE_KEYS = ("optimizer", "scheduler", "trainer")


def parse(raw: Mapping[str, Any]) -> StudyConfig:
    """Read a study from a mapping, for those who write a config in Python; a file goes through `load`.

    Raises:
        ConfigError: Keys that are unknown or missing, values of a wrong type or out of range.
    """
    problems = _unknown(raw, [f.name for f in fields(StudyConfig)], "")
    problems += [f"{key}: missing; every study needs it." for key in _REQUIRED if key not in raw]
    hints = typing.get_type_hints(StudyConfig)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in hints:
            reader: Reader = _READERS.get(key) or partial(_plain, hints[key])
            values[key] = reader(value, key, problems)
    if problems:
        raise ConfigError(problems)
    study = StudyConfig(**values)
    if problems := trial_problems(study.strategies, study.data.score_on):
        raise ConfigError(problems)
    _check_schedulers(study)
    return study


def _section(cls: type[Section], value: Any, where: str, problems: Problems) -> Section:
    """Read one of our own dataclasses, its ranges too."""
    raw = _mapping(value, where, problems)
    hints = typing.get_type_hints(cls)
    problems += _unknown(raw, hints, where)
    good: dict[str, Any] = {}
    for spec in fields(cls):
        if spec.name not in raw:
            continue
        key, given = joined(where, spec.name), raw[spec.name]
        found = check_plain(given, hints[spec.name], key)
        least = spec.metadata.get("least")
        if not found and least is not None and given is not None and not given >= least:
            found = [f"{key}: {given} is out of range; it has to be at least {least}."]
        problems += found
        if not found:
            good[spec.name] = given
    return cls(**good)


def _plain(annotation: Any, value: Any, where: str, problems: Problems) -> Any:
    """Read a value that is no mapping."""
    problems += check_plain(value, annotation, where)
    return value


def _count(value: Any, where: str, problems: Problems) -> Any:
    """Read a number that is at least 1, or null."""
    found = check_plain(value, int | None, where)
    if not found and value is not None and value < 1:
        found = [f"{where}: {value} is out of range; it has to be at least 1."]
    problems += found
    return value


def _seconds(value: Any, where: str, problems: Problems) -> Any:
    """Read a time that is not negative."""
    found = check_plain(value, float, where)
    if not found and not 0 <= value < math.inf:
        found = [f"{where}: {value} is out of range; it has to be at least 0."]
    problems += found
    return value


def _name(value: Any, where: str, problems: Problems) -> Any:
    """Read what becomes a folder's name, and may not lead out of the folder above it."""
    found = check_plain(value, str, where)
    if not found and not re.fullmatch(r"\w([\w.+=@, -]*[\w+=@-])?", value):
        advice = "Begin with a letter or a digit, and leave out slashes."
        found = [f"{where}: {value!r} is no plain folder name. {advice}"]
    if not found and (size := len(value.encode())) > LONGEST_NAME:
        found = [f"{where}: a folder's name of {size} bytes is too long; it has to be at most {LONGEST_NAME}."]
    problems += found
    return value


def _seeds(value: Any, where: str, problems: Problems) -> Any:
    """Read the seeds, as they go to PyTorch and to numpy."""
    found = check_plain(value, list[int], where)
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
    """Read the orders, whose names are folders' names."""
    before = len(problems)
    entries = read_orders(value, where, problems)
    names = [name for entry in entries or () for name in names_of(entry)]
    if entries is not None and len(problems) == before:
        problems += _check_list(names, where)
    for name in names:
        _name(name, where, problems)
    return entries


def _component(value: Any, where: str, problems: Problems) -> Component:
    """Read a component that has to name its class."""
    found = check_shape(value, where)
    problems += found
    return Component("") if found else as_component(value)


def _prepare(value: Any, where: str, problems: Problems) -> list[Component]:
    """Read what is made before the runs: a component, or a list of them."""
    if isinstance(value, list):
        return [_component(item, joined(where, index), problems) for index, item in enumerate(value)]
    return [] if value is None else [_component(value, where, problems)]


def _optimizer(value: Any, where: str, problems: Problems) -> Component:
    """Read the study's optimizer; `init_args` alone are laid over the default's."""
    found = check_shape(value, where, partial=True)
    problems += found
    default = Changes(optimizer={"class_path": DEFAULT_OPTIMIZER, "init_args": {"lr": 1e-4}})
    return Component("") if found else as_component(combined(default, Changes(optimizer=value))["optimizer"])


def _scheduler(value: Any, where: str, problems: Problems) -> Component | None:
    """Read the study's scheduler, which may be none."""
    return None if value is None else _component(value, where, problems)


def _strategies(value: Any, where: str, problems: Problems) -> dict[str, StrategyConfig]:
    """Read the strategies; null leaves one out, which is how the command line drops one."""
    listed = {str(name): item for name, item in _mapping(value, where, problems).items() if item is not None}
    swept = [trials(name, item, joined(where, name), problems) for name, item in listed.items()]
    raw = {name: item for made in swept for name, item in made.items()}
    if not raw and (value is None or isinstance(value, Mapping)):
        problems.append(f"{where}: empty; a study needs one strategy or more.")
    whole = [name for name, item in raw.items() if not isinstance(item, Mapping) or "class_path" in item]
    strategies = {}
    for name, item in raw.items():
        at = joined(where, name)
        _name(name, at, problems)
        if name in whole:
            strategies[name] = _strategy(item, at, problems)
        else:
            hint = did_you_mean(name, whole)
            problems.append(f"{at}.class_path: missing; this would be a new strategy.{hint}")
    return strategies


def _strategy(value: Any, where: str, problems: Problems) -> StrategyConfig:
    """Read one strategy: a component with its changes, or a list of them whose changes are laid in turn."""
    members = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
    result = StrategyConfig([])
    if not members:
        problems.append(f"{where}: an empty list; name one component or more.")
    for index, member in members:
        at = where if index is None else joined(where, index)
        if not isinstance(member, Mapping):
            problems += check_shape(member, at)
            continue
        problems += _unknown(member, (*KEYS, *CHANGE_KEYS, "per_task", "sweep", "trial_of"), at)
        own = {key: member[key] for key in KEYS if key in member}
        result.components.append(_component(own, at, problems))
        result.trial_of = (
            _plain(str | None, member.get("trial_of"), joined(at, "trial_of"), problems) or result.trial_of
        )
        result.changes = combined(result.changes, _changes(member, at, problems))
        per_task = _per_task(member.get("per_task"), joined(at, "per_task"), problems)
        for task, changes in per_task.items():
            result.per_task[task] = combined(result.per_task.get(task, {}), changes)
    return result


def _per_task(value: Any, where: str, problems: Problems) -> dict[str, Changes]:
    """Read what single tasks do otherwise; `max_epochs` is short for `trainer: {max_epochs: …}`."""
    result = {}
    for task, item in _mapping(value, where, problems).items():
        at = joined(where, task)
        raw = dict(_mapping(item, at, problems))
        problems += _unknown(raw, ("max_epochs", *CHANGE_KEYS), at)
        changes = _changes(raw, at, problems)
        if "max_epochs" in raw:
            problems += check_plain(raw["max_epochs"], int | None, joined(at, "max_epochs"))
            changes = combined(changes, Changes(trainer={"max_epochs": raw["max_epochs"]}))
        result[str(task)] = changes
    return result


def _changes(raw: Mapping[str, Any], where: str, problems: Problems) -> Changes:
    """Read those of an entry's keys that overrule the study."""
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
    """Read a mapping; a key with nothing behind it holds an empty one."""
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    problems.append(f"{where}: expected a mapping of keys, got {value!r} ({type(value).__name__}).")
    return {}


def _unknown(raw: Mapping[str, Any], known: Collection[str], where: str) -> Problems:
    """Tell the keys that nobody would read."""
    owner, others = where or "a study", f" Its keys are {', '.join(known)}."
    return [
        f"{joined(where, key)}: {owner} has no key '{key}'.{did_you_mean(str(key), known) or others}"
        for key in raw
        if key not in known
    ]


def _check_list(values: list[Any], where: str) -> Problems:
    """Tell a list that is empty, and what stands in it twice: two runs would share a folder."""
    if not values:
        return [f"{where}: empty; name one or more."]
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    return [f"{where}: {value!r} stands there more than once." for value in twice]


def _check_schedulers(study: StudyConfig) -> None:
    """Make sure that each task's settings can be laid together."""
    problems: Problems = []
    for name in study.strategies:
        for task in (None, *study.tasks(name)):
            try:
                study.settings(name, task)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))


_REQUIRED = ("name", "benchmark", "strategies")
_READERS: dict[str, Reader] = {
    "name": _name,
    "seeds": _seeds,
    "orders": _orders,
    "first_tasks": _count,
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
    "score_every_n_steps": _count,
    "save_every_n_steps": _count,
    "save_every_seconds": _seconds,
}


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
