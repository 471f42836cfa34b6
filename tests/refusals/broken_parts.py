"""Parts that a config may name and that cannot be built, or whose hooks return what they may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from workbench.backbone import Backbone, Batch, Output
from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy


class Fails(ContinualStrategy):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.value = {"known": 1}[key]


class Asserts(ContinualStrategy):
    def __init__(self, rank: int) -> None:
        super().__init__()
        assert rank < 4


class Bare(ContinualStrategy):
    def __init__(self) -> None:
        pass


class Returns(ContinualStrategy):
    """Returns from one hook what it is told to.

    Args:
        hook: Which.
        what: The name of what it returns; "halves": it divides by zero.
    """

    def __init__(self, hook: str, what: str) -> None:
        super().__init__()
        self.hook, self.what = hook, what

    def _given(self, hook: str, usual: Any) -> Any:
        if hook != self.hook:
            return usual
        if self.what == "halves":
            return len(self.what) / len("")
        return {
            "none": None,
            "word": "alpha",
            "words": ["alpha"],
            "question": Dataset.from_dict({"question": ["a"], "answer": ["b"]}),
            "numbers": Dataset.from_dict({"prompt": [1], "answer": ["b"]}),
            "floats": {"ewc": 1.0},
            "vector": {"ewc": torch.zeros(3)},
        }[self.what]

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Any:
        return self._given("curriculum", tasks)

    def setup(self, backbone: Backbone) -> None:
        self._given("setup", None)

    def training_data(self, task: Task, rows: Dataset) -> Any:
        return self._given("training_data", rows)

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> Any:
        return self._given("penalties", {})

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> Any:
        return self._given("answer", ["a"] * len(prompts))


class Late(Returns):
    """Returns penalties of the wrong kind once a task has been learnt, which no dry build can see."""

    def __init__(self) -> None:
        super().__init__("nothing", "none")

    def after_task(self, backbone: Backbone, task: Task, batches: Any) -> None:
        self.hook = "penalties"


class Hungry(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise torch.OutOfMemoryError("no memory is left. Choose a smaller model.")


class Broken(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return self.no_such_state  # type: ignore[attr-defined]


class Still:
    """No scheduler."""

    def __init__(self, optimizer: Any) -> None: ...


class Rows:
    """A benchmark that holds no tasks."""

    general, probes, orders = None, (), {"default": [0]}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return {"prompt": "a"}


class Absent(Rows):
    def __getitem__(self, index: int) -> Any:
        return {"alpha": 1}["no_such_task"]


class Refuses:
    def __init__(self) -> None:
        raise KeyError("no_such_queue")


class Fetches:
    """Prepares nothing."""

    def __call__(self, display: Any) -> None:
        raise ValueError("nothing is there. Choose another place.")


class Odd(CSVLogger):
    def __init__(self) -> None:
        self.project = {"known": 1}["no_such_project"]


class Halves(Callback):
    def __init__(self, every: int) -> None:
        self.every = 10 // every


def number() -> int:
    """Neither a callback nor a logger."""
    return 3
