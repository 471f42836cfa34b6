"""A study's YAML: read, overridden from the command line, checked, and written again.

The only file that knows OmegaConf. All that is wrong is told at once: `load` looks at the keys, which takes
no time, and `check` at the classes they name, which takes as long as importing them.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from workbench.config.components import (
    Component,
    build,
    check_arguments,
    check_component,
    import_class,
    in_words,
    instantiate,
    joined,
    reach,
)
from workbench.config.parsing import parse
from workbench.config.schema import (
    BackboneConfig,
    Changes,
    DataConfig,
    StrategyConfig,
    StudyConfig,
    TaskSettings,
    for_seed,
)
from workbench.config.validation import check, check_parts, check_surroundings
from workbench.errors import ConfigError, did_you_mean

__all__ = [
    "BackboneConfig",
    "Changes",
    "Component",
    "ConfigError",
    "DataConfig",
    "StrategyConfig",
    "StudyConfig",
    "TaskSettings",
    "arguments",
    "build",
    "check",
    "check_arguments",
    "check_component",
    "check_parts",
    "check_surroundings",
    "dump",
    "examine",
    "for_seed",
    "import_class",
    "in_words",
    "instantiate",
    "load",
    "parse",
    "resolved",
    "shipped_configs",
]

READ_ELSEWHERE = re.compile(r"(?<!\\)(?:\\\\)*(\$\{\s*(?:oc\.)?env\s*:(?!\s*WORKBENCH_)[^,}]*)")

VARIABLE = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*(?:oc\.)?env\s*:\s*(WORKBENCH_\w+)\s*\}")
"""A variable that has to be set: nothing stands in for it."""


def load(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study from its YAML, whose folder and the current one may hold modules of the reader's own.

    Args:
        source: A path, or the name of a shipped config.
        overrides: `key=value` each: a dotted key and what shall stand there, as YAML. A mapping replaces the
            one that was there; a `class_path` drops the file's `init_args` beside it; null drops a strategy.

    Raises:
        ConfigError: All that is wrong, save for what only the classes know: `check` tells that.
    """
    path = _find(source)
    reach(path.parent.resolve())
    raw = _read(path)
    problems = _override(raw, overrides)
    if unread := [*_secrets(raw, ""), *_unset(raw, "")]:
        raise ConfigError(problems + unread)
    try:
        raw = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(raw), resolve=True))
    except OmegaConfBaseException as error:
        told = f"{error.full_key}: {str(error.msg).splitlines()[0]}. Name a key that is there."
        raise ConfigError([*problems, told]) from error
    missing = list(_missing(raw, ""))
    problems += [f"{key}: left open (???). Write it in the file, or give {key}=… ." for key in missing]
    try:
        config = parse(raw)
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem.partition(":")[0] not in missing]
    if problems:
        raise ConfigError(problems, raw)
    return config


def examine(
    source: StudyConfig | str | Path,
    overrides: Sequence[str] = (),
    report: Callable[[str], object] = lambda problem: None,
) -> tuple[StudyConfig | Mapping[str, Any], list[str]]:
    """Read a study and run the checks that build nothing and need no Lightning, the quickest ones first.

    Args:
        source: A config, or the path or shipped name of one.
        overrides: As for `load`.
        report: Receives each problem as soon as it is found.

    Returns:
        The config, or what could be read of it where its keys are wrong; and all problems, each once.

    Raises:
        ConfigError: The file cannot be read, so that nothing else can be checked.
    """
    problems: list[str] = []

    def add(found: Sequence[str]) -> None:
        for problem in found:
            if problem not in problems:
                problems.append(problem)
                report(problem)

    try:
        config = source if isinstance(source, StudyConfig) else load(source, overrides)
    except ConfigError as error:
        if not error.raw:
            raise
        add(error.problems)
        add(check_parts(error.raw))
        return error.raw, problems
    add(check_surroundings(config))
    add(check(config))
    return config, problems


def arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs as keyword arguments, by the rules of an override.

    Raises:
        ConfigError: A pair is none.
    """
    values: dict[str, Any] = {}
    if problems := _override(values, pairs):
        raise ConfigError(problems)
    return values


def shipped_configs() -> dict[str, Path]:
    """Find the configs that come along, by name: they lie beside the package, in a wheel too."""
    folder = Path(__file__).parents[2] / "configs"
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def resolved(config: StudyConfig) -> dict[str, Any]:
    """Write a config as plain mappings with every default spelt out, so that it stays the same tomorrow."""
    mapping = {field.name: _plain(getattr(config, field.name)) for field in fields(config)}
    mapping["strategies"] = {name: _members(strategy) for name, strategy in config.strategies.items()}
    return mapping


def dump(config: StudyConfig) -> str:
    """Write a config as YAML, which loads again to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(resolved(config))))


def _find(source: str | Path) -> Path:
    """Find a config's file; one that lies there goes before a shipped one."""
    shipped = shipped_configs()
    if Path(source).is_file():
        return Path(source)
    if str(source) in shipped:
        return shipped[str(source)]
    hint = did_you_mean(Path(source).stem, shipped)
    names = ", ".join(shipped)
    raise ConfigError(
        [f"there is no file '{source}', nor a shipped config.{hint} Give a path, or choose from {names}."]
    )


def _read(path: Path) -> dict[str, Any]:
    """Read a file without resolving anything, since an override may be what it refers to."""
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ConfigError([f"{path}{_yaml_words(error)}"]) from error
    except (OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError([f"{path}: cannot be read: {error}. Save it as UTF-8, where you may read it."]) from error
    if not isinstance(raw, dict):
        raise ConfigError([f"{path}: expected a mapping of keys, got a {type(raw).__name__}. Write `key: value`."])
    return typing.cast(dict[str, Any], raw)


def _yaml_words(error: YAMLError) -> str:
    """Say in which line a YAML breaks off, and why."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    return f"{where}: {getattr(error, 'problem', None) or error}."


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Put each `key=value` into a file's mapping, and tell those that cannot be."""
    problems, pairs = [], []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not all(dotted.split(".")):
            problems.append(f"'{override}' is no override. Write key=value, such as trainer.max_epochs=1.")
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        except YAMLError as error:
            problems.append(f"{dotted}: '{text}' is no YAML: {getattr(error, 'problem', error)}.")
            continue
        pairs.append((dotted.split("."), typing.cast(dict[str, Any], value)["value"]))
    for keys, _ in pairs:  # first, so that init_args given in the same command line stay
        beside = _at(raw, keys[:-1])
        if keys[-1] == "class_path" and isinstance(beside, dict):
            beside.pop("init_args", None)
    return problems + [problem for keys, value in pairs for problem in _put(raw, keys, value)]


def _at(raw: Any, keys: Sequence[str]) -> Any:
    """Look up what stands at a key; None where there is nothing."""
    for key in keys:
        if isinstance(raw, list) and key.isdigit() and int(key) < len(raw):
            raw = raw[int(key)]
        else:
            raw = raw.get(key) if isinstance(raw, dict) else None
    return raw


def _put(raw: dict[str, Any], keys: Sequence[str], value: Any) -> list[str]:
    """Let a value stand at a key, in mappings that are made where there are none."""
    dotted, known = ".".join(keys), _at(raw, ["strategies"])
    if value is None and keys[0] == "strategies" and len(keys) == 2 and keys[1] not in (known or {}):
        return [f"{dotted}: there is no such strategy to leave out.{did_you_mean(keys[1], known or {})}"]
    for depth, key in enumerate(keys[:-1], start=1):
        parent = _at(raw, keys[: depth - 1])
        if isinstance(parent, dict) and parent.get(key) is None:
            parent[key] = {}
        if not isinstance(_at(raw, keys[:depth]), dict | list):
            return [f"{dotted}: there are no keys in '{'.'.join(keys[:depth])}'."]
    parent = _at(raw, keys[:-1])
    if isinstance(parent, dict):
        parent[keys[-1]] = value
    elif keys[-1].isdigit() and int(keys[-1]) < len(parent):
        parent[int(keys[-1])] = value
    else:
        return [f"{dotted}: the list at {'.'.join(keys[:-1])} has no place {keys[-1]}."]
    return []


def _missing(value: Any, where: str) -> Iterator[str]:
    """Walk to the keys that a file leaves open."""
    if value == "???":
        yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _missing(item, joined(where, key))


def _secrets(value: Any, where: str) -> Iterator[str]:
    """Tell what a config may not read: with its value, `config.yaml` and the model card would hold a password."""
    if isinstance(value, str) and (found := READ_ELSEWHERE.search(value)):
        told = "only variables whose names begin with WORKBENCH_ can be read, for what they hold is written into"
        advice = "Leave a secret to the library that reads it itself."
        yield f"{where}: {found[1]}}}: {told} each run's config.yaml. {advice}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _secrets(item, joined(where, key))


def _unset(value: Any, where: str) -> Iterator[str]:
    """Tell the variables of the environment that a config asks for and that are not set, each with how to set it."""
    for variable in VARIABLE.findall(value) if isinstance(value, str) else ():
        if variable not in os.environ:
            example = f"/path/to/{variable.partition('_')[2].lower()}" if where.endswith(("path", "folder")) else "…"
            told = f"the variable {variable} of the environment is not set"
            yield f"{where}: {told}. Give it by: export {variable}={example}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _unset(item, joined(where, key))


def _members(strategy: StrategyConfig) -> Any:
    """Write a strategy as a YAML does; a composition's changes stand with its first member."""
    members = [_plain(component) for component in strategy.components]
    members[0] |= _plain(strategy.changes)
    if strategy.trial_of:
        members[0]["trial_of"] = strategy.trial_of
    if strategy.per_task:
        members[0]["per_task"] = _plain(strategy.per_task)
    return members if len(members) > 1 else members[0]


def _plain(value: Any) -> Any:
    """Write a value with what a YAML has: mappings, lists, texts and numbers."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _escaped(value: Any) -> Any:
    """Keep a text that looks like a reference from being taken for one."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value
