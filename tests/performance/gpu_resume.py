"""A run that is killed in mid-task and resumed, beside one that is not, on a device: the same bits, or how far apart.

`python tests/performance/gpu_resume.py FOLDER SHAPE METHOD STEP` makes the run of a folder, or resumes it, and kills
itself in the second task after that step (0: not at all).
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flops import B1, M135, SMALL, Shape
from gpu_shared import Result, accelerator, backbone, task
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file
from ways import adam

from strategies import LoRA, SeqFT
from workbench.benchmark import Task
from workbench.results import RunFolder
from workbench.study.trainer import trainer_arguments
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.checkpoint import Intervals

STRATEGIES: dict[str, Any] = {"lora": lambda: LoRA(dropout=0.1), "full": SeqFT}
TITLES = {"lora": "LoRA with dropout", "full": "full fine-tuning"}
STEPS, SAVE_EVERY, KILL_AFTER = 12, 8, 10
"""Of each task; the state is saved after step 8 of the second task, and the process dies after its step 10."""
ROWS, ANSWER = 8, 16
LENGTH = {SMALL.title: 32, M135.title: 256, B1.title: 256}
COMPARED = ("scores.csv", "nll.csv", "train.csv", "predictions/*.jsonl", "model/*.safetensors")
NOTES = "nondeterministic.json"


class Dying(Callback):
    """Kills its process after a step of a task."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def learn(folder: Path, shape: Shape, method: str, step: int) -> None:
    """Make a run of two tasks, or resume it, with the kernels of the workbench's default (`deterministic: warn`)."""
    lengths = [(LENGTH[shape.title], ANSWER)] * (ROWS * STEPS)
    tasks = [task(name, shape, lengths, seed, test=ROWS) for seed, name in enumerate(("first", "second"))]

    def make_trainer(learnt: Task, callbacks: list[Callback]) -> Trainer:
        given = {"accelerator": accelerator(), "precision": "bf16-mixed", "max_epochs": 1}
        dying = [Dying(step)] if step and learnt.name == "second" else []
        return Trainer(**trainer_arguments(given, None) | {"callbacks": [*callbacks, *dying]})

    own = backbone(shape, answer=ANSWER)
    module = ContinualModule(own, STRATEGIES[method](), lambda _, parameters, __: (adam(parameters), None))
    data = ContinualDataModule(tasks, batch_size=ROWS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        intervals = Intervals(save_every_n_steps=SAVE_EVERY)
        learn_in_sequence(module, data, make_trainer, RunFolder(folder), intervals=intervals)
    told = sorted({str(each.message).split(", but")[0] for each in caught if "deterministic" in str(each.message)})
    (folder / NOTES).write_text(json.dumps(told), encoding="utf-8")


def measure(shape: Shape, until: float) -> Iterator[Result]:
    """Yield the comparison of each method: the run alone, the same again, and killed and resumed.

    Args:
        shape: Of the model.
        until: A moment of `time.perf_counter`, after which nothing new begins.
    """
    for method, title in TITLES.items():
        if time.perf_counter() > until:
            yield {"what": f"{shape.title}, {title}", "failed": "its time was over"}
            continue
        with TemporaryDirectory() as folder:
            yield _trial(Path(folder), shape, method)


def _trial(folder: Path, shape: Shape, method: str) -> Result:
    """Make the runs of a method, and compare their ends."""
    result: Result = {"what": f"{shape.title}, {TITLES[method]}, killed after step {KILL_AFTER} of {STEPS} of task 2"}
    for name, steps in (("alone", (0,)), ("again", (0,)), ("killed", (KILL_AFTER, 0))):
        for step in steps:
            command = [sys.executable, __file__, str(folder / name), shape.title, method, str(step)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != (-signal.SIGKILL if step else 0):
                last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
                return result | {"failed": f"{name}: status {done.returncode}: {last}"}
            if step:
                result["saved_states"] = len(list((folder / name / "checkpoint").iterdir()))
    alone = folder / "alone"
    for name, title in (("again", "repeated"), ("killed", "resumed")):
        result |= {f"{title}_{key}": value for key, value in compared(alone, folder / name).items()}
    return result | {"without_deterministic_kernel": json.loads((alone / NOTES).read_text(encoding="utf-8"))}


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Return whether two runs end with the same bits, and the largest differences of weights and losses.

    Args:
        one: A run's folder.
        other: Another's.
    """
    files = sorted(file.relative_to(one) for pattern in COMPARED for file in one.glob(pattern))
    differ = [str(file) for file in files if (one / file).read_bytes() != (other / file).read_bytes()]
    weights, losses = 0.0, 0.0
    for file in files:
        if file.suffix == ".safetensors" and str(file) in differ:
            left, right = load_file(one / file), load_file(other / file)
            weights = max(weights, *(float((left[key] - right[key]).abs().max()) for key in left))
    pairs = zip(_losses(one), _losses(other), strict=True)
    losses = max(abs(a - b) / abs(a) for a, b in pairs)
    return {
        "bit_equal": not differ,
        "differing_files": differ,
        "largest_weight_difference": weights,
        "largest_relative_loss_difference": losses,
    }


def _losses(folder: Path) -> list[float]:
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


if __name__ == "__main__":
    found = next(shape for shape in (SMALL, M135, B1) if shape.title == sys.argv[2])
    learn(Path(sys.argv[1]), found, sys.argv[3], int(sys.argv[4]))
