"""Where the runs of a study are executed: in this process, in workers, on a Ray cluster.

The executor changes no number: a run is executed whole by one process, with the same threads, from its seed alone.
"""

from __future__ import annotations

from workbench.executors.base import Executor, RunSpec
from workbench.executors.in_process import InProcess
from workbench.executors.ray import Ray
from workbench.executors.workers import Workers

__all__ = ["Executor", "InProcess", "Ray", "RunSpec", "Workers"]
