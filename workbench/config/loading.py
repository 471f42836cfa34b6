"""Read a study's YAML, override it from the command line, and write it again.

The only module that knows OmegaConf. `load` checks the keys, which takes no time; `validation.check` checks the
classes that they name, which takes as long as importing them.
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

from workbench.config.components import make_importable
from workbench.config.parsing import parse
from workbench.config.schema import StrategyConfig, StudyConfig
from workbench.config.type_check import joined
from workbench.config.validation import check, check_parts, check_surroundings
from workbench.errors import ConfigError, did_you_mean

FORBIDDEN = re.compile(r"(?<!\\)(?:\\\\)*(\$\{\s*(?:oc\.)?env\s*:(?!\s*WORKBENCH_)[^,}]*)")
"""A reference to an environment variable that may be a secret."""
VARIABLE = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*(?:oc\.)?env\s*:\s*(WORKBENCH_\w+)\s*\}")
"""A reference to an environment variable without a default, which has to be set."""


def load(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study from its YAML; modules in the YAML's folder and in the current one become importable.

    Args:
        source: A path, or the name of a shipped config.
        overrides: `key=value` each: a dotted key and its new value, as YAML. A mapping replaces the one that was
            there; a `class_path` drops the file's `init_args` beside it; null drops a strategy.

    Raises:
        ConfigError: All problems of the keys and their values; those of the classes are found by `validation.check`.
    """
    path = _find(source)
    make_importable(path.parent.resolve())
    raw = _read(path)
    problems = _override(raw, overrides)
    if unreadable := _check_variables(raw):
        raise ConfigError(problems + unreadable)
    try:
        raw = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(raw), resolve=True))
    except OmegaConfBaseException as error:
        message = f"{error.full_key}: {str(error.msg).splitlines()[0]}. Name a key that is there."
        raise ConfigError([*problems, message]) from error
    open_keys = [key for key, value in _scalars(raw) if value == "???"]
    problems += [f"{key}: left open (???). Write it in the file, or give {key}=… ." for key in open_keys]
    try:
        config = parse(raw)
    except ConfigError as error:
        problems += [problem for problem in error.problems if problem.partition(":")[0] not in open_keys]
    if problems:
        raise ConfigError(problems, raw)
    return config


def examine(
    source: StudyConfig | str | Path,
    overrides: Sequence[str] = (),
    report: Callable[[str], object] = lambda problem: None,
    before_imports: Callable[[], object] = lambda: None,
) -> tuple[StudyConfig | Mapping[str, Any], list[str]]:
    """Read a study and run the checks that build nothing and need no Lightning, the quickest ones first.

    Args:
        source: A config, or the path or shipped name of one.
        overrides: As for `load`.
        report: Receives each problem as soon as it is found.
        before_imports: Called before the classes that the config names are imported, which takes seconds.

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
        before_imports()
        add(check_parts(error.raw))
        return error.raw, problems
    add(check_surroundings(config))
    before_imports()
    add(check(config))
    return config, problems


def arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs as keyword arguments, by the rules of an override.

    Args:
        pairs: Such as ["rank=4", "targets=[q_proj]"].

    Raises:
        ConfigError: A text is not such a pair.
    """
    values: dict[str, Any] = {}
    if problems := _override(values, pairs):
        raise ConfigError(problems)
    return values


def shipped_configs() -> dict[str, Path]:
    """Return the path of each shipped config by its name; they lie beside the package, in a wheel too."""
    folder = Path(__file__).parents[2] / "configs"
    paths = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def resolved(config: StudyConfig) -> dict[str, Any]:
    """Convert a config to plain mappings with every default written out, so that later defaults do not change it."""
    mapping = {field.name: _plain(getattr(config, field.name)) for field in fields(config)}
    mapping["strategies"] = {name: _members(strategy) for name, strategy in config.strategies.items()}
    return mapping


def dump(config: StudyConfig) -> str:
    """Write a config as YAML, which loads to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(resolved(config))))


def _find(source: str | Path) -> Path:
    """Return the file of a config; a path takes precedence over the name of a shipped config."""
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
    """Read a file without resolving its references, which overrides may still change."""
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))
    except YAMLError as error:
        raise ConfigError([f"{path}{_yaml_reason(error)}"]) from error
    except (OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError([f"{path}: cannot be read: {error}. Save it as UTF-8, where you may read it."]) from error
    if not isinstance(raw, dict):
        raise ConfigError([f"{path}: expected a mapping of keys, got a {type(raw).__name__}. Write `key: value`."])
    return typing.cast(dict[str, Any], raw)


def _yaml_reason(error: YAMLError) -> str:
    """Give the line of a YAML error and its reason."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    return f"{where}: {getattr(error, 'problem', None) or error}."


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Write each `key=value` into a file's mapping, and report those that do not fit."""
    problems, pairs = [], []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not all(dotted.split(".")):
            problems.append(f"'{override}' is not an override. Write key=value, such as trainer.max_epochs=1.")
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        except YAMLError as error:
            problems.append(f"{dotted}: '{text}' is not valid YAML: {getattr(error, 'problem', error)}.")
            continue
        pairs.append((dotted.split("."), typing.cast(dict[str, Any], value)["value"]))
    for keys, _ in pairs:  # first, so that init_args given in the same command line stay
        beside = _at(raw, keys[:-1])
        if keys[-1] == "class_path" and isinstance(beside, dict):
            beside.pop("init_args", None)
    return problems + [problem for keys, value in pairs for problem in _put(raw, keys, value)]


def _at(raw: Any, keys: Sequence[str]) -> Any:
    """Return the value at a key; None if there is none."""
    for key in keys:
        if isinstance(raw, list) and key.isdigit() and int(key) < len(raw):
            raw = raw[int(key)]
        else:
            raw = raw.get(key) if isinstance(raw, dict) else None
    return raw


def _put(raw: dict[str, Any], keys: Sequence[str], value: Any) -> list[str]:
    """Write a value at a key, and create the mappings on the way."""
    dotted, strategies = ".".join(keys), _at(raw, ["strategies"])
    known = strategies if isinstance(strategies, dict) else {}
    if value is None and keys[0] == "strategies" and len(keys) == 2 and keys[1] not in known:
        return [f"{dotted}: there is no such strategy to drop.{did_you_mean(keys[1], known)}"]
    for depth, key in enumerate(keys[:-1], start=1):
        parent = _at(raw, keys[: depth - 1])
        if isinstance(parent, dict) and parent.get(key) is None:
            parent[key] = {}
        if not isinstance(_at(raw, keys[:depth]), dict | list):
            return [f"{dotted}: '{'.'.join(keys[:depth])}' has no keys."]
    parent = _at(raw, keys[:-1])
    if isinstance(parent, dict):
        parent[keys[-1]] = value
    elif keys[-1].isdigit() and int(keys[-1]) < len(parent):
        parent[int(keys[-1])] = value
    else:
        return [f"{dotted}: the list {'.'.join(keys[:-1])} has no item {keys[-1]}."]
    return []


def _check_variables(raw: dict[str, Any]) -> list[str]:
    """Report environment variables that a config may not read, then those that are not set.

    The value of a variable is written into `config.yaml` and the model card, which must not contain a password.
    """
    forbidden, unset = [], []
    for key, text in _scalars(raw):
        if not isinstance(text, str):
            continue
        if match := FORBIDDEN.search(text):
            problem = f"{key}: {match[1]}}}: only variables whose names begin with WORKBENCH_ can be read"
            reason = "because their values are written into each run's config.yaml"
            forbidden.append(f"{problem}, {reason}. Leave a secret to the library that reads it.")
        for variable in VARIABLE.findall(text):
            if variable not in os.environ:
                example = f"/path/to/{variable.partition('_')[2].lower()}" if key.endswith(("path", "folder")) else "…"
                message = f"{key}: the environment variable {variable} is not set"
                unset.append(f"{message}. Set it by: export {variable}={example}")
    return forbidden + unset


def _scalars(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value that is neither a mapping nor a list, with its key."""
    if not isinstance(value, dict | list):
        yield where, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _scalars(item, joined(where, key))


def _members(strategy: StrategyConfig) -> Any:
    """Convert a strategy to its form in a YAML; a composition's settings are written at its first member."""
    members = [_plain(component) for component in strategy.components]
    members[0] |= _plain(strategy.changes)
    if strategy.trial_of:
        members[0]["trial_of"] = strategy.trial_of
    if strategy.per_task:
        members[0]["per_task"] = _plain(strategy.per_task)
    return members if len(members) > 1 else members[0]


def _plain(value: Any) -> Any:
    """Convert a value to mappings, lists, texts and numbers."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _escaped(value: Any) -> Any:
    """Escape texts that look like references."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value
