"""How time, memory and disk grow: with tasks, depth, width, length and vocabulary, each alone; exponents are fitted.

`python tests/performance/growth.py tasks=8 depth=4 width=128 length=64 vocabulary=8000` prints what one run takes.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from paired import resident
from subjects import model, tokenizer
from ways import adam

from strategies import SeqFT
from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Task
from workbench.results import RunFolder
from workbench.scorers import ExactMatch
from workbench.study.trainer import trainer_arguments
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence

MIDDLE = {"tasks": 4, "depth": 4, "width": 128, "length": 64, "vocabulary": 8000}
SWEPT: Mapping[str, Sequence[int]] = {
    "tasks": (4, 8, 16, 32),
    "depth": (2, 4, 8, 16),
    "width": (64, 128, 256, 512),
    "length": (64, 128, 256, 512),
    "vocabulary": (2000, 8000, 16000, 32000),
}
TRAINED, TESTED, ANSWER = 32, 8, 8  # rows, rows, tokens
MEASURES = ("seconds", "memory", "disk")


def one(tasks: int, depth: int, width: int, length: int, vocabulary: int) -> dict[str, float]:
    """Seconds, peak bytes above those before, and bytes on the disk of one run."""
    before = resident()
    policy = TextPolicy(max_prompt_length=length, max_answer_length=ANSWER)
    own = Backbone(lambda: model(width, depth, vocabulary), tokenizer(vocabulary), text=policy)
    module = ContinualModule(own, SeqFT(), lambda _, parameters, __: (adam(parameters), None))

    def make_trainer(_: Task, callbacks: list[Callback]) -> Trainer:
        return Trainer(**trainer_arguments({"accelerator": "cpu", "max_epochs": 1}, None) | {"callbacks": callbacks})

    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        data = ContinualDataModule([_task(number, length, vocabulary) for number in range(tasks)], batch_size=8)
        learn_in_sequence(module, data, make_trainer, RunFolder(Path(folder) / "run"))
        seconds = time.perf_counter() - started
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    memory = resident("VmHWM") - before
    return {"seconds": seconds, "memory": memory, "disk": disk}


def _task(number: int, length: int, vocabulary: int) -> Task:
    def rows(count: int, first: int) -> Dataset:
        texts = [
            [str(2 + (first + row * 7919 + place * 31) % (vocabulary - 2)) for place in range(length)]
            for row in range(count)
        ]
        cut = length - ANSWER
        return Dataset.from_dict(
            {"prompt": [" ".join(t[:cut]) for t in texts], "answer": [" ".join(t[cut:-1]) for t in texts]}
        )

    return Task(
        f"task-{number}", rows(TESTED, 1), rows(TRAINED, number), scorers={"exact": ExactMatch()}, max_new_tokens=ANSWER
    )


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms: 1 is linear growth."""
    x = torch.tensor([math.log(size) for size in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(max(value, 1e-9)) for value in values], dtype=torch.float64)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def table() -> str:
    """Each size, what a run of it takes, and the exponents."""
    lines = ["| grows | value | seconds | peak memory, MiB | disk, MiB |", "|---|---|---|---|---|"]
    for name, sizes in SWEPT.items():
        found = [_in_a_process(MIDDLE | {name: size}) for size in sizes]
        for size, taken in zip(sizes, found, strict=True):
            memory, disk = taken["memory"] / 2**20, taken["disk"] / 2**20
            lines.append(f"| {name} | {size} | {taken['seconds']:.1f} | {memory:.0f} | {disk:.1f} |")
        slopes = " | ".join(f"^{exponent(sizes, [taken[what] for taken in found]):.2f}" for what in MEASURES)
        lines.append(f"| **{name}** | exponent | {slopes} |")
        print("\n".join(lines[-len(sizes) - 1 :]), flush=True)
    return "\n".join(lines)


def _in_a_process(sizes: Mapping[str, int]) -> dict[str, float]:
    command = [sys.executable, __file__, *(f"{name}={size}" for name, size in sizes.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(one(**{name: int(size) for name, size in (given.split("=") for given in sys.argv[1:])})))
