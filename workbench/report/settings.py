"""Settings of a run: its method, its training budget, and the keys in which the rows of a table differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from workbench.config import Component, StudyConfig, parse
from workbench.config.schema import KEEPS_NUMBERS, OBSERVES, Changes, leaves
from workbench.errors import ConfigError
from workbench.results import RunFolder

UNSEEN = (*KEEPS_NUMBERS, "score_every_n_steps", *(f"trainer.{name}" for name in OBSERVES))
"""Keys that change no number of a table."""
OF_THE_ROW = ("strategies", "seeds", "orders", "bounds")
"""Keys that a table shows in its rows, seeds and orders."""
OF_A_STUDY = ("backbone", "benchmark", "prepare")
"""Sections that belong to a whole study; in one whose config depends on the seed they differ from seed to seed."""
LENGTHS = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches", "overfit_batches"),
    "fast_dev_run",
)
"""Arguments of the Trainer that limit the training of a task."""
ROWS_A_STEP = "rows a step (data.batch_size x trainer.accumulate_grad_batches)"
DEFAULTS = {"trainer.accelerator": "auto", "trainer.devices": "1", "trainer.precision": "32-true"} | {
    f"trainer.{name}": value for name, value in {"accumulate_grad_batches": "1", "max_steps": "-1"}.items()
}
"""Values of keys that are not set, where a config may also state them."""
NOT_SET = "not set"


@dataclass(frozen=True)
class Settings:
    """Settings of one run. Values are text; keys that are not set are left out.

    Args:
        method: The strategy's components with their arguments.
        keys: All other keys that can change a number, with the overrides of strategy and task applied.
        budget: Keys that limit the training of a task, and the rows of an optimizer step.
        own_budget: Keys of the budget in which the strategy differs from its study.
        swept: Keys that a sweep set.
        known: Whether the run's folder has a readable config; else the rest is empty.
    """

    method: str
    keys: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, str] = field(default_factory=dict)
    own_budget: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    known: bool = True

    @property
    def identity(self) -> str:
        """Equal for runs of one experiment that differ in their seeds alone."""
        return json.dumps([self.method, dict(self.keys)], sort_keys=True)


def settings_of(run: RunFolder) -> Settings:
    """Read a run's settings from its config; of one that this version cannot parse, the keys as they stand."""
    name = run.protocol.strategy
    text = run.records.config
    file = run.path / "config.yaml"
    if text is None and file.is_file():
        text = file.read_text(encoding="utf-8")
    try:
        raw = yaml.load(text or "", Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        raw = None
    if not isinstance(raw, Mapping):
        return Settings(name, known=False)
    try:
        config = parse(raw)
    except (ConfigError, TypeError, ValueError):
        return Settings(name, _compared(leaves({key: value for key, value in raw.items() if key not in OF_THE_ROW})))
    chosen = name if name in config.strategies else next(iter(config.strategies))
    return _of_config(config, chosen, run.protocol.order)


def _of_config(config: StudyConfig, name: str, tasks: Sequence[str]) -> Settings:
    strategy = config.strategies[name]
    plain = replace(config, strategies={name: replace(strategy, changes=Changes(), per_task={})})
    common = {section: getattr(config, section) for section in ("backbone", "benchmark", "data", "first_tasks")}
    common |= {f"prepare.{place}": component for place, component in enumerate(config.prepare)}
    keys = {**_compared(leaves(common)), **_laid_over(config, name, tasks)}
    budget, study = _budget(config, name, tasks), _budget(plain, name, tasks)
    different = [key for key in {**budget, **study} if budget.get(key) != study.get(key)]
    before = _laid_over(plain, name, tasks)
    swept = [key for key, value in _laid_over(config, name, tasks).items() if before.get(key) != value]
    method = " + ".join(map(_called, strategy.components))
    return Settings(method, keys, budget, tuple(different), tuple(swept) if strategy.trial_of else ())


def _laid_over(config: StudyConfig, name: str, tasks: Sequence[str]) -> dict[str, str]:
    """Return the keys of optimizer, scheduler and Trainer; under `per_task` those of tasks and items that differ."""
    usual = _of_task(config, name, None)
    changed = config.tasks(name)
    own = {task: _of_task(config, name, task) if task in changed else usual for task in tasks}
    keys = _by_task(usual, own)
    for item in changed:
        if item not in own:
            its = _of_task(config, name, item)
            keys |= {f"per_task.{item}.{key}": value for key, value in its.items() if usual.get(key) != value}
    return keys


def _by_task(usual: Mapping[str, str], own: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Merge the keys of all tasks: one key where all agree, else the usual value and one for each task that differs."""
    merged = dict[str, str]()
    for key in dict.fromkeys([*usual, *(key for keys in own.values() for key in keys)]):
        values = {task: keys.get(key) for task, keys in own.items()} or {"": usual.get(key)}
        agreed = len({*values.values()}) == 1
        merged[key] = (next(iter(values.values())) if agreed else usual.get(key)) or NOT_SET
        if not agreed:
            differing = {task: value for task, value in values.items() if value != usual.get(key)}
            merged |= {f"per_task.{task}.{key}": value or NOT_SET for task, value in differing.items()}
    return {key: value for key, value in merged.items() if value != NOT_SET or key.startswith("per_task.")}


def _of_task(config: StudyConfig, name: str, task: str | None) -> dict[str, str]:
    settings = config.settings(name, task)
    parts = {"optimizer": settings.optimizer, "scheduler": settings.scheduler, "trainer": settings.trainer}
    return _compared(leaves(parts))


def _budget(config: StudyConfig, name: str, tasks: Sequence[str]) -> dict[str, str]:
    def of_task(task: str | None) -> dict[str, str]:
        trainer = config.settings(name, task).trainer
        rows = config.data.batch_size * int(trainer.get("accumulate_grad_batches") or 1)
        return {
            **_compared(leaves({"trainer": {key: trainer[key] for key in LENGTHS if key in trainer}})),
            ROWS_A_STEP: str(rows),
        }

    changed, usual = config.tasks(name), of_task(None)
    keys = _by_task(usual, {task: of_task(task) if task in changed else usual for task in tasks})
    tokens = config.data.batch_tokens
    return keys if tokens is None else {**keys, "data.batch_tokens": str(tokens)}


def _compared(leaves: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return the keys that can change a number and are not at their default, as text."""
    texts = {key: as_text(value) for key, value in leaves if value is not None}
    return {
        key: value
        for key, value in texts.items()
        if DEFAULTS.get(key) != value and not any(f"{key}.".startswith(f"{name}.") for name in UNSEEN)
    }


def as_text(value: Any) -> str:
    """Return a value as text, mappings in a fixed order."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def _called(component: Component) -> str:
    """Return a component as a call.

    >>> _called(Component("strategies.LoRA", {"rank": 8}))
    'strategies.LoRA(rank=8)'
    """
    given = ", ".join(f"{name}={as_text(value)}" for name, value in component.init_args.items())
    return f"{component.class_path}({given})" if given else component.class_path


# -- between the rows of a table


def what_differs(rows: Mapping[str, Sequence[tuple[str, Settings]]]) -> list[str]:
    """Return the keys in which rows differ, a line each with all values and their rows.

    Args:
        rows: For the name of each row, the study and the settings of each of its runs.

    >>> runs = {name: [("s", Settings("m", {"lr": rate}))] for name, rate in {"a": "1", "b": "2", "c": "1"}.items()}
    >>> what_differs(runs)
    ['lr: 1 (a, c), 2 (b)']
    """
    known = {name: [(study, its) for study, its in runs if its.known] for name, runs in rows.items()}
    lines = []
    for key in dict.fromkeys(key for runs in known.values() for _, its in runs for key in its.keys):
        values: dict[str, list[str]] = {}
        for name, runs in known.items():
            shown = [(study, its) for study, its in runs if key not in its.swept]
            if shown:
                values.setdefault(_value(key, shown, known), []).append(name)
        mixed = _section(key) not in OF_A_STUDY and any(len(_values(key, runs)) > 1 for runs in known.values())
        if len(values) > 1 or mixed:
            lines.append(f"{key}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items()))
    unknown = [name for name, runs in rows.items() if len(known[name]) < len(runs)]
    if unknown and len(rows) > 1:
        lines.append(f"not known, as config.yaml is missing or cannot be read: {', '.join(unknown)}")
    return lines


def _value(key: str, runs: Sequence[tuple[str, Settings]], every: Mapping[str, Sequence[tuple[str, Settings]]]) -> str:
    """Return the value of a key in the runs of a row; of a study's own keys, in all runs of that study."""
    if _section(key) in OF_A_STUDY:
        studies = {study for study, _ in runs}
        runs = [pair for pairs in every.values() for pair in pairs if pair[0] in studies]
    return " or ".join(_values(key, runs))


def _values(key: str, runs: Sequence[tuple[str, Settings]]) -> list[str]:
    return sorted({its.keys.get(key, NOT_SET) for _, its in runs})


def _section(key: str) -> str:
    return key.partition(".")[0]


def own_settings(rows: Mapping[str, Sequence[tuple[str, Settings]]]) -> dict[str, str]:
    """Return for each row its method with its arguments, and the keys that a sweep set."""
    own = {}
    for name, runs in rows.items():
        texts = [", ".join([its.method, *(f"{key}={its.keys[key]}" for key in its.swept)]) for _, its in runs]
        own[name] = " or ".join(dict.fromkeys(texts))
    return own
