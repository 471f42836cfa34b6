"""Execute one run: build its objects, take over row 0, learn the tasks, and decide what an error ends."""

from __future__ import annotations

import errno
import gc
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from workbench.config import dump
from workbench.display import Display
from workbench.errors import ConfigError, describe_error, raised_by_reader
from workbench.executors import RunSpec
from workbench.results import RunFolder
from workbench.runtime.distributed import is_first, world
from workbench.runtime.environment import PeakMemory, describe_environment
from workbench.runtime.files import write_whole
from workbench.runtime.machine import THREADS, using_threads
from workbench.strategy import HookError
from workbench.study.build import Assembly
from workbench.study.resume import own_inputs
from workbench.study.zero_shot import zero_shot_row
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.checkpoint import Intervals
from workbench.train.loop import MakeTrainer, count_bytes
from workbench.train.optimizer_state import Moments

FAILURE = "failure.txt"
"""Traceback of the error that ended a run, in its folder until the run is resumed."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def execute_run(
    run: RunSpec, assembly: Assembly, zero_shot: Path, results: RunFolder, display: Display, place: str = ""
) -> str | None:
    """Execute or resume a run that is not finished.

    Args:
        run: The run.
        assembly: Objects of the runs with its seed.
        zero_shot: Folder of its row 0.
        results: Its results so far.
        display: Where progress is shown.
        place: Text before the run's title in the display.

    Returns:
        The reason if the run failed.
    """
    if not results.journal.records:
        results.clear()
    display.run_begins(run.title, *assembly.tested_names(run.order), place)
    error = error_of_run(lambda: _learn(run, assembly, zero_shot, results, display))
    if error is None:
        display.run_ends(results.summary())
        return None
    failure = f"{run.title} failed: {failure_reason(error)}"
    if is_first():
        write_whole(results.path / FAILURE, "".join(traceback.format_exception(error)))
    display.run_fails(failure)
    return failure


def _learn(run: RunSpec, assembly: Assembly, zero_shot: Path, results: RunFolder, display: Display) -> None:
    """Write what the run is, copy its row 0, and learn the tasks."""
    module, data, make_trainer = run_parts(run, assembly)
    if is_first():
        (results.path / FAILURE).unlink(missing_ok=True)
    results.write_config(dump(run.config))
    _write_environment(run, assembly, results)
    row = zero_shot_row(zero_shot, assembly, module, data, make_trainer, display)
    results.copy_row(0, row, [task.name for task in data.tested])
    memory = PeakMemory(assembly.device, count_bytes(assembly.backbone))
    config = run.config
    intervals = Intervals(config.score_every_n_steps, config.save_every_n_steps, config.save_every_seconds)
    with using_threads(None if THREADS in os.environ else recorded_threads(results)):
        learn_in_sequence(module, data, make_trainer, results, display, intervals)
    results.write_environment(results.environment() | {"peak_memory_bytes": memory.bytes()})


def recorded_threads(results: RunFolder) -> int | None:
    """Return the threads of torch with which a run was begun, and is resumed: sums depend on them."""
    count = results.environment().get("hardware", {}).get("threads")
    return count if isinstance(count, int) and count > 0 else None


class Parts(NamedTuple):
    """The objects that learn a run, with the model as loaded."""

    module: ContinualModule
    data: ContinualDataModule
    make_trainer: MakeTrainer


def run_parts(run: RunSpec, assembly: Assembly) -> Parts:
    """Build the objects that learn a run."""
    gc.collect()  # a Trainer and its model refer to each other, and so keep the memory of the previous run
    assembly.backbone.restore()
    assembly.backbone.to(assembly.device)
    module = ContinualModule(
        assembly.backbone,
        assembly.strategy(run.strategy),
        assembly.optimizer_factory(run.strategy),
        carried=Moments() if assembly.carries_optimizer else None,
    )
    data = assembly.data(run.order, run.seed, run.strategy)
    return Parts(module, data, assembly.trainer_factory(run.strategy, run.folder))


def _write_environment(run: RunSpec, assembly: Assembly, results: RunFolder) -> None:
    """Write what the run was executed with; of a run that is resumed, count how often."""
    if before := results.environment():
        results.add_to_environment("resumed", {"times": before.get("resumed", {}).get("times", 0) + 1})
        return
    protocol = assembly.protocol(run.strategy, run.order, run.seed)
    inputs = {**assembly.inputs, **own_inputs(run.config)}
    answers = {reach.task: reach.stated for reach in assembly.reaches}
    environment = describe_environment() | {"protocol": protocol, "inputs": inputs}
    results.write_environment(environment | ({"answers": answers} if answers else {}))


def error_of_run(work: Callable[[], object]) -> Exception | None:
    """Do a part of a run's work; return an error that ends the run, raise one that ends the study.

    Global switches of torch that a failed hook has changed are set back, so that the next run is executed as if alone.
    """
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        work()
    except Exception as error:  # a hook or a scorer of a user may raise anything
        if not ends_the_run(error):
            raise
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        return error
    return None


def ends_the_run(error: Exception) -> bool:
    """Return True if an error ends one run, and False if it ends the study.

    With several processes, only errors that all of them raise alike end a run: otherwise the others would wait for the
    one that is gone. A disk that fails ends the study, as does an invalid config; a file that a strategy or a scorer
    itself opens ends its run.
    """
    if world() > 1:
        return isinstance(error, FloatingPointError | HookError | MisconfigurationException)
    if isinstance(error, OSError | SafetensorError):
        return raised_by_reader(error) and getattr(error, "errno", None) not in DISK_ERRORS
    return not isinstance(error, ConfigError)


def failure_reason(error: Exception) -> str:
    """Describe an error that ended a run; a loss that is not finite and a lack of memory describe themselves."""
    plain = isinstance(error, FloatingPointError | HookError | torch.OutOfMemoryError) and not raised_by_reader(error)
    return str(error) if plain else f"{describe_error(error)}. Fix it; the same command resumes this run"
