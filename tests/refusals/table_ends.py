"""What ends a run, and runs that cannot be gone on with: signals, disks, strategies that change their mind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
from bad_inputs import Place, Row
from datasets import Dataset
from helpers.studies import learn, study
from lightning.pytorch import Callback
from torch import Tensor

from workbench.backbone import Backbone, Batch
from workbench.benchmark import Task
from workbench.config import parse
from workbench.errors import ConfigError
from workbench.executors.guard import UNGUARDED, refuse_unguarded
from workbench.runtime.files import write_whole
from workbench.strategy import ContinualStrategy
from workbench.study import Study, dry_run
from workbench.testing.conformance import ConformanceError
from workbench.testing.recorder import RecordedRun, Unfinished
from workbench.testing.tiny import Stopped, tiny_backbone, tiny_run
from workbench.train.callbacks import combine_callbacks
from workbench.train.checkpoint import StateFolder

EARLY = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "train/ewc"}}
FOREIGN = """
from workbench.strategy import ContinualStrategy


class It(ContinualStrategy):
    def setup(self, backbone):
        raise LookupError("Nothing is there. Fix it.")
"""
AGAIN = "to make the run again"
STUDY = "run small.yaml"


class Ends(ContinualStrategy):
    """Is told to stop in the first batch of its run; in the plan there is no folder yet.

    Args:
        how: The name of a signal; "nan": the loss is not finite; "full": the disk has no more room; "jammed":
            a device fails.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        begun = Path("runs").exists() or Path("run").exists()
        return {"nothing": torch.tensor(float("nan"))} if self.how == "nan" and begun else {}

    def edit_gradients(self, backbone: Any) -> None:
        if not (Path("runs").exists() or Path("run").exists()):
            return
        if self.how == "full":
            raise OSError(28, "No space left on device")
        if self.how == "jammed":
            raise RuntimeError("A device does not answer. Wait for it.")
        os.kill(os.getpid(), getattr(signal, self.how))


class Forgetful(ContinualStrategy):
    """Freezes a weight at another value each time: what a resumed run cannot make again."""

    values = count()

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        norm = next(value for name, value in backbone.model.named_parameters() if name.endswith("norm.weight"))
        norm.requires_grad_(False).data.fill_(next(self.values))


class Moody(ContinualStrategy):
    """Trains on fewer rows each time that it is asked."""

    asked = count()

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        return rows.select(range(len(rows) - next(self.asked)))


class Interrupted(ContinualStrategy):
    """Is stopped while it says which layers it adds."""

    def plan(self, depth: int) -> None:
        raise KeyboardInterrupt


class Fails(ContinualStrategy):
    def setup(self, backbone: Backbone) -> None:
        raise ZeroDivisionError("halves")


class NoRoom(ContinualStrategy):
    """Has no memory left where answers are given."""

    def answer(self, backbone: Backbone, task: Task, prompts: Any) -> list[str]:
        raise torch.OutOfMemoryError("no room for answers. Choose a smaller data.eval_batch_size")


class Unplain(ContinualStrategy):
    """Has a state that no resumed run can load."""

    def get_extra_state(self) -> Any:
        return Path("memory")


def planned(kind: type[ContinualStrategy], *says: str) -> Row:
    """A study that is refused by its plan."""
    strategies = {"mine": {"class_path": f"table_ends.{kind.__name__}"}}
    return command(f"{kind.__name__} is planned", STUDY, lambda place: place.config(strategies=strategies), *says)


def full(place: Place) -> object:
    """A study whose disk has no room for its results."""
    usage = dry_run.shutil.disk_usage
    dry_run.shutil.disk_usage = lambda path: usage(path)._replace(free=9)
    try:
        return Study(parse(study(place.model, place.tasks, place.folder / "runs"))).plan()
    finally:
        dry_run.shutil.disk_usage = usage


def ends(how: str) -> Callable[[Place], None]:
    """A study whose strategy ends it in its first batch."""
    strategy = {"class_path": "table_ends.Ends", "init_args": {"how": how}}
    return lambda place: place.config(strategies={"ends": strategy})


def command(name: str, line: str, lay: Callable[[Place], object], *says: str, **how: Any) -> Row:
    return Row(f"{line}, {name}", says, argv=line.split(), lay=lay, **how)


def begun(strategy: type[ContinualStrategy], batches: int) -> Callable[[Place], None]:
    """A run that was stopped after some batches."""

    def lay(place: Place) -> None:
        with suppress(Stopped):
            tiny_run(strategy(), place.folder / "run", stop_after=batches)

    return lay


def going_on(name: str, strategy: type[ContinualStrategy], *says: str) -> Row:
    """A run that cannot be gone on with."""
    return Row(
        name, says, lambda place: tiny_run(strategy(), place.folder / "run"), lay=begun(strategy, 2), error=ConfigError
    )


def shorter(place: Place) -> None:
    begun(ContinualStrategy, 5)(place)
    file = place.folder / "run" / "journal.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:3]))


def pickled(place: Place) -> None:
    StateFolder(place.folder / "run" / "checkpoint").publish(lambda file: torch.save({"workbench": Path("x")}, file))


def elsewhere(place: Place) -> None:
    """A state of another version."""
    StateFolder(place.folder / "run" / "checkpoint").publish(lambda file: torch.save({"workbench": {"at": 1}}, file))


def unwritable(_: Path) -> None:
    raise OSError(28, "No space left on device")


def broken(_: Path) -> None:
    raise ConnectionResetError(104, "Connection reset by peer")


class Loses(ContinualStrategy):
    """Loses the process that makes its batches."""

    def penalties(self, backbone: Any, batch: Any, output: Any) -> dict[str, Tensor]:
        for process in active_children():
            process.kill()
            process.join()
            time.sleep(1.0)  # until the data loader has noticed
        return {}


def foreign(place: Place) -> None:
    """Plans a study whose strategy is installed, and fails in a way that it does not word."""
    folder = place.folder / "site-packages"
    folder.mkdir()
    (folder / "foreign.py").write_text(FOREIGN, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        strategies = {"it": {"class_path": "foreign.It"}}
        Study(parse(study(place.model, place.tasks, place.folder / "runs", strategies=strategies))).plan()
    finally:
        sys.path.remove(str(folder))


class Late(Callback):
    """Changes a weight when it has been scored."""

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        next(module.parameters()).data.add_(1.0)


def too_late(place: Place) -> None:
    learn(ContinualStrategy(), place.folder / "run", extra=lambda given: combine_callbacks(given, [Late()]))


def trial(what: Callable[[RecordedRun], object], strategy: type[ContinualStrategy]) -> Callable[[Place], object]:
    return lambda place: what(RecordedRun(strategy, tiny_backbone, place.folder / "trial"))


RESUMED = [
    going_on(
        "a forgetful strategy", Forgetful, "The weights that `setup` and `before_task` give are not", "Delete", AGAIN
    ),
    going_on("other rows", Moody, "task_0 was begun with other rows than the strategy gives now. Delete", AGAIN),
    Row(
        "a shorter journal",
        ("journal.jsonl has lost lines", "Delete", AGAIN),
        going_on("", ContinualStrategy).call,
        lay=shorter,
        error=ConfigError,
    ),
    Row(
        "a pickle for a state",
        ("holds more than tensors and plain values", "Delete", AGAIN),
        going_on("", ContinualStrategy).call,
        lay=pickled,
        error=ConfigError,
    ),
    Row(
        "a state of another version",
        ("was saved by another version", "Delete", AGAIN),
        going_on("", ContinualStrategy).call,
        lay=elsewhere,
        error=ConfigError,
    ),
    Row(
        "no room for a state",
        ("checkpoint: the state could not be saved", "Make room there"),
        lambda place: StateFolder(place.folder / "checkpoint").publish(unwritable),
        error=OSError,
        lay=lambda place: (place.folder / "checkpoint").mkdir(),
    ),
    Row(
        "a state that another process did not help to save",
        ("Connection reset by peer",),
        lambda place: StateFolder(place.folder / "checkpoint").publish(broken),
        error=ConnectionResetError,
        lay=lambda place: (place.folder / "checkpoint").mkdir(),
    ),
    Row(
        "a folder where a file belongs",
        ("Is a directory", "text"),
        lambda place: write_whole(place.folder / "text", "a"),
        lay=lambda place: (place.folder / "text").mkdir(),
        error=OSError,
    ),
]
ENDS = [
    command(
        "an interrupt",
        STUDY,
        ends("SIGINT"),
        "interrupted. All that was measured and the last saved state are kept",
        error=KeyboardInterrupt,
        status=130,
        leaves=True,
    ),
    command(
        "a termination",
        STUDY,
        ends("SIGTERM"),
        "terminated. All that was measured and the last saved state are kept",
        error=SystemExit,
        status=143,
        leaves=True,
    ),
    command(
        "no loss",
        STUDY,
        ends("nan"),
        "alpha: the loss is nan, nothing nan at step 1",
        "Choose a lower learning rate",
        status=1,
        leaves=True,
    ),
    command(
        "a full disk",
        STUDY,
        ends("full"),
        "No space left on device",
        "Run the same command again to resume",
        status=1,
        leaves=True,
    ),
    command(
        "an early stop by what is not measured",
        STUDY,
        lambda place: place.config(trainer={"max_epochs": 1, "accelerator": "cpu", "callbacks": [EARLY]}),
        "failed: trainer.callbacks: EarlyStopping monitors 'train/ewc', and alpha has train/loss, train/nats",
        "Choose one of these.",
        status=1,
        leaves=True,
    ),
    command(
        "a process lost that makes batches",
        f"{STUDY} data.num_workers=1",
        lambda place: place.config(strategies={"it": {"class_path": "table_ends.Loses"}}),
        "data.num_workers: a process that makes batches was lost, which lack of memory may have caused (Data",
        "Lower data.num_workers",
        status=1,
        leaves=True,
    ),
    Row(
        "a device that fails",
        ("A device does not answer. Wait for it.",),
        lambda place: tiny_run(Ends("jammed"), place.folder / "run"),
        error=RuntimeError,
        leaves=True,
    ),
    Row(
        "a callback that changes weights after scoring",
        ("one of Late changed the weights after they were scored", "Use on_train_end"),
        too_late,
        error=ConfigError,
        leaves=True,
    ),
    Row(
        "a plan that an installed strategy breaks",
        ("strategies.it: LookupError: Nothing is there.", "Fix it."),
        foreign,
        error=ConfigError,
        leaves=True,
    ),
    Row(
        "a termination without the command",
        (),
        lambda place: tiny_run(Ends("SIGTERM"), place.folder / "run"),
        error=SystemExit,
        leaves=True,
    ),
    Row(
        "a run that is stopped",
        (),
        lambda place: tiny_run(ContinualStrategy(), place.folder / "run", stop_after=1),
        error=Stopped,
        leaves=True,
    ),
    Row("no end of a trial", (), trial(lambda made: made.finished, Fails), error=Unfinished, leaves=True),
    Row("no model of a trial", (), trial(lambda made: made.learnt, Fails), error=Unfinished, leaves=True),
    command(
        "an interrupt",
        "grow mini out table_ends.Interrupted",
        lambda _: None,
        "interrupted. Nothing was written.",
        error=KeyboardInterrupt,
        status=130,
    ),
    command(
        "a strategy that fails",
        "check table_ends.Fails",
        lambda _: None,
        "ZeroDivisionError: halves",
        status=1,
        error=ConformanceError,
    ),
    command(
        "a benchmark that fails",
        "check table_models.Bench",
        lambda _: None,
        "orders.default: task_1 missing. An order has every task",
        status=1,
        error=ConformanceError,
    ),
]
PLANNED = [
    planned(NoRoom, "strategies.mine: a step needs more memory than there is: no room for answers."),
    planned(
        Unplain, "strategies.mine: its state cannot be saved: it holds more than tensors", "Give `get_extra_state`"
    ),
    Row("no room for results", ("output: a run needs about", "Make room, or choose another disk."), full),
    Row(
        "a script without a guard",
        ('Put what runs the study under `if __name__ == "__main__":`',),
        lambda _: refuse_unguarded(UNGUARDED),
        error=SystemExit,
    ),
]
ROWS = [*RESUMED, *ENDS, *PLANNED]
