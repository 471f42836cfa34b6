"""Where the runs of a study are executed: on this machine, on a Ray cluster, as jobs of SLURM.

A run is executed whole by one process, from its seed alone. The executor changes no number, except that the last bits
of sums on a CPU depend on the number of threads (`ThisMachine`).
"""

from __future__ import annotations

from workbench.executors.base import Executor, RunSpec
from workbench.executors.in_process import InProcess
from workbench.executors.ray import Ray
from workbench.executors.submitit import Submitit
from workbench.executors.this_machine import ThisMachine
from workbench.executors.workers import Workers

__all__ = ["Executor", "InProcess", "Ray", "RunSpec", "Submitit", "ThisMachine", "Workers"]
