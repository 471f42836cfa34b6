"""Stop a study in many ways, resume it by the same command, and compare it with one that was never stopped.

`python tests/end_to_end/killing.py whole [SEED]` makes all trials and prints a line for each; `short` makes a few of
them; `carried` makes a few with optimizer state that is carried from task to task.
Each trial is a forked child, so that libraries are imported once.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.studies import study, write_tasks
from omegaconf import OmegaConf

import workbench.results.run_folder as results
import workbench.runtime.files as files
import workbench.study.study as runs
import workbench.train.callbacks as callbacks
import workbench.train.checkpoint as checkpoint
import workbench.train.loop as loop
import workbench.train.module as module
from workbench.cli import app, guarded
from workbench.testing.tiny import tiny_backbone

STRATEGIES = {
    "seqft": {"class_path": "strategies.SeqFT"},
    "lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 2, "dropout": 0.3, "policy": "merge"}},
    "blocks": {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2, "each_task": True}},
    "replay": {"class_path": "strategies.Replay", "init_args": {"share": 0.3}},
}
POINTS: dict[str, tuple[Any, str]] = {
    "training": (module.ContinualModule, "training_step"),
    "saving, while writing": (checkpoint, "sync_file"),
    "saving, before it counts": (checkpoint.os, "replace"),
    "saving, before the old one goes": (checkpoint, "sync_folder"),
    "scoring": (callbacks, "score_task"),
    "writing a file": (files.os, "fsync"),
    "between tasks": (loop.SequenceRun, "begin"),
    "after a task": (callbacks.StrategyHooks, "after_task"),
    "between runs": (runs.Study, "make"),
    "ending a run": (results.RunFolder, "end"),
}
MOST_SECONDS = 5.0
"""From a signal to the end of the process."""
MOST_AGAIN = 10
"""Batches that a kill may cost: some steps to the last save, each of one batch or two."""
COMPARED = (
    "scores.csv",
    "nll.csv",
    "within.csv",
    "predictions/*.jsonl",
    "model/*.safetensors",
    "model/adapters/*/*.safetensors",
)


Trial = tuple[str, list[Callable[[], None]]]


class Trials:
    """One study, its end when nothing stops it, and what becomes of it otherwise.

    Args:
        folder: For everything.
        changes: To the study.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        gc.collect()
        gc.freeze()  # what is imported is left out of the collections in the forked children
        self.folder = folder
        tiny_backbone(num_hidden_layers=2).save(folder / "model")
        tasks = write_tasks(folder / "tasks", ("alpha", "beta", "gamma"), rows=22)
        trainer = {"max_epochs": 2, "accelerator": "cpu", **changes.pop("trainer", {})}
        data = {"batch_size": 4, "max_length": 64, **changes.pop("data", {})}
        raw = study(folder / "model", tasks, folder / "runs", strategies=STRATEGIES, trainer=trainer, data=data)
        raw |= {"save_every_n_steps": 2, "score_every_n_steps": 5, **changes}
        OmegaConf.save(OmegaConf.create(raw), folder / "small.yaml")
        self.counts = self._count()
        self.expected = self.end_of("alone")

    def _count(self) -> dict[str, int]:
        """Runs the study that the others are compared with; how often each point is passed."""
        file = self.folder / "counts"

        def prepare() -> None:
            totals = dict.fromkeys(POINTS, 0)

            def counting(point: str) -> Callable[[], None]:
                def count() -> None:
                    totals[point] += 1
                    file.write_text(repr(totals))

                return count

            for point in POINTS:
                intercept(point, counting(point))

        if self.child("alone", prepare):
            raise RuntimeError((self.folder / "errors.txt").read_text(encoding="utf-8"))
        return dict(eval(file.read_text()))  # noqa: S307

    def child(self, name: str, prepare: Callable[[], None] = lambda: None) -> int:
        """Runs the command in a child; its exit status, or minus the signal that ended it."""
        if (number := os.fork()) == 0:
            status = 99
            try:
                with open(os.devnull, "w") as nowhere, open(self.folder / "errors.txt", "a") as errors:
                    os.dup2(nowhere.fileno(), 1)
                    os.dup2(errors.fileno(), 2)
                    torch.set_num_threads(1)
                    batches = os.open(self.folder / "batches", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    intercept("training", lambda: os.write(batches, b"."))
                    prepare()
                    config = str(self.folder / "small.yaml")
                    status = guarded(lambda: app(["run", config, f"name={name}"]))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

    def end_of(self, name: str) -> dict[str, bytes]:
        """The compared files of a study by their path in it."""
        root = self.folder / "runs" / name
        found = [file for pattern in COMPARED for file in root.glob(f"*/*/*/{pattern}")]
        return {str(file.relative_to(root)): file.read_bytes() for file in sorted(found)}

    def outcome(self, name: str, stops: Sequence[Callable[[], None]]) -> str:
        """Stops a study once for each of `stops`, runs it to its end, and says what differs."""
        shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)
        (self.folder / "batches").unlink(missing_ok=True)
        (self.folder / "errors.txt").unlink(missing_ok=True)
        ends, slowest = [], 0.0
        for stop in stops:
            (self.folder / "signalled").unlink(missing_ok=True)
            ends.append(self.child(name, stop))
            if (self.folder / "signalled").is_file():
                slowest = max(slowest, time.monotonic() - float((self.folder / "signalled").read_text()))
        told = f"ended with {', '.join(map(str, dict.fromkeys(ends)))}" + (
            f" within {slowest:.1f} s" if slowest else ""
        )
        if status := self.child(name):
            return f"{told}, then with {status}: " + (self.folder / "errors.txt").read_text()[-400:]
        again = (self.folder / "batches").stat().st_size - self.counts["training"]
        told += f"; {again} of {self.counts['training']} batches made again"
        wrong = self.difference(name)
        if slowest > MOST_SECONDS or again > MOST_AGAIN * len(stops):
            errors = (self.folder / "errors.txt").read_text()[-400:]
            wrong = f"too slow: {errors}" if slowest > MOST_SECONDS else "too many batches"
        return f"{told}, {wrong or 'equal'}"

    def difference(self, name: str) -> str:
        """What is otherwise at the end of a study than it should be."""
        end = self.end_of(name)
        wrong = [file for file in {**self.expected, **end} if end.get(file) != self.expected.get(file)]
        left = [str(path) for path in (self.folder / "runs" / name).rglob("checkpoint")]
        return f"differs in {wrong[:3]}" if wrong else f"left {left}" if left else ""


def intercept(point: str, before: Callable[[], object]) -> None:
    """Has `before` called whenever a point is passed."""
    owner, name = POINTS[point]
    original = getattr(owner, name)

    def passing(*given: Any, **named: Any) -> Any:
        before()
        return original(*given, **named)

    setattr(owner, name, passing)


def at(point: str, number: int) -> Callable[[], None]:
    """Kills the process as it passes a point for the `number`th time."""

    def prepare() -> None:
        passed = iter(range(1, 10**9))

        def count() -> None:
            if next(passed) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        intercept(point, count)

    return prepare


def after(seconds: float, number: int = signal.SIGKILL) -> Callable[[], None]:
    """Sends the process a signal after some seconds, wherever it is."""

    def prepare() -> None:
        def send() -> None:
            time.sleep(seconds)
            Path("signalled").write_text(str(time.monotonic()))
            os.kill(os.getpid(), number)

        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job has not
        threading.Thread(target=send, daemon=True).start()

    return prepare


def full(size: int) -> Callable[[], None]:
    """No file can have more than so many bytes, as on a disk that has no more room."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def all_trials(trials: Trials, each: int, seconds: float, rng: random.Random) -> list[Trial]:
    """What is tried: `each` moments at every point, as many pairs of kills, random ones, one study killed 30 times."""
    made: list[Trial] = []
    for point, count in trials.counts.items():
        for number in sorted(rng.sample(range(1, count + 1), min(each, count))):
            made.append((f"{point}, {number} of {count}", [at(point, number)]))
    for _ in range(each):
        pair = rng.sample(sorted(trials.counts), 2)
        numbers = [rng.randint(1, max(1, trials.counts[point] // 2)) for point in pair]
        made.append((f"twice: {pair}, {numbers}", [at(*one) for one in zip(pair, numbers, strict=True)]))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            moments = [round(rng.uniform(0.1, seconds * share), 2) for share in (0.9, 0.5)]
            made.append((f"{number.name} after {moments} s", [after(one, number) for one in moments]))
        size = rng.randint(2_000, 120_000)
        made.append((f"no file above {size} bytes", [full(size)]))
    made.append(("30 times in training", [at("training", rng.randint(2, 9)) for _ in range(30)]))
    return made


def few_trials(trials: Trials, rng: random.Random) -> list[Trial]:
    """One at each kind of place."""
    points = ("training", "saving, before it counts", "scoring", "between tasks", "between runs")
    chosen = [(point, rng.randint(1, trials.counts[point])) for point in points]
    made: list[Trial] = [(f"{point}, {number}", [at(point, number), at("training", 3)]) for point, number in chosen]
    return [*made, ("SIGTERM", [after(1.0, signal.SIGTERM)]), ("no file above 9000 bytes", [full(9_000)])]


def carried_trials(trials: Trials, rng: random.Random) -> list[Trial]:
    """In mid-task, between tasks, and both in one run."""
    between, training = ([at(point, number) for number in (2, 5)] for point in ("between tasks", "training"))
    chosen = rng.randint(1, trials.counts["training"])
    return [("between tasks", between), (f"training, {chosen}", [at("training", chosen)]), ("both", between + training)]


def main(form: str, seed: int) -> int:
    """Makes the trials of a form, and prints a line for each; the number that did not end as they should."""
    plain: dict[str, Any] = {}
    workers = {"trainer": {"accumulate_grad_batches": 2}, "data": {"num_workers": 1}}
    wrong = 0
    few_strategies = {name: STRATEGIES[name] for name in ("seqft", "blocks")}
    carried: dict[str, Any] = {"carry_optimizer": True, "strategies": few_strategies}
    for variant in {"whole": [plain, workers, carried], "carried": [carried]}.get(form, [plain]):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            started, rng = time.monotonic(), random.Random(seed)
            trials = Trials(Path(folder), **variant)
            seconds = time.monotonic() - started
            print(f"alone: {seconds:.1f} s; {len(trials.expected)} files compared; {variant or 'plain'}", flush=True)
            few = {"short": few_trials, "carried": carried_trials}.get(form)
            chosen = few(trials, rng) if few else all_trials(trials, 5, seconds, rng)
            for number, (name, stops) in enumerate(chosen):
                told = trials.outcome(f"trial-{number}", stops)
                wrong += not told.endswith(", equal")
                print(f"{name}: {told}", flush=True)
                shutil.rmtree(trials.folder / "runs" / f"trial-{number}", ignore_errors=True)
    print(f"{wrong} trials went wrong")
    return min(wrong, 99)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
