"""What a Trainer is given: the config's own arguments, our defaults, and the plugins that exact resume needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from workbench.config import import_class, instantiate
from workbench.saving import StateFile
from workbench.sharding import chosen

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


def trainer_arguments(given: Mapping[str, Any], length: tuple[int, int] | None) -> dict[str, Any]:
    """Builds what a `trainer` section names by its class, and adds the rest; loggers are built apart.

    Args:
        given: The section.
        length: Epochs and most steps of an item; None: what the section says.
    """
    built = {key: _built(value) for key, value in given.items() if key != "logger"}
    if "strategy" in built:
        built["strategy"] = chosen(built["strategy"])
    if length is not None:
        built["max_epochs"], built["max_steps"] = length
    return TRAINER_DEFAULTS | built | {"plugins": _plugins(built.get("plugins"))}


def loggers(given: Any, version: str) -> Any:
    """Builds the loggers of a `trainer` section.

    Args:
        given: One, a list of them, or what Lightning takes in their place.
        version: Tells a run's logger from those of others, where the config does not.
    """
    built = [_logger(item, version) if isinstance(item, dict) else item for item in _listed(given)]
    return built if isinstance(given, list) else built[0]


def _plugins(given: Any) -> list[Any]:
    """The config's plugins and our own: states straight to their file, and no requeueing but our resume."""
    plugins = [] if given is None else list(_listed(given))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(StateFile())
    elsewhere = TorchElasticEnvironment.detect() or any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    if SLURMEnvironment.detect() and not elsewhere:
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def _logger(component: Mapping[str, Any], version: str) -> Any:
    """Builds a logger; the run's name tells it from the others, where the config does not."""
    known = inspect.signature(import_class(component["class_path"])).parameters
    own = "version" in known and "version" not in (component.get("init_args") or {})
    return instantiate(component, **({"version": version} if own else {}))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return [_built(item) for item in value]
    return instantiate(value) if isinstance(value, dict) and "class_path" in value else value
