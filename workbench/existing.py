"""What a study finds in its folder: may it stay, and do the runs there belong in one table with the new ones?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.config import StudyConfig, for_seed, load, resolved
from workbench.fingerprint import fingerprint_named
from workbench.results import RunFolder

ADVICE = "Choose another `name`, or existing=replace to lose what is there."
WORDS = {"files": "corpus or model of its strategy"}
NOT_COMPARED = ("output", "existing")


def existing_problems(
    config: StudyConfig, folder: Path, wanted: Mapping[Path, StudyConfig], inputs_of: Callable[[int], Mapping[str, str]]
) -> list[str]:
    """Compares what is there with what is asked for.

    Args:
        config: The study's.
        folder: The study's.
        wanted: Each run's folder and its own config.
        inputs_of: Gives the fingerprints of the data and the model of a seed's runs.

    Returns:
        A sentence for each run that `existing` does not allow, or that was made with another config, other data or
        another model; also for runs that are not asked for now, because they would stand in the same table.
    """
    problems = []
    for file in sorted(folder.rglob("config.yaml")):
        path = file.parent
        if path in wanted and config.existing == "replace":
            continue
        if path in wanted and config.existing == "refuse":
            problems.append(f"existing: {path} is there. Choose another `name`, or existing=resume or =replace.")
            continue
        there = load(file)
        changes = differences(there, wanted[path] if path in wanted else _as_it_would_be(config, there))
        advice = ADVICE if path in wanted else "Choose another `name`, or delete the folder."
        if changes:
            problems.append(f"{path} was made with another config ({'; '.join(changes)}). {advice}")
        inputs = {**inputs_of(there.seeds[0]), "files": fingerprint_of_files(there)}
        recorded = RunFolder(path).environment().get("inputs", inputs)
        changed = [WORDS.get(name, name) for name, value in recorded.items() if inputs.get(name) != value]
        if changed and not changes:
            problems.append(f"{path} was made with another {' and another '.join(changed)}. {advice}")
    return problems


def fingerprint_of_files(config: StudyConfig) -> str:
    """Of what a run's strategy reads beside the backbone."""
    return fingerprint_named(part.init_args for chosen in config.strategies.values() for part in chosen.components)


def _as_it_would_be(config: StudyConfig, there: StudyConfig) -> StudyConfig:
    """The config that a run there would have if it were made now."""
    strategies = {name: config.strategies.get(name, own) for name, own in there.strategies.items()}
    return for_seed(replace(config, strategies=strategies, orders=there.orders, seeds=there.seeds), there.seeds[0])


def differences(there: StudyConfig, here: StudyConfig) -> list[str]:
    """The keys in which two configs differ, with both values."""
    old, new = dict(_leaves(resolved(there))), dict(_leaves(resolved(here)))
    return [
        f"{key}: {old.get(key, 'nothing')} there, {new.get(key, 'nothing')} here"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and key not in NOT_COMPARED
    ]


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a config by its dotted key; an empty mapping says nothing."""
    many = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    if not isinstance(value, Mapping) and not many:
        yield where, value
        return
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _leaves(item, f"{where}.{key}" if where else str(key))
