"""A study's YAML: read, override, check, instantiate. Imports no torch."""

from __future__ import annotations

from workbench.config.components import Component, instantiate
from workbench.config.loading import dump, load
from workbench.config.parsing import parse
from workbench.config.schema import BackboneConfig, DataConfig, StrategyConfig, StudyConfig, TaskSettings
from workbench.errors import ConfigError

__all__ = [
    "BackboneConfig",
    "Component",
    "ConfigError",
    "DataConfig",
    "StrategyConfig",
    "StudyConfig",
    "TaskSettings",
    "dump",
    "instantiate",
    "load",
    "parse",
]
