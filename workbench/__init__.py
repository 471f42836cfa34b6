"""A workbench for continual learning of LLaMA-family language models.

Names resolve when they are first used, so that a config error or a report does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.backbone import Backbone
    from workbench.benchmark import Benchmark, Task
    from workbench.strategy import ContinualStrategy
    from workbench.study import Study

_HOMES = {
    "Backbone": "backbone",
    "Benchmark": "benchmark",
    "ContinualStrategy": "strategy",
    "Study": "study",
    "Task": "benchmark",
}
__all__ = ["Backbone", "Benchmark", "ContinualStrategy", "Study", "Task"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Return a public name, imported on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}. Choose from {', '.join(__all__)}.")
    return getattr(import_module(f"workbench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
