"""What a Trainer is given: the config's own arguments, our defaults, and the plugins that exact resume needs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, callbacks
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.imports import RequirementCache

from workbench.config.components import build, import_class
from workbench.errors import ConfigError
from workbench.train.checkpoint import StateFile
from workbench.train.fsdp import resolve_strategy

TRAINER_DEFAULTS: dict[str, Any] = {
    "devices": 1,
    "logger": False,
    "log_every_n_steps": 1,  # a task may have fewer steps than Lightning's 50, and then nothing would be logged
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # the batches are cut for each process as they are made
    "deterministic": "warn",  # True raises where torch has no such kernel, and a strategy may need what has none
}

SEARCHES = (callbacks.LearningRateFinder, callbacks.BatchSizeFinder)
LOGGING = (callbacks.LearningRateMonitor, callbacks.DeviceStatsMonitor, callbacks.ThroughputMonitor)
OF_SERVERS = ("CometLogger", "NeptuneLogger", "LitLogger")
"""Loggers that may begin an experiment on their server as they are built."""


def trainer_arguments(given: Mapping[str, Any], length: tuple[int, int] | None) -> dict[str, Any]:
    """Builds what a `trainer` section names by its class, and adds the rest; loggers are built apart.

    Args:
        given: The section.
        length: Epochs and most steps of an item; None: what the section says.
    """
    built = {key: _built(value, f"trainer.{key}") for key, value in given.items() if key != "logger"}
    if "strategy" in built:
        built["strategy"] = resolve_strategy(built["strategy"])
    if length is not None:
        built["max_epochs"], built["max_steps"] = length
    return TRAINER_DEFAULTS | built | {"plugins": _plugins(built.get("plugins"))}


def loggers(given: Any, version: str) -> Any:
    """Builds the loggers of a `trainer` section.

    Args:
        given: One, a list of them, or what Lightning takes in their place.
        version: Tells a run's logger from those of others, where the config does not.

    Raises:
        ConfigError: One cannot be built, or is none.
    """
    many = isinstance(given, list)
    places = [f"trainer.logger.{place}" if many else "trainer.logger" for place in range(len(_listed(given)))]
    built = [
        _logger(item, version, place) if isinstance(item, dict) else item
        for item, place in zip(_listed(given), places, strict=True)
    ]
    for item, place in zip(built, places, strict=True):
        if not isinstance(item, Logger | bool | None):
            told = f"{place}: an object of type {type(item).__name__} is no Logger of Lightning's. Give one."
            raise ConfigError([told])
    return built if many else built[0]


def logger_problems(given: Any) -> list[str]:
    """What the loggers of a `trainer` section refuse as they are built, such as a package that is not installed."""
    try:
        tried = [item for item in _listed(given) if not _begins_elsewhere(item)]
        loggers(tried if isinstance(given, list) else (tried or [None])[0], "dry")
    except ConfigError as error:
        return error.problems
    return []


def callback_problems(given: Any, logger: Any) -> list[str]:
    """The callbacks of a `trainer` section that are none, or that do not go with how a run trains and is resumed.

    Args:
        given: What was built of them: one, a list, or None.
        logger: The section's `logger`.
    """
    many = isinstance(given, list)
    items = _listed(given) if given is not None else []
    return [
        f"trainer.callbacks{f'.{place}' if many else ''}: {refusal}"
        for place, item in enumerate(items)
        if (refusal := _callback_refusal(item, bool(logger)))
    ]


def _callback_refusal(item: Any, logs: bool) -> str:
    """Why an object cannot be among a Trainer's callbacks; "" where it can."""
    name = type(item).__name__
    if not isinstance(item, Callback):
        return f"an object of type {name} is no Callback of Lightning's. Give one."
    if isinstance(item, SEARCHES):
        advice = "Leave it out, and compare values in a study of their own, by `sweep`."
        return f"{name} trains the model before the run does, and changes settings that are not recorded. {advice}"
    if isinstance(item, callbacks.ModelPruning):
        return f"{name} replaces parameters, so that the model could not be saved. Leave it out, or write a strategy."
    if isinstance(item, callbacks.BaseFinetuning):
        return f"{name} freezes weights, which a strategy decides. Leave it out, or write a strategy."
    if isinstance(item, callbacks.StochasticWeightAveraging):
        advice = "Give lightning.pytorch.callbacks.WeightAveraging, which averages too."
        return f"{name} adds an epoch and replaces the scheduler, so that no task could be resumed exactly. {advice}"
    if isinstance(item, callbacks.EarlyStopping) and not str(item.monitor).startswith("train/"):
        return (
            f"{name} monitors {item.monitor!r}, which is not measured. Choose 'train/loss', or 'train/nats_per_token'."
        )
    if isinstance(item, LOGGING) and not logs:
        return f"{name} writes to a logger, and there is none. Give trainer.logger, or leave it out."
    return ""


def _plugins(given: Any) -> list[Any]:
    """The config's plugins and our own: states straight to their file, and no requeueing but our resume."""
    plugins = [] if given is None else list(_listed(given))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(StateFile())
    elsewhere = TorchElasticEnvironment.detect() or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    if SLURMEnvironment.detect() and not elsewhere:
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def _logger(component: Mapping[str, Any], version: str, where: str) -> Any:
    """Builds a logger; the run's name tells it from the others, where the config does not."""
    known = inspect.signature(import_class(component["class_path"])).parameters
    own = "version" in known and "version" not in (component.get("init_args") or {})
    return build(component, where, **({"version": version} if own else {}))


def _begins_elsewhere(item: Any) -> bool:
    """Whether to build a logger would begin an experiment on a server: its library is there."""
    made = import_class(item["class_path"]) if isinstance(item, dict) else None
    if getattr(made, "__name__", "") not in OF_SERVERS:
        return False
    found = [value for value in vars(sys.modules[str(made.__module__)]).values() if isinstance(value, RequirementCache)]
    return all(map(bool, found))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _built(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_built(item, f"{where}.{place}") for place, item in enumerate(value)]
    return build(value, where) if isinstance(value, dict) and "class_path" in value else value
