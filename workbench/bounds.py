"""What `bounds: true` adds to a study: the strategies that are yardsticks."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from workbench.components import Component
from workbench.schema import StrategyConfig, StudyConfig

PACKAGE = "strategies"


def with_bounds(config: StudyConfig) -> StudyConfig:
    """The config with the yardsticks that it asks for and does not have, each under the name of its file.

    They are found by what they say of themselves (`ContinualStrategy.bound`), and learn with the study's settings. A
    config that names one itself, with a rate of its own, keeps that one alone.
    """
    if not config.bounds:
        return config
    package = import_module(PACKAGE)
    there = {component.class_path for strategy in config.strategies.values() for component in strategy.components}
    strategies = dict(config.strategies)
    for name in package.__all__:
        found, path = getattr(package, name), f"{PACKAGE}.{name}"
        if found.bound and path not in there:
            strategies.setdefault(found.__module__.rpartition(".")[2], StrategyConfig([Component(path)]))
    return replace(config, bounds=False, strategies=strategies)
