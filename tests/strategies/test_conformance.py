"""Every shipped strategy passes the conformance suite, and each check of the suite can fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

import strategies
from strategies import BlockExpansion, Joint, LoRA, Replay, SeqFT
from workbench import conformance
from workbench.backbone import Backbone
from workbench.batch import Batch
from workbench.benchmark import Task
from workbench.depth import PlannedLayer, restack
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing import ConformanceError, check_strategy, tiny_backbone

ARGUMENTS: dict[str, dict[str, Any]] = {"BlockExpansion": {"groups": 2}}  # for a model of 4 layers
SENTENCES = [
    "The strategy cites its paper in `reference`.",
    "The strategy keeps no reference to the backbone.",
    "What is frozen does not change while a task is trained.",
    "What is trainable does change, and every score of the matrix is there.",
    "Two runs with one seed end with the same weights, bit for bit.",
    "The saved model loads with plain transformers and gives the same answers.",
    "Replaying `setup` and `before_task` rebuilds the structure, so that a stopped run can go on.",
    "`restore` brings back the model that was loaded.",
]
counter = itertools.count(1)


@pytest.mark.parametrize("name", strategies.__all__)
def test_a_shipped_strategy_conforms(name: str) -> None:
    assert check_strategy(lambda: getattr(strategies, name)(**ARGUMENTS.get(name, {}))) == SENTENCES


@pytest.mark.parametrize("policy", ["merge", "stack"])
def test_each_policy_of_lora_conforms(policy: Any) -> None:
    assert check_strategy(lambda: LoRA(policy=policy)) == SENTENCES


@pytest.mark.parametrize(
    "members",
    [
        lambda: [SeqFT(), BlockExpansion(groups=2)],
        lambda: [LoRA(), Replay()],
        lambda: [BlockExpansion(groups=2), Joint()],
    ],
)
def test_a_composition_conforms(members: Callable[[], list[ContinualStrategy]]) -> None:
    assert check_strategy(lambda: Composition(members())) == SENTENCES


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


class UnlearnsAll(SeqFT):
    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        backbone.restore()


class LearnsNoTask(SeqFT):
    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        return []


class DrawsFromElsewhere(SeqFT):
    @torch.no_grad()
    def setup(self, backbone: Backbone) -> None:
        backbone.model.lm_head.weight.mul_(1 + next(counter) / 100)


class GrowsAtRandom(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        restack(backbone.model, [PlannedLayer(0)] * (1 + next(counter) % 2))


class ActsOutsideTheModel(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        backbone.model.lm_head.register_forward_hook(lambda module, given, logits: logits * 2)


class GrowsWithTheData(SeqFT):
    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        restack(backbone.model, [PlannedLayer(0)] * (1 + sum(1 for _ in batches)))


class CannotGoBack(SeqFT):
    def setup(self, backbone: Backbone) -> None:
        backbone._reload = lambda: tiny_backbone(seed=7).model


class Raises(SeqFT):
    def penalties(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, Tensor]:
        raise KeyError("fisher")


@pytest.mark.parametrize(
    ("check", "broken", "problem"),
    [
        (conformance.cites_its_paper, Uncited, "Uncited's is empty."),
        (conformance.cites_its_paper, lambda: Composition([SeqFT(), Uncited()]), "Uncited's is empty."),
        (conformance.keeps_no_backbone, HoldsBackbone, "It holds one in 'backbone'."),
        (conformance.keeps_no_backbone, HoldsLayers, "It holds one in 'layers'."),
        (conformance.frozen_stays, WritesWhereItFroze, "lm_head.weight did."),
        (conformance.learns, UnlearnsAll, "The model is what it was."),
        (conformance.learns, LearnsNoTask, "The last row has no score."),
        (conformance.repeats, DrawsFromElsewhere, "model.embed_tokens.weight differs."),
        (conformance.repeats, GrowsAtRandom, "Only one has model.layers.1.input_layernorm.weight."),
        (conformance.saves_plain, ActsOutsideTheModel, "The logits differ by "),
        (conformance.rebuilds, GrowsWithTheData, "model.layers.1.input_layernorm.weight is another one."),
        (conformance.restores, CannotGoBack, "It does not."),
    ],
)
def test_each_check_can_fail(
    check: Callable[[Callable[[], ContinualStrategy]], Iterable[str]],
    broken: Callable[[], ContinualStrategy],
    problem: str,
) -> None:
    problems = list(check(broken))
    assert problems
    assert problems[0].startswith(problem)


def test_every_check_is_shown_to_fail() -> None:
    marks = [mark for mark in test_each_check_can_fail.pytestmark if mark.name == "parametrize"]
    assert {row[0] for row in marks[0].args[1]} == set(conformance.STRATEGY_CHECKS)


def test_a_failure_names_the_check_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = (conformance.cites_its_paper, conformance.keeps_no_backbone, conformance.learns)
    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", checks)
    with pytest.raises(ConformanceError) as caught:
        check_strategy(Raises)
    assert caught.value.failures == [f"{SENTENCES[3]} KeyError: 'fisher'"]
    assert str(caught.value) == caught.value.failures[0]


def test_a_strategy_that_trains_nothing_at_all_need_not_change_the_model() -> None:
    class TrainingFree(SeqFT):
        def training_data(self, task: Task, rows: Dataset) -> Dataset:
            return rows.select([])

    assert list(conformance.learns(TrainingFree)) == []


def test_buffers_of_its_own_are_no_reference_to_the_backbone() -> None:
    class Snapshot(SeqFT):
        def setup(self, backbone: Backbone) -> None:
            super().setup(backbone)
            self.register_buffer("anchor", backbone.model.lm_head.weight.detach().clone())
            self.own = nn.Linear(2, 2)

    assert list(conformance.keeps_no_backbone(Snapshot)) == []
