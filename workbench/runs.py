"""The runs of a study, and how one of them is made from the config alone: here, or in any other process."""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from workbench.assembly import Assembly
from workbench.components import Component, ConfigError
from workbench.config import StudyConfig, dump, for_seed
from workbench.course import MakeTrainer, count_bytes
from workbench.data import ContinualDataModule
from workbench.display import Display
from workbench.environment import PeakMemory, describe_environment
from workbench.errors import describe_error, raised_by_reader
from workbench.existing import own_inputs
from workbench.files import write_whole
from workbench.loop import learn_in_sequence
from workbench.module import ContinualModule
from workbench.moments import Moments
from workbench.orders import Entry
from workbench.processes import is_first, one_after_the_other, world
from workbench.results import RunFolder
from workbench.returned import HookError
from workbench.saving import Intervals
from workbench.schema import DEFAULT_EXECUTOR
from workbench.untouched import untouched_path, untouched_row

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
FAILURE = "failure.txt"
"""The traceback of what ended a run, in its folder until the run goes on."""


@dataclass(frozen=True)
class Run:
    """One cell of a study: a strategy, an order of the tasks, a seed."""

    strategy: str
    order: str
    seed: int

    @property
    def title(self) -> str:
        """For a person."""
        return f"{self.strategy}, order {self.order}, seed {self.seed}"


class Runs:
    """All runs of a study whose config was found to be right.

    Pickled it is the config, and no model goes along.

    Args:
        config: The study's.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self._assembly = Assembly(for_seed(config, config.seeds[0]))
        self.folder = Path(config.output) / config.name

    def __reduce__(self) -> tuple[Any, ...]:
        return Runs, (self.config,)

    @property
    def assembly(self) -> Assembly:
        """The objects of the first seed's runs."""
        return self.assembly_of(self.config.seeds[0])

    def assembly_of(self, seed: int) -> Assembly:
        """The objects of a seed's runs: the same for all seeds, unless the config leaves room for a seed in them.

        One set of them is held at a time.
        """
        config = for_seed(self.config, seed)
        if self._assembly.config != config:
            self._assembly = Assembly(config)
        return self._assembly

    @cached_property
    def orders(self) -> dict[str, Entry]:
        """By name, as the config of a run alone says them: those that the benchmark does not have, task by task."""
        own = self.assembly.benchmark.orders
        return {name: name if name in own else {name: tasks} for name, tasks in self.assembly.orders.items()}

    @property
    def runs(self) -> list[Run]:
        """In the order in which they are made."""
        return [
            Run(strategy, order, seed)
            for strategy in self.config.strategies
            for order in self.orders
            for seed in self.config.seeds
        ]

    def path(self, run: Run) -> Path:
        """The folder of one run."""
        return self.folder / run.strategy / run.order / f"seed-{run.seed}"

    def results(self, run: Run) -> RunFolder:
        """What is in the folder of one run.

        Raises:
            ConfigError: Its journal is damaged.
        """
        return RunFolder(self.path(run), writes=is_first())

    def waiting(self, display: Display) -> list[Run]:
        """The runs that are not finished; tells of those that are."""
        finished = [run for run in self.runs if self.results(run).finished]
        for run in finished:
            display.note(f"{run.title}: finished before, kept.")
        return [run for run in self.runs if run not in finished]

    def make(self, run: Run, display: Display, place: str = "") -> str | None:
        """Makes a run unless it is finished, or goes on with it.

        Args:
            run: One of this study's.
            display: What a person sees.
            place: Stands before the run's title there.

        Returns:
            Why it was given up, if it was.
        """
        with one_after_the_other():
            results = self.results(run)
        if results.finished:
            display.note(f"{run.title}: finished before, kept.")
            return None
        if not results.journal.records:
            results.clear()
        display.run_begins(f"{place}{run.title}", *self.assembly_of(run.seed).tested_names(run.order))
        if (error := what_ended(lambda: self._run(run, results, display))) is None:
            display.run_ends(results.summary())
            return None
        failure = f"{run.title} failed: {_why(error)}"
        if is_first():
            write_whole(results.path / FAILURE, "".join(traceback.format_exception(error)))
        display.note(failure)
        return failure

    def _run(self, run: Run, results: RunFolder, display: Display) -> None:
        assembly = self.assembly_of(run.seed)
        module, data, make_trainer = self._parts(run)
        alone = self.narrowed(run)
        if is_first():
            (results.path / FAILURE).unlink(missing_ok=True)
        results.write_config(dump(alone))
        inputs = {**assembly.inputs, **own_inputs(alone)}
        stated = {"protocol": assembly.protocol(run.strategy, run.order, run.seed), "inputs": inputs}
        if before := results.environment():
            results.add_to_environment("resumed", {"times": before.get("resumed", {}).get("times", 0) + 1})
        else:
            answers = {one.task: one.stated for one in assembly.reaches}
            results.write_environment(describe_environment() | stated | ({"answers": answers} if answers else {}))
        row = untouched_row(self._untouched_path(run), assembly, module, data, make_trainer, display)
        results.copy_row(0, row, [task.name for task in data.tested])
        memory = PeakMemory(assembly.device, count_bytes(assembly.backbone))
        learn_in_sequence(module, data, make_trainer, results, display, _intervals(self.config))
        results.write_environment(results.environment() | {"peak_memory_bytes": memory.bytes()})

    def _parts(self, run: Run) -> tuple[ContinualModule, ContinualDataModule, MakeTrainer]:
        """What a run is made of, the model as loaded."""
        assembly = self.assembly_of(run.seed)
        gc.collect()  # a Trainer and its model hold each other, and so the memory of the run before
        assembly.backbone.restore()
        assembly.backbone.to(assembly.device)
        module = ContinualModule(
            assembly.backbone, assembly.strategy(run.strategy), assembly.optimizer_factory(run.strategy)
        )
        module.carried = Moments() if assembly.carries_optimizer else None
        data = assembly.data(run.order, run.seed, run.strategy)
        return module, data, assembly.trainer_factory(run.strategy, self.path(run))

    def score_untouched(self, display: Display) -> str | None:
        """Scores row 0 of all runs that are not finished, as far as it is not there.

        Returns:
            Why it cannot be scored, and so no run be made, if a scorer failed.
        """
        seen = set()
        for run in sorted(self.waiting(Display()), key=lambda run: run.seed):
            path = self._untouched_path(run)
            if (path, run.order) in seen:
                continue
            seen.add((path, run.order))
            parts = (path, self.assembly_of(run.seed), *self._parts(run), display)
            if error := what_ended(partial(untouched_row, *parts)):
                return _why(error)
        return None

    def _untouched_path(self, run: Run) -> Path:
        assembly = self.assembly_of(run.seed)
        return untouched_path(self.folder, assembly, run.strategy, None if self.config == assembly.config else run.seed)

    def release(self) -> None:
        """Lets go of the model, for others that need the room."""
        self._assembly = Assembly(self._assembly.config)
        gc.collect()
        torch.cuda.empty_cache()  # nothing where no GPU was used

    def narrowed(self, run: Run) -> StudyConfig:
        """The config of one run alone, which runs again by itself."""
        chosen = {run.strategy: self.config.strategies[run.strategy]}
        alone = replace(self.config, strategies=chosen, orders=[self.orders[run.order]], seeds=[run.seed])
        alone = replace(alone, existing="resume", executor=Component(DEFAULT_EXECUTOR))
        return for_seed(alone, run.seed)


def what_ended(work: Callable[[], object]) -> Exception | None:
    """Do a run's work; an error that ends it and not its study is returned.

    What a hook that failed has switched in torch is as before: the next run is made as if it stood alone.
    """
    gradients, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        work()
    except Exception as error:  # a stranger's hook or scorer may raise anything
        if not ends_the_run(error):
            raise
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        return error
    return None


def ends_the_run(error: Exception) -> bool:
    """Whether an error ends one run and not its study.

    Of several processes only what all of them raise alike does: the others would wait for one that is gone. A disk that
    fails ends the study, as does a config that cannot be; not so a file that a strategy or a scorer itself asks for.
    """
    if world() > 1:
        return isinstance(error, FloatingPointError | HookError | MisconfigurationException)
    if isinstance(error, OSError | SafetensorError):
        return raised_by_reader(error) and getattr(error, "errno", None) not in DISK
    return not isinstance(error, ConfigError)


def _why(error: Exception) -> str:
    """What is told of an error; a loss that is not finite and memory that ran out have words of their own."""
    plain = isinstance(error, FloatingPointError | HookError | torch.OutOfMemoryError) and not raised_by_reader(error)
    return str(error) if plain else f"{describe_error(error)}. Mend it; the same command goes on with this run"


def _intervals(config: StudyConfig) -> Intervals:
    return Intervals(config.score_every_n_steps, config.save_every_n_steps, config.save_every_seconds)
