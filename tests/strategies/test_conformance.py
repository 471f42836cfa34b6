"""Every shipped strategy passes the conformance suite, and each check of the suite can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_strategies import (
    ActsOutsideTheModel,
    AliasesWeights,
    BuildsItsStateTooLate,
    CannotGoBack,
    DrawsFromElsewhere,
    ForgetsItsState,
    FreezesWithTheData,
    GrowsAtRandom,
    GrowsWithTheData,
    Halves,
    HoldsBackbone,
    HoldsLayers,
    KeepsTasks,
    LearnsNoTask,
    LeavesTheDevice,
    Penalizes,
    PoolsOverTime,
    Raises,
    StaysInEvaluation,
    ThawsInPassing,
    Uncited,
    UnlearnsAll,
    WritesWhereItFroze,
)
from datasets import Dataset
from torch import nn

import strategies
from strategies import CALM, BlockExpansion, Joint, LoRA, Replay, SeqFT
from workbench.backbone import Backbone, Batch
from workbench.benchmark import Task
from workbench.cli import app, guarded
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing import conformance
from workbench.testing import conformance as checks
from workbench.testing.conformance import ConformanceError, check_on_variants, check_strategy, strategy_warnings
from workbench.testing.recorder import Trial
from workbench.testing.tiny import VARIANTS, tiny_backbone

ARGUMENTS: dict[str, dict[str, Any]] = {  # for a model of 4 layers
    "BlockExpansion": {"groups": 2},
    "ContinuedPretraining": {"steps": 2},
    "CALM": {"augmenting": "micro", "connections": 2},
    "DepthUpScaling": {"dropped": 1},
}
SENTENCES = [
    "The strategy cites its paper in `reference`.",
    "Two tasks are learnt in sequence, and every score of the last row is there.",
    "What is trainable does change.",
    "The strategy keeps no reference to the backbone, nor to the memory of its weights.",
    "What is frozen does not change while a task is trained.",
    "What is frozen gets no gradient.",
    "Penalties are finite scalars, by name.",
    "Every hook leaves mode, dtype and device of what is there as it found them.",
    "Decoding with a cache, beside a longer row, gives the logits of one pass without, over eight tokens.",
    "The strategy's state, in a file read with `weights_only`, is the same again in a strategy built anew.",
    "The saved model loads with plain transformers and gives the same logits, bit for bit.",
    "Replaying `setup` and `before_task` rebuilds what is there and what trains, so that a stopped run can go on.",
    "Two runs with one seed end with the same weights, bit for bit, also where one is stopped and gone on with.",
    "`restore` brings back the model and the tokenizer that were loaded.",
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", strategies.__all__)
def test_a_shipped_strategy_conforms_on_every_tiny_model(
    name: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run of `repeats` takes as long as all else, so it is made on one model alone."""

    def make() -> ContinualStrategy:
        made: ContinualStrategy = getattr(strategies, name)(**ARGUMENTS.get(name, {}))
        return made

    wanted = [check for check in checks.STRATEGY_CHECKS if check is not checks.repeats or variant == "gqa"]
    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", wanted)
    assert check_strategy(make, partial(tiny_backbone, **VARIANTS[variant])) == [check.__doc__ for check in wanted]


def test_what_the_suite_says() -> None:
    assert [check.__doc__ for check in checks.STRATEGY_CHECKS] == SENTENCES


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoRA(policy="merge"),
        lambda: LoRA(policy="stack"),
        lambda: BlockExpansion(groups=2, each_task=True),
        lambda: CALM("micro", 2, policy="each_task"),
        lambda: CALM("micro", 2, encoder=True),
    ],
)
def test_what_changes_with_the_tasks_or_reads_only_the_prompt_conforms(make: Callable[[], ContinualStrategy]) -> None:
    assert check_strategy(make) == SENTENCES


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


def penalizing(penalties: Any) -> Callable[[], ContinualStrategy]:
    return lambda: Penalizes(penalties)


@pytest.mark.parametrize(
    ("check", "broken", "problem"),
    [
        (checks.cites_its_paper, Uncited, "Uncited's is empty."),
        (checks.cites_its_paper, lambda: Composition([SeqFT(), Uncited()]), "Uncited's is empty."),
        (checks.runs, Raises, "KeyError: 'fisher'"),
        (checks.runs, LearnsNoTask, "There is none."),
        (checks.learns, UnlearnsAll, "The model is what it was."),
        (checks.keeps_no_backbone, HoldsBackbone, "It holds one in 'backbone'."),
        (checks.keeps_no_backbone, HoldsLayers, "It holds one in 'layers'."),
        (checks.keeps_no_backbone, AliasesWeights, "It holds one in 'anchors'."),
        (checks.frozen_stays, WritesWhereItFroze, "lm_head.weight did."),
        (checks.frozen_gets_no_gradient, ThawsInPassing, "lm_head.weight does."),
        (checks.penalties_are_scalars, penalizing([1.0]), "They come as list, not as a dict."),
        (checks.penalties_are_scalars, penalizing({0: torch.zeros(())}), "The name 0 is no string."),
        (checks.penalties_are_scalars, penalizing({"ewc": 0.5}), "'ewc' is of type float, not a tensor."),
        (checks.penalties_are_scalars, penalizing({"ewc": torch.zeros(2)}), "'ewc' has the shape (2,), not ()."),
        (checks.penalties_are_scalars, penalizing({"ewc": torch.tensor(torch.inf)}), "'ewc' is inf."),
        (
            checks.leaves_the_rest,
            StaysInEvaluation,
            "`before_task` found model.layers.1 in training mode, and left it in evaluation mode.",
        ),
        (
            checks.leaves_the_rest,
            Halves,
            "`after_task` found lm_head.weight torch.float32 on cpu, and left it torch.bfloat16 on cpu.",
        ),
        (
            checks.leaves_the_rest,
            LeavesTheDevice,
            "`after_task` found the model torch.float32 on cpu, in training mode, and left it torch.float32 on meta,",
        ),
        (checks.decodes_with_a_cache, PoolsOverTime, "At token 1 of 8 they differ by "),
        (checks.keeps_its_state, KeepsTasks, "It holds more than tensors and plain values."),
        (checks.keeps_its_state, ForgetsItsState, "_extra_state differs."),
        (checks.keeps_its_state, BuildsItsStateTooLate, "It does not load into one: "),
        (checks.saves_plain, ActsOutsideTheModel, "The logits differ by "),
        (checks.rebuilds, GrowsWithTheData, "model.layers.1.input_layernorm.weight is another one."),
        (checks.rebuilds, FreezesWithTheData, "lm_head.weight is another one."),
        (checks.repeats, DrawsFromElsewhere, "model.embed_tokens.weight differs."),
        (checks.repeats, GrowsAtRandom, "Only one has model.layers.1.input_layernorm.weight."),
        (checks.restores, CannotGoBack, "It does not."),
    ],
)
def test_each_check_can_fail(
    check: Callable[[Trial], Iterable[str]],
    broken: Callable[[], ContinualStrategy],
    problem: str,
    tmp_path: Path,
) -> None:
    problems = list(check(Trial(broken, tiny_backbone, tmp_path)))
    assert problems
    assert problems[0].startswith(problem)


def test_every_check_is_shown_to_fail() -> None:
    marks = [mark for mark in test_each_check_can_fail.pytestmark if mark.name == "parametrize"]
    assert {row[0] for row in marks[0].args[1]} == set(checks.STRATEGY_CHECKS)


def test_a_run_that_fails_is_told_once_and_the_other_checks_still_say_something() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_strategy(penalizing({"ewc": torch.zeros(2)}))
    assert caught.value.failures == [
        f"{SENTENCES[1]} HookError: Penalizes.penalties returned an object of type dict; expected a dict of scalar "
        "tensors by name. The value of 'ewc' is of type Tensor of shape (2,). Return a scalar in nats",
        f"{SENTENCES[6]} 'ewc' has the shape (2,), not ().",
    ]
    assert str(caught.value) == "\n".join(caught.value.failures)


def test_what_a_check_itself_meets_is_a_failure_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class CannotBeReplayed(SeqFT):
        def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
            if not list(batches):
                raise ValueError("no batch")

    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", (checks.runs, checks.rebuilds))
    with pytest.raises(ConformanceError) as caught:
        check_strategy(CannotBeReplayed)
    (failure,) = caught.value.failures
    assert failure.startswith(f"{SENTENCES[11]} ValueError: no batch (")
    line = CannotBeReplayed.before_task.__code__.co_firstlineno + 2
    assert failure.endswith(f"test_conformance.py, line {line}, in before_task)")


def test_the_variants_are_gone_through_until_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class AddsToBiases(SeqFT):
        def setup(self, backbone: Backbone) -> None:
            if backbone.model.config.attention_bias:
                raise ValueError("no biases, please")

    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", (checks.runs,))
    with pytest.raises(ConformanceError) as caught:
        check_on_variants(AddsToBiases)
    (failure,) = caught.value.failures
    assert failure.startswith(f"on the variant 'biased': {SENTENCES[1]} ValueError: no biases, please (")
    with pytest.raises(ConformanceError, match=r"^Two tasks"):
        check_on_variants(Raises)
    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", (checks.cites_its_paper,))
    assert check_on_variants(SeqFT) == [SENTENCES[0], f"All of it on 6 tiny models: {', '.join(VARIANTS)}."]


def test_a_strategy_that_trains_nothing_at_all_need_not_change_the_model(tmp_path: Path) -> None:
    class TrainingFree(SeqFT):
        def training_data(self, task: Task, rows: Dataset) -> Dataset:
            return rows.select([])

    assert list(checks.learns(Trial(TrainingFree, tiny_backbone, tmp_path))) == []


def test_buffers_of_its_own_are_no_reference_to_the_backbone(tmp_path: Path) -> None:
    class Snapshot(SeqFT):
        def setup(self, backbone: Backbone) -> None:
            super().setup(backbone)
            self.register_buffer("anchor", backbone.model.lm_head.weight.detach().clone())
            self.own = nn.Linear(2, 2)

    assert list(checks.keeps_no_backbone(Trial(Snapshot, tiny_backbone, tmp_path))) == []


class Misnamed(SeqFT):
    """Two hooks under names that nobody calls."""

    reference = "none"

    def penalty(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, torch.Tensor]:
        return {"size": backbone.model.lm_head.weight.square().sum()}

    def beforeTask(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        raise AssertionError("never called")


class HelpsItself(SeqFT):
    """A helper that is called by the hook of nearly the same name."""

    def penalties(self, backbone: Backbone, batch: Batch, output: Any) -> dict[str, torch.Tensor]:
        return self.penalty(backbone)

    def penalty(self, backbone: Backbone) -> dict[str, torch.Tensor]:
        return {"size": backbone.model.lm_head.weight.square().sum()}


NOTHING = (
    "after the two tasks of the trial the weights are those of plain fine-tuning, bit for bit: the strategy has "
    "changed nothing. Look at the names and the conditions of its hooks."
)


def test_a_method_that_is_nearly_a_hook_and_a_strategy_that_does_nothing_are_warned_of() -> None:
    assert strategy_warnings(Misnamed) == [
        "Misnamed.beforeTask is no hook, so nobody calls it. Did you mean 'before_task'?",
        "Misnamed.penalty is no hook, so nobody calls it. Did you mean 'penalties'?",
        NOTHING,
    ]
    assert strategy_warnings(lambda: Composition([SeqFT(), Misnamed()])) == strategy_warnings(Misnamed)
    assert strategy_warnings(HelpsItself) == []


@pytest.mark.parametrize("name", strategies.__all__)
def test_a_shipped_strategy_is_not_warned_of(name: str) -> None:
    assert strategy_warnings(lambda: getattr(strategies, name)(**ARGUMENTS.get(name, {}))) == []


def test_the_command_prints_warnings_and_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", (checks.cites_its_paper,))
    assert guarded(lambda: app(["check", "test_conformance.Misnamed"], standalone_mode=True)) == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == f"warning: {NOTHING}"
    assert told.out.startswith("ok: The strategy cites its paper")
