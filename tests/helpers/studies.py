"""Small things that several tests run: a sequence of tiny tasks, a folder of tasks, a study's config."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.results import RunFolder
from workbench.runtime.files import read_csv
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import ContinualDataModule, ContinualModule, learn_in_sequence
from workbench.train.checkpoint import Intervals

ROOT = Path(__file__).parents[2]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def sgd(_: str, parameters: list[Any], __: Callable[[], int]) -> tuple[torch.optim.Optimizer, None]:
    """Plain gradient descent: a step is -0.1 times the gradient."""
    return torch.optim.SGD(parameters, lr=0.1), None


def trainer(folder: Path, callbacks: Sequence[Callback], **arguments: Any) -> Trainer:
    """A quiet Trainer on the CPU, one epoch unless another number is given."""
    return Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder, **QUIET, **arguments},
        callbacks=list(callbacks),
    )


def learn(
    strategy: ContinualStrategy,
    folder: Path,
    *,
    tasks: Sequence[Task] | None = None,
    module: ContinualModule | None = None,
    extra: Callable[[list[Callback]], list[Callback]] = list,
    intervals: Intervals | None = None,
    **arguments: Any,
) -> Backbone:
    """Learns tasks in sequence by gradient descent, three batches of four rows each.

    Args:
        strategy: The method.
        folder: Of the run.
        tasks: Two tiny ones unless others are given.
        module: Holds the strategy already.
        extra: Makes the Trainer's callbacks from the loop's.
        intervals: How often the state is saved.
        arguments: Of the Trainer.
    """
    module = module or ContinualModule(tiny_backbone(), strategy, sgd)
    data = ContinualDataModule(tasks or tiny_tasks(), batch_size=4, seed=0)
    results = RunFolder(folder)
    make = lambda _, given: trainer(folder, extra(given), **arguments)  # noqa: E731
    learn_in_sequence(module, data, make, results, intervals=intervals)
    return module.backbone


def column(file: Path, name: str) -> list[str]:
    """One column of a CSV file."""
    return [row[name] for row in read_csv(file)]


def weights(backbone: Backbone) -> dict[str, Tensor]:
    """A copy of all of a model's weights."""
    return {name: value.detach().clone() for name, value in backbone.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two models are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def write_tasks(folder: Path, names: Sequence[str] = ("alpha", "beta"), rows: int = 8) -> Path:
    """A folder of small tasks, laid out as TRACE's are."""
    for place, name in enumerate(names):
        for split, letter in (("train", "t"), ("eval", "e"), ("test", "s")):
            content = [
                {"prompt": f"{name}: {letter}{index}\nAnswer:", "answer": "abcdefgh"[(index + place) % 8]}
                for index in range(rows if split == "train" else 4)
            ]
            file = folder / name / f"{split}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def study(model: Path, tasks: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A study of one strategy over a folder of tasks, as a YAML would hold it: two steps a task."""
    benchmark = {"class_path": "benchmarks.trace.Trace", "init_args": {"path": str(tasks), "max_new_tokens": 3}}
    return {
        "name": "small",
        "output": str(output),
        "backbone": {"path": str(model)},
        "benchmark": benchmark,
        "strategies": {"seqft": {"class_path": "strategies.SeqFT"}},
        "optimizer": {"init_args": {"lr": 0.01}},
        "data": {"batch_size": 4, "max_length": 64},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        **changes,
    }
