"""A linear layer in place of a backbone, for arithmetic that is worked by hand; and hooks called without a Trainer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from workbench.benchmark import Task
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_tasks

TASKS = tiny_tasks(4)


class Linear:
    """What methods on weights use of a backbone, around one weight of shape (1, width)."""

    adapter_names: tuple[str, ...] = ()

    def __init__(self, *values: float) -> None:
        self.model = nn.Linear(len(values), 1, bias=False)
        self.set(values)

    def set(self, values: Any) -> None:
        """Train: the weights are then these."""
        with torch.no_grad():
            self.model.weight.copy_(torch.as_tensor([values]))

    def values(self) -> list[float]:
        return self.model.weight.flatten().tolist()

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def merged(self) -> AbstractContextManager[None]:
        return nullcontext()


def pretend_task(strategy: ContinualStrategy, backbone: Any, task: Task, learnt: dict[str, Tensor]) -> None:
    """Begin a task, write what it would have learnt, and finish it.

    Args:
        strategy: The method.
        backbone: The model.
        task: The task.
        learnt: The weights at the end of training, by their names in the model.
    """
    strategy.before_task(backbone, task, [])
    with torch.no_grad():
        for name, value in learnt.items():
            backbone.model.get_parameter(name).copy_(value)
    strategy.after_task(backbone, task, [])


def random_weights(backbone: Any, seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """What a task might have learnt: the trainable weights as they are, and random numbers added."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value.detach() + size * torch.randn(value.shape, generator=generator).to(value.dtype)
        for name, value in backbone.trainable().items()
    }
