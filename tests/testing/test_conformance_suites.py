"""The conformance suites: each check of a strategy and of a benchmark can fail, and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
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

from strategies import SeqFT
from workbench.backbone import Backbone, Batch
from workbench.benchmark import Benchmark, Task
from workbench.cli import app, guarded
from workbench.scorers import ExactMatch, RowMean
from workbench.strategy import Composition, ContinualStrategy
from workbench.testing import check_either, conformance
from workbench.testing import conformance as checks
from workbench.testing.conformance import (
    ConformanceError,
    check_benchmark,
    check_on_variants,
    check_strategy,
    strategy_warnings,
)
from workbench.testing.recorder import RecordedRun
from workbench.testing.tiny import VARIANTS, tiny_backbone, tiny_tasks

SENTENCES = [
    "The strategy cites its paper in `reference`.",
    "Two tasks are learnt in sequence, and the last row of scores is complete.",
    "Trainable parameters change in training.",
    "The strategy keeps no reference to the backbone, nor to the memory of its weights.",
    "Frozen parameters do not change while a task is trained.",
    "Frozen parameters get no gradient.",
    "Penalties are finite scalars in a dict, by name.",
    "No hook changes the mode, dtype or device of a module or parameter that was there before it.",
    "Decoding eight tokens with a cache, next to a longer row, gives the logits of a single pass without a cache.",
    "The strategy's state, saved and read with `weights_only`, is the same after loading into a new strategy.",
    "The saved model loads with plain transformers and gives the same logits, bit for bit.",
    "Replaying `setup` and `before_task` rebuilds the structure and what trains, so that a run can be resumed.",
    "Two runs with one seed end with the same weights, bit for bit, also if one is stopped and resumed.",
    "`restore` brings back the model and the tokenizer as loaded.",
]


def test_what_the_suite_says() -> None:
    assert [check.__doc__ for check in checks.STRATEGY_CHECKS] == SENTENCES


def penalizing(penalties: Any) -> Callable[[], ContinualStrategy]:
    return lambda: Penalizes(penalties)


@pytest.mark.parametrize(
    ("check", "broken", "problem"),
    [
        (checks.cites_its_paper, Uncited, "Uncited's is empty."),
        (checks.cites_its_paper, lambda: Composition([SeqFT(), Uncited()]), "Uncited's is empty."),
        (checks.runs, Raises, "KeyError: 'fisher'"),
        (checks.runs, LearnsNoTask, "It is missing."),
        (checks.learns, UnlearnsAll, "The model has not changed."),
        (checks.keeps_no_backbone, HoldsBackbone, "It holds one in 'backbone'."),
        (checks.keeps_no_backbone, HoldsLayers, "It holds one in 'layers'."),
        (checks.keeps_no_backbone, AliasesWeights, "It holds one in 'anchors'."),
        (checks.frozen_stays, WritesWhereItFroze, "lm_head.weight changed."),
        (checks.frozen_gets_no_gradient, ThawsInPassing, "lm_head.weight got one."),
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
        (checks.keeps_its_state, BuildsItsStateTooLate, "It cannot be loaded: "),
        (checks.saves_plain, ActsOutsideTheModel, "The logits differ by "),
        (checks.rebuilds, GrowsWithTheData, "model.layers.1.input_layernorm.weight differs."),
        (checks.rebuilds, FreezesWithTheData, "lm_head.weight differs."),
        (checks.repeats, DrawsFromElsewhere, "model.embed_tokens.weight differs."),
        (checks.repeats, GrowsAtRandom, "Only one has model.layers.1.input_layernorm.weight."),
        (checks.restores, CannotGoBack, "The model differs."),
    ],
)
def test_each_check_can_fail(
    check: Callable[[RecordedRun], Iterable[str]],
    broken: Callable[[], ContinualStrategy],
    problem: str,
    tmp_path: Path,
) -> None:
    problems = list(check(RecordedRun(broken, tiny_backbone, tmp_path)))
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
    assert failure.endswith(f"test_conformance_suites.py, line {line}, in before_task)")


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

    assert list(checks.learns(RecordedRun(TrainingFree, tiny_backbone, tmp_path))) == []


def test_buffers_of_its_own_are_no_reference_to_the_backbone(tmp_path: Path) -> None:
    class Snapshot(SeqFT):
        def setup(self, backbone: Backbone) -> None:
            super().setup(backbone)
            self.register_buffer("anchor", backbone.model.lm_head.weight.detach().clone())
            self.own = nn.Linear(2, 2)

    assert list(checks.keeps_no_backbone(RecordedRun(Snapshot, tiny_backbone, tmp_path))) == []


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
    "after two tiny tasks the weights are those of plain fine-tuning, bit for bit: the strategy has changed "
    "nothing. Check the names and the conditions of its hooks."
)


def test_a_method_that_is_nearly_a_hook_and_a_strategy_that_does_nothing_are_warned_of() -> None:
    assert strategy_warnings(Misnamed) == [
        "Misnamed.beforeTask is no hook, so nobody calls it. Did you mean 'before_task'?",
        "Misnamed.penalty is no hook, so nobody calls it. Did you mean 'penalties'?",
        NOTHING,
    ]
    assert strategy_warnings(lambda: Composition([SeqFT(), Misnamed()])) == strategy_warnings(Misnamed)
    assert strategy_warnings(HelpsItself) == []


def test_the_command_prints_warnings_and_ends_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conformance, "STRATEGY_CHECKS", (checks.cites_its_paper,))
    assert guarded(lambda: app(["check", "test_conformance_suites.Misnamed"], standalone_mode=True)) == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == f"warning: {NOTHING}"
    assert told.out.startswith("ok: The strategy cites its paper")


OF_A_BENCHMARK = [
    "Names are unique.",
    "Every order is a permutation of the tasks.",
    "Probes are never trained.",
    "No test prompt is trained on.",
    "Right answers score 1, and wrong ones less.",
]


@dataclass
class Fake:
    """A benchmark of whatever tasks it is given."""

    tasks: Sequence[Task] = field(default_factory=lambda: tiny_tasks(3)[:2])
    probes: Sequence[Task] = field(default_factory=lambda: tiny_tasks(3)[2:])
    orders: dict[str, Sequence[str]] = field(
        default_factory=lambda: {"default": ["task_0", "task_1"], "back": ["task_1", "task_0"]}
    )
    general: Task | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]


@dataclass
class Entry:
    """What a benchmark says of one task's overlaps."""

    task: str


@dataclass
class Frank(Fake):
    """A benchmark that states overlaps."""

    overlaps: Sequence[Entry] = ()


class Generous(RowMean):
    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return 1.0


class Strict(RowMean):
    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return 0.5 * (prediction == answer)


def first_task(**changes: object) -> list[Task]:
    first, second = tiny_tasks(2)
    return [replace(first, **changes), second]


def test_a_sound_benchmark_passes() -> None:
    corpus = Task("prose", test=Dataset.from_dict({"text": ["a cat", "a dog"]}))
    assert isinstance(Fake(), Benchmark)
    assert check_benchmark(Fake(general=corpus)) == OF_A_BENCHMARK
    assert check_benchmark(Fake(probes=[corpus])) == OF_A_BENCHMARK


EVERY = "An order has every task; `first_tasks` and workbench.benchmark.Subset leave some out."


TWICE = [*tiny_tasks(2), tiny_tasks(1)[0]]


LEAKING = first_task(train=Dataset.from_list([*tiny_tasks(1)[0].train.to_list(), *tiny_tasks(1)[0].test.to_list()[:2]]))


@pytest.mark.parametrize(
    ("benchmark", "failures"),
    [
        (
            Fake(tasks=TWICE, orders={}),
            [
                "task 'task_0' is listed more than once. Give each a name of its own.",
                "Fake has no orders. Give one or more, such as {'default': ['task_0', 'task_1', 'task_0']}.",
            ],
        ),
        (
            Fake(orders={"short": ["task_0"]}),
            [f"orders.short: task_1 missing. {EVERY}"],
        ),
        (
            Fake(orders={"other": ["task_0", "task_9"], "double": ("task_0", "task_0", "task_1")}),
            [
                "orders.other: Fake has no task 'task_9'. Did you mean 'task_1'? There are task_0, task_1.",
                f"orders.other: task_1 missing. {EVERY}",
                "orders.double: 'task_0' is listed more than once.",
            ],
        ),
        (Fake(probes=tiny_tasks(1)), ["probe 'task_0' is also a task. Give each a name of its own."]),
        (
            Fake(general=Task("Task_0", test=Dataset.from_dict({"text": ["a cat"]}))),
            [
                "task 'task_0' and general corpus 'Task_0' differ only by case: some disks take them for one. "
                "Give each a name of its own."
            ],
        ),
        (Fake(tasks=LEAKING), ["task_0: 2 test prompts are also in train."]),
        (
            Fake(tasks=first_task(scorers={"kind": Generous()})),
            ["task_0: nonsense scores as much as the right answers under kind."],
        ),
        (
            Fake(tasks=first_task(scorers={"half": Strict(), "accuracy": ExactMatch()})),
            ["task_0: the right answers score 0.500 under half, not 1."],
        ),
        (
            Fake(probes=[replace(tiny_tasks(3)[2], scorers={"kind": Generous()})]),
            ["task_2: nonsense scores as much as the right answers under kind."],
        ),
    ],
)
def test_each_failure_by_its_words(benchmark: Fake, failures: list[str]) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_benchmark(benchmark)
    assert caught.value.failures == failures
    assert str(caught.value) == "\n".join(failures)


def test_overlaps_that_are_stated_are_no_failure() -> None:
    sentences = check_benchmark(Frank(tasks=LEAKING, overlaps=[Entry("task_1"), Entry("task_0")]))
    said = "No test prompt is trained on, except for stated overlaps: 2 of task_0."
    assert sentences == [*OF_A_BENCHMARK[:3], said, OF_A_BENCHMARK[4]]
    assert check_benchmark(Frank(overlaps=[Entry("task_0")])) == OF_A_BENCHMARK


def test_overlaps_of_another_task_excuse_nothing() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_benchmark(Frank(tasks=LEAKING, overlaps=[Entry("task_1")]))
    assert caught.value.failures == ["task_0: 2 test prompts are also in train."]


def test_all_failures_come_at_once() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_benchmark(Fake(tasks=LEAKING, probes=tiny_tasks(1), orders={"short": ["task_1"]}))
    assert len(caught.value.failures) == 3


def test_scoring_leaves_the_benchmarks_own_scorer_empty() -> None:
    benchmark = Fake()
    check_benchmark(benchmark)
    assert float(benchmark.tasks[0].scorers["accuracy"].count) == 0


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(ConformanceError, match=r"^int is neither a ContinualStrategy nor a Benchmark"):
        check_either(lambda: 3)
    assert check_either(Fake) == OF_A_BENCHMARK
