"""Arguments of a Trainer: the config's own, the defaults of this package, and the plugins that exact resume needs."""

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
REMOTE_LOGGERS = ("CometLogger", "NeptuneLogger", "LitLogger")
"""Loggers that may begin an experiment on their server as they are built."""


def trainer_arguments(given: Mapping[str, Any], length: tuple[int, int] | None) -> dict[str, Any]:
    """Build what a `trainer` section names by its class, and add defaults and plugins; loggers are built apart.

    Args:
        given: The section.
        length: Most epochs and most optimizer steps of an item; None: what the section says.
    """
    built = {key: _build_nested(value, f"trainer.{key}") for key, value in given.items() if key != "logger"}
    if "strategy" in built:
        built["strategy"] = resolve_strategy(built["strategy"])
    if length is not None:
        built["max_epochs"], built["max_steps"] = length
    return TRAINER_DEFAULTS | built | {"plugins": _plugins(built.get("plugins"))}


def _build_nested(value: Any, where: str) -> Any:
    """Build a component or each of a list of them; other values stay as they are."""
    if isinstance(value, list):
        return [_build_nested(item, f"{where}.{place}") for place, item in enumerate(value)]
    return build(value, where) if isinstance(value, dict) and "class_path" in value else value


def _plugins(given: Any) -> list[Any]:
    """Add to the config's plugins: states go straight to their file, and SLURM does not requeue what resume does."""
    plugins = [] if given is None else list(_as_list(given))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(StateFile())
    elsewhere = TorchElasticEnvironment.detect() or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    if SLURMEnvironment.detect() and not elsewhere:
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def loggers(given: Any, version: str) -> Any:
    """Build the loggers of a `trainer` section.

    Args:
        given: One, a list of them, or a value that Lightning takes in their place.
        version: Distinguishes a run's logger from those of other runs, where the config does not.

    Raises:
        ConfigError: One cannot be built, or is none.
    """
    many = isinstance(given, list)
    built = []
    for place, item in enumerate(_as_list(given)):
        where = f"trainer.logger.{place}" if many else "trainer.logger"
        logger = _logger(item, version, where) if isinstance(item, dict) else item
        if not isinstance(logger, Logger | bool | None):
            message = f"an object of type {type(logger).__name__} is no Logger of Lightning's. Give one."
            raise ConfigError([f"{where}: {message}"])
        built.append(logger)
    return built if many else built[0]


def _logger(component: Mapping[str, Any], version: str, where: str) -> Any:
    """Build a logger, with the run's version if its class takes one and the config does not give it."""
    known = inspect.signature(import_class(component["class_path"])).parameters
    own = "version" in known and "version" not in (component.get("init_args") or {})
    return build(component, where, **({"version": version} if own else {}))


def logger_problems(given: Any) -> list[str]:
    """Return what the loggers of a `trainer` section refuse as they are built, such as a missing package."""
    try:
        tried = [item for item in _as_list(given) if not _begins_remotely(item)]
        loggers(tried if isinstance(given, list) else (tried or [None])[0], "dry")
    except ConfigError as error:
        return error.problems
    return []


def _begins_remotely(item: Any) -> bool:
    """Return True if building a logger would begin an experiment on a server: its library is installed."""
    logger = import_class(item["class_path"]) if isinstance(item, dict) else None
    if getattr(logger, "__name__", "") not in REMOTE_LOGGERS:
        return False
    module = vars(sys.modules[str(logger.__module__)])
    return all(bool(value) for value in module.values() if isinstance(value, RequirementCache))


def callback_problems(given: Any, logger: Any) -> list[str]:
    """Return what is wrong with the callbacks of a `trainer` section: no callbacks, or at odds with training or resume.

    Args:
        given: The built callbacks: one, a list, or None.
        logger: The section's `logger`.
    """
    many = isinstance(given, list)
    items = _as_list(given) if given is not None else []
    return [
        f"trainer.callbacks{f'.{place}' if many else ''}: {refusal}"
        for place, item in enumerate(items)
        if (refusal := _callback_refusal(item, bool(logger)))
    ]


def _callback_refusal(item: Any, logs: bool) -> str:
    """Return why an object cannot be among a Trainer's callbacks; "" if it can."""
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


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
