"""Check a study before anything is built: its classes, their arguments, the model's folder and the output folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.config.components import KEYS, check_arguments, check_component, check_shape
from workbench.config.schema import DEFAULT_OPTIMIZER, Changes, StudyConfig, combined, for_seed
from workbench.config.type_check import joined
from workbench.model_folder import check_folder

STEP_ARGUMENTS = ("T_max", "total_steps", "total_iters", "num_training_steps")
"""Names of a scheduler's argument for the number of steps; where a config omits it, the task's number is filled in."""

NO_VALIDATION = (
    "asks for validation, and there is none within a task. Leave it out; score_every_n_steps scores in mid-task."
)
UNFIT: dict[str, tuple[tuple[Any, ...], str]] = {
    "overfit_batches": (
        (None, 0),
        "would not give each epoch the same batches, as each is shuffled anew. Set limit_train_batches.",
    ),
    "val_check_interval": ((None, 1.0), NO_VALIDATION),
    "check_val_every_n_epoch": ((None, 1), NO_VALIDATION),
}
"""Arguments of a Trainer, their accepted values, and the problem of all others."""


def check(config: StudyConfig) -> list[str]:
    """Check a config's arguments against the signatures of its classes; nothing is built.

    The `trainer` sections are left to `check_trainer`.

    Args:
        config: A config whose shape is right.

    Returns:
        One sentence for each problem, which starts with its key.
    """
    config = for_seed(config, config.seeds[0])
    problems = check_component(config.benchmark, "benchmark") + check_component(config.executor, "executor")
    for index, component in enumerate(config.prepare):
        problems += check_component(component, joined("prepare", index))
    for name, strategy in config.strategies.items():
        at = f"strategies.{name}"
        composed = len(strategy.components) > 1
        for index, component in enumerate(strategy.components):
            problems += check_component(component, joined(at, index) if composed else at)
        for task in (None, *config.tasks(name)):
            problems += _check_layers(config.layers(name, task))
    return list(dict.fromkeys(problems))


def check_trainer(config: StudyConfig | Mapping[str, Any], trainer: Callable[..., Any]) -> list[str]:
    """Check the `trainer` sections of a study, of its strategies and of single tasks.

    Args:
        config: A config, or as far as it could be read if its shape is wrong.
        trainer: `lightning.Trainer`, passed in because its import is slow.

    Returns:
        One sentence for each problem, which starts with its key.
    """
    if not isinstance(config, StudyConfig):
        section = config.get("trainer")
        if not isinstance(section, Mapping):
            return []
        return check_arguments(trainer, section, "trainer") + check_limits(section, "trainer")
    config, problems = for_seed(config, config.seeds[0]), list[str]()
    for name in config.strategies:
        for task in (None, *config.tasks(name)):
            given: dict[str, Any] = {}
            for where, changes in config.layers(name, task):
                if changes.get("trainer"):
                    at, before, given = joined(where, "trainer"), given, {**given, **changes["trainer"]}
                    known = check_arguments(trainer, before, at) + check_limits(before, at)
                    found = check_arguments(trainer, given, at) + check_limits(given, at)
                    problems += [text for text in found if text not in known]
    return list(dict.fromkeys(problems))


def check_surroundings(config: StudyConfig) -> list[str]:
    """Check the model's folder, unless `prepare` may write it, and the output folder.

    Args:
        config: A config whose shape is right.

    Returns:
        One sentence for each problem.
    """
    paths = [] if config.prepare else [for_seed(config, seed).backbone.path for seed in config.seeds]
    problems = [f"backbone.path: {problem}" for path in dict.fromkeys(paths) for problem in check_folder(path)]
    output = Path(config.output).expanduser().absolute()
    try:
        nearest = next(parent for parent in (output, *output.parents) if parent.exists())
    except OSError as error:  # for example, a name that is too long
        return [*problems, f"output: {error.strerror}. Choose another."]
    if not nearest.is_dir():
        problems.append(f"output: {nearest} is a file; results need a folder. Choose another.")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        problems.append(f"output: {nearest} cannot be written to. Choose another.")
    return problems


def check_parts(raw: Mapping[str, Any]) -> list[str]:
    """Check the classes in a config whose shape is wrong elsewhere, so that all problems are reported together.

    Args:
        raw: The config as far as it could be read; parts of a wrong shape are skipped.

    Returns:
        One sentence for each problem.
    """
    optimizer = raw.get("optimizer")
    if isinstance(optimizer, Mapping):
        optimizer = {"class_path": DEFAULT_OPTIMIZER, **optimizer}
    parts = [("benchmark", raw.get("benchmark"), ()), ("optimizer", optimizer, ("params",))]
    parts.append(("scheduler", raw.get("scheduler"), _filled_in(raw.get("scheduler"))))
    strategies = raw.get("strategies")
    for name, members in strategies.items() if isinstance(strategies, Mapping) else ():
        for member in members if isinstance(members, list) else [members]:
            parts.append((f"strategies.{name}", member, ()))
    problems = []
    for where, part, extra in parts:
        if isinstance(part, Mapping) and "class_path" in part:
            component = {key: value for key, value in part.items() if key in KEYS}
            problems += [] if check_shape(component, where) else check_component(component, where, extra)
    backbone = raw.get("backbone")
    if isinstance(backbone, Mapping) and isinstance(backbone.get("path"), str) and not raw.get("prepare"):
        problems += [f"backbone.path: {problem}" for problem in check_folder(backbone["path"])]
    return problems


def check_limits(trainer: Mapping[str, Any], where: str) -> list[str]:
    """Check arguments that a Trainer accepts although they train nothing, never end, or cannot be resumed.

    Args:
        trainer: The arguments by name.
        where: Their key, dotted.

    Returns:
        One sentence for each problem.
    """
    problems = []
    epochs, steps = trainer.get("max_epochs"), trainer.get("max_steps")
    if isinstance(epochs, int) and epochs < 1:
        limited = trainer.get("max_time") is not None or (isinstance(steps, int) and steps > 0)
        if epochs != -1 or not limited:
            remedy = "It has to be at least 1; or give max_steps or max_time, with max_epochs=-1."
            problems.append(f"{joined(where, 'max_epochs')}: {epochs} is out of range. {remedy}")
    if isinstance(steps, int) and steps < 1 and steps != -1:
        problems.append(f"{joined(where, 'max_steps')}: {steps} is out of range; it has to be at least 1.")
    for name, least in (("accumulate_grad_batches", 1), ("gradient_clip_val", 0)):
        value = trainer.get(name)
        if isinstance(value, int | float) and not value >= least:
            problems.append(f"{joined(where, name)}: {value} is out of range; it has to be at least {least}.")
    if trainer.get("limit_train_batches") == 0 and trainer.get("limit_train_batches") is not None:
        remedy = "It has to be more than 0."
        problems.append(f"{joined(where, 'limit_train_batches')}: 0 would leave nothing to train on. {remedy}")
    if trainer.get("max_time") is not None and not _longer_than_zero(trainer["max_time"]):
        remedy = "It has to be more than 0 seconds."
        problems.append(f"{joined(where, 'max_time')}: {trainer['max_time']} would train nothing. {remedy}")
    return problems + [
        f"{joined(where, name)}: {trainer[name]} {problem}"
        for name, (accepted, problem) in UNFIT.items()
        if name in trainer and trainer[name] not in accepted
    ]


def _longer_than_zero(limit: Any) -> bool:
    """Return True if a `max_time` is longer than zero; Lightning refuses what is not a time."""
    if isinstance(limit, str):
        return re.fullmatch(r"[0:]+", limit.strip()) is None
    return not isinstance(limit, Mapping) or sum(part for part in limit.values() if isinstance(part, int)) > 0


def _check_layers(layers: list[tuple[str, Changes]]) -> list[str]:
    """Check each layer on top of the weaker ones, and report the problems that it adds."""
    problems: list[str] = []
    below = Changes()
    for where, changes in layers:
        total = combined(below, changes)
        for key in ("optimizer", "scheduler"):
            if changes.get(key):
                known = _check_part(key, below.get(key), joined(where, key))
                found = _check_part(key, total.get(key), joined(where, key))
                problems += [text for text in found if text not in known]
        below = total
    return problems


def _check_part(key: str, component: Any, where: str) -> list[str]:
    """Check an optimizer or a scheduler."""
    return check_component(component, where, ("params",) if key == "optimizer" else _filled_in(component))


def _filled_in(scheduler: Any) -> tuple[str, ...]:
    """List the arguments of a scheduler that the workbench fills in."""
    given = (scheduler.get("init_args") or {}) if isinstance(scheduler, Mapping) else {}
    return ("optimizer", *(name for name in STEP_ARGUMENTS if name not in given))
