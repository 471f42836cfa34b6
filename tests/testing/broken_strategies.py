"""Strategies that each break one rule, for the checks that have to notice it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strategies import SeqFT
from workbench.backbone import Backbone, Batch
from workbench.benchmark import Task
from workbench.depth import PlannedLayer, restack
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone

COUNTER = itertools.count(1)


class Uncited(ContinualStrategy):
    """No paper."""


class HoldsBackbone(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        self.backbone = backbone


class HoldsLayers(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        self.layers = list(backbone.model.model.layers)


class WritesWhereItFroze(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        backbone.model.lm_head.requires_grad_(False)

    @torch.no_grad()
    def edit_gradients(self, backbone: Backbone) -> None:
        backbone.model.lm_head.weight.mul_(0.5)


class ThawsInPassing(SeqFT):
    """The optimizer never sees what thaws, so that it stays as it is: only the gradient tells."""

    def setup(self, backbone: Backbone) -> None:
        backbone.model.lm_head.requires_grad_(False)

    def penalties(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, Tensor]:
        backbone.model.lm_head.requires_grad_(True)
        return {"size": backbone.model.lm_head.weight.square().sum() * 1e-3}


class AliasesWeights(SeqFT):
    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.anchors = {"head": backbone.model.lm_head.weight.detach()}


class UnlearnsAll(SeqFT):
    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        backbone.restore()


class LearnsNoTask(SeqFT):
    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        return []


class DrawsFromElsewhere(SeqFT):
    @torch.no_grad()
    def setup(self, backbone: Backbone) -> None:
        backbone.model.lm_head.weight.mul_(1 + next(COUNTER) / 100)


class GrowsAtRandom(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        restack(backbone.model, [PlannedLayer(0)] * (1 + next(COUNTER) % 2))


class ActsOutsideTheModel(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        backbone.model.lm_head.register_forward_hook(lambda module, given, logits: logits * 2)


class GrowsWithTheData(SeqFT):
    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        restack(backbone.model, [PlannedLayer(0)] * (1 + sum(1 for _ in batches)))


class FreezesWithTheData(SeqFT):
    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        backbone.model.lm_head.requires_grad_(not list(batches))


class CannotGoBack(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        backbone._reload = lambda: tiny_backbone(seed=7).model


class Raises(SeqFT):
    def penalties(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, Tensor]:
        raise KeyError("fisher")


class Penalizes(SeqFT):
    """Adds whatever it is given."""

    def __init__(self, penalties: Any) -> None:
        super().__init__()
        self.given = penalties

    def penalties(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, Tensor]:
        return self.given  # type: ignore[no-any-return]


class StaysInEvaluation(SeqFT):
    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        backbone.model.model.layers[1].eval()


class Halves(SeqFT):
    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        backbone.model.lm_head.bfloat16()


class LeavesTheDevice(SeqFT):
    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        backbone.model.to("meta")


class PoolsOverTime(SeqFT):
    """Adds the mean of all states that it sees: with a cache these are the newest token's alone."""

    def setup(self, backbone: Backbone) -> None:
        backbone.decoder.norm.register_forward_hook(lambda module, given, states: states + states.mean(1, keepdim=True))


class KeepsTasks(SeqFT):
    """A task is neither a tensor nor a plain value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.seen.append(self.kept(task))

    def kept(self, task: Task) -> Any:
        return Path(task.name)

    def get_extra_state(self) -> list[Any]:
        return self.seen

    def set_extra_state(self, state: list[Any]) -> None:
        self.seen = state


class ForgetsItsState(KeepsTasks):
    def kept(self, task: Task) -> Any:
        return task.name

    def set_extra_state(self, state: list[Any]) -> None:
        self.seen = state[:1]


class BuildsItsStateTooLate(SeqFT):
    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.register_buffer("fisher", torch.ones(2))
