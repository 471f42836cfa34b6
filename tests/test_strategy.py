"""Default hooks, and several strategies as one: order, chaining, sums, and conflicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from strategies import BlockExpansion, DepthUpScaling, DownProjectionMoE, LoRA
from workbench.backbone import Backbone, Batch, Output
from workbench.benchmark import Task
from workbench.strategy import (
    Composition,
    ContinualStrategy,
    HookError,
    answers_itself,
    needs_task_id,
    overrides,
)
from workbench.testing.tiny import tiny_backbone, tiny_tasks

TASKS = tiny_tasks()
NOTHING: Any = SimpleNamespace(trainable=dict, model=nn.Module())


class Spy(ContinualStrategy):
    """Records every call; adds one row, one task and one penalty under its name."""

    def __init__(self, name: str, calls: list[str], penalty: float = 0.0, shared: str | None = None) -> None:
        super().__init__()
        self.name, self.calls, self.penalty, self.shared = name, calls, penalty, shared

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        self.calls.append(f"{self.name} curriculum {[task.name for task in tasks]}")
        return [*tasks, Task(self.name, test=TASKS[0].test, scorers=TASKS[0].scorers)]

    def setup(self, backbone: Backbone) -> None:
        self.calls.append(f"{self.name} setup")

    def before_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.calls.append(f"{self.name} before {task.name} {list(batches)}")

    def training_data(self, task: Task, rows: Dataset) -> Dataset:
        self.calls.append(f"{self.name} data {rows['answer'][:]}")
        return Dataset.from_list([*rows.to_list(), {"prompt": "", "answer": self.name}])

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
        return {self.shared or self.name: torch.tensor(self.penalty)}

    def edit_gradients(self, backbone: Backbone) -> None:
        self.calls.append(f"{self.name} gradients")

    def after_step(self, backbone: Backbone) -> None:
        self.calls.append(f"{self.name} step")

    def after_task(self, backbone: Backbone, task: Task, batches: Iterable[Batch]) -> None:
        self.calls.append(f"{self.name} after {task.name} {list(batches)}")


class Answers(ContinualStrategy):
    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        return [f"{task.name}: {prompt}" for prompt in prompts]


class Oracle(Answers):
    task_id_at_test = True

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        return [task.name for _ in prompts]


def both() -> tuple[Composition, list[str]]:
    calls: list[str] = []
    return Composition([Spy("first", calls), Spy("second", calls)]), calls


def test_hooks_run_in_the_members_order() -> None:
    pair, calls = both()
    pair.setup(NOTHING)
    pair.before_task(NOTHING, TASKS[0], [None])  # type: ignore[list-item]
    pair.edit_gradients(NOTHING)
    pair.after_step(NOTHING)
    pair.after_task(NOTHING, TASKS[1], [])
    assert calls == [
        "first setup",
        "second setup",
        "first before task_0 [None]",
        "second before task_0 [None]",
        "first gradients",
        "second gradients",
        "first step",
        "second step",
        "first after task_1 []",
        "second after task_1 []",
    ]


def test_a_hook_is_overridden_by_a_class_an_object_or_a_member() -> None:
    replaced = ContinualStrategy()
    replaced.answer = lambda backbone, task, prompts: []  # type: ignore[method-assign]
    for strategy in (Answers(), replaced, Composition([ContinualStrategy(), replaced])):
        assert answers_itself(strategy)
        assert not overrides(strategy, "after_step")
    assert not answers_itself(Composition([ContinualStrategy()]))


def test_curricula_are_chained() -> None:
    pair, calls = both()
    assert [task.name for task in pair.curriculum(TASKS, None)] == ["task_0", "task_1", "first", "second"]
    assert calls == [
        "first curriculum ['task_0', 'task_1']",
        "second curriculum ['task_0', 'task_1', 'first']",
    ]


def test_training_data_is_chained() -> None:
    pair, calls = both()
    rows = Dataset.from_list([{"prompt": "", "answer": "own"}])
    assert pair.training_data(TASKS[0], rows)["answer"][:] == ["own", "first", "second"]
    assert calls == ["first data ['own']", "second data ['own', 'first']"]
    assert rows["answer"][:] == ["own"]


def test_penalties_of_the_same_name_add_up() -> None:
    members = [Spy("a", [], 0.25), Spy("b", [], 2.0, "shared"), Spy("c", [], 0.5, "shared"), ContinualStrategy()]
    total = Composition(members).penalties(NOTHING, NOTHING, NOTHING)
    assert {name: value.item() for name, value in total.items()} == {"a": 0.25, "shared": 2.5}


def test_penalties_carry_their_gradients() -> None:
    """d/dx (x² + 3x) at 2 is 7."""
    value = torch.tensor(2.0, requires_grad=True)

    class Square(ContinualStrategy):
        def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
            return {"pull": value**2}

    class Linear(ContinualStrategy):
        def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> dict[str, Tensor]:
            return {"pull": 3 * value}

    total = Composition([Square(), Linear()]).penalties(NOTHING, NOTHING, NOTHING)
    total["pull"].backward()
    assert (total["pull"].item(), value.grad.item()) == (10.0, 7.0)


def test_the_member_that_overrides_answer_answers() -> None:
    pair = Composition([Spy("first", []), Answers(), Spy("second", [])])
    assert pair.answer(NOTHING, TASKS[1], ["x", "y"]) == ["task_1: x", "task_1: y"]


def test_by_default_the_backbone_answers_within_the_tasks_limit() -> None:
    asked: list[Any] = []

    def generate(prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        asked.append((list(prompts), max_new_tokens))
        return ["answer"]

    backbone: Any = SimpleNamespace(generate=generate)
    for strategy in (ContinualStrategy(), both()[0]):
        assert strategy.answer(backbone, TASKS[0], ["x"]) == ["answer"]
    assert asked == [(["x"], 3)] * 2


def test_two_members_that_override_answer_are_refused() -> None:
    with pytest.raises(ValueError) as caught:
        Composition([Answers(), Spy("first", []), Oracle()])
    assert str(caught.value) == "Answers and Oracle each answer in their own way; combine at most one."


def test_two_members_that_override_answer_are_refused_in_a_nested_composition() -> None:
    inner = Composition([Spy("first", []), Answers()])
    with pytest.raises(ValueError) as caught:
        Composition([inner, Oracle()])
    assert str(caught.value) == "Composition and Oracle each answer in their own way; combine at most one."
    assert Composition([Composition([Spy("first", [])]), Oracle()]).answer(NOTHING, TASKS[0], ["x"]) == ["task_0"]


def test_needs_task_id_looks_into_compositions() -> None:
    assert needs_task_id(Oracle())
    assert needs_task_id(Composition([Spy("first", []), Composition([Oracle()])]))
    assert not needs_task_id(Composition([Spy("first", []), Answers()]))
    assert not needs_task_id(ContinualStrategy())


def test_members_buffers_reach_the_checkpoint() -> None:
    first, second = ContinualStrategy(), ContinualStrategy()
    first.register_buffer("fisher", torch.arange(3.0))
    second.register_buffer("anchor", torch.ones(2))
    state = Composition([first, second]).state_dict()
    assert {name: value.tolist() for name, value in state.items()} == {
        "members.0.fisher": [0.0, 1.0, 2.0],
        "members.1.anchor": [1.0, 1.0],
    }


def test_the_base_class_does_nothing() -> None:
    strategy, backbone = ContinualStrategy(), tiny_backbone()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    trainable = list(backbone.trainable())
    rows = TASKS[0].train
    strategy.setup(backbone)
    strategy.before_task(backbone, TASKS[0], [])
    strategy.edit_gradients(backbone)
    strategy.after_task(backbone, TASKS[0], [])
    assert strategy.training_data(TASKS[0], rows) is rows
    assert strategy.curriculum(TASKS, None) is TASKS
    assert strategy.penalties(backbone, NOTHING, NOTHING) == {}
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())
    assert list(backbone.trainable()) == trainable


def test_members_that_train_what_another_freezes_are_refused() -> None:
    with pytest.raises(ValueError, match="DepthUpScaling trains what DownProjectionMoE freezes"):
        Composition([DownProjectionMoE(), DepthUpScaling(dropped=1)]).setup(tiny_backbone())
    late, backbone = Composition([DepthUpScaling(dropped=1, trains="upper"), LoRA(rank=2)]), tiny_backbone()
    late.setup(backbone)
    with pytest.raises(ValueError, match=r"DepthUpScaling (trains|freezes) what LoRA (trains|freezes)"):
        late.before_task(backbone, TASKS[0], [])
    whole, backbone = Composition([DepthUpScaling(dropped=1), LoRA(rank=2)]), tiny_backbone()
    whole.setup(backbone)
    whole.before_task(backbone, TASKS[0], [])
    assert all("lora_" in name for name in backbone.trainable())


def test_members_that_freeze_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="LoRA freezes what BlockExpansion trains"):
        Composition([BlockExpansion(groups=2), LoRA(rank=2)]).setup(tiny_backbone())
    backbone = tiny_backbone()
    Composition([ContinualStrategy(), LoRA(rank=2)]).setup(backbone)
    assert all("lora_" in name for name in backbone.trainable())


class Wrong(ContinualStrategy):
    """Returns nothing from any hook."""

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Any:
        return None

    def training_data(self, task: Task, rows: Dataset) -> Any:
        return None

    def penalties(self, backbone: Backbone, batch: Batch, output: Output) -> Any:
        return None

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> Any:
        return None


@pytest.mark.parametrize(
    ("hook", "arguments", "told"),
    [
        ("curriculum", (TASKS, None), "Wrong.curriculum returned None; expected a list of tasks."),
        (
            "training_data",
            (TASKS[0], TASKS[0].train),
            "Wrong.training_data('task_0') returned None; expected a datasets",
        ),
        ("penalties", (NOTHING, NOTHING, NOTHING), "Wrong.penalties returned None; expected a dict of scalar tensors"),
        ("answer", (NOTHING, TASKS[0], ["a"]), "Wrong.answer('task_0') returned None; expected a list of texts"),
    ],
)
def test_a_composition_names_the_member_with_an_invalid_return_value(
    hook: str, arguments: tuple[Any, ...], told: str
) -> None:
    with pytest.raises(HookError) as caught:
        getattr(Composition([ContinualStrategy(), Wrong(), ContinualStrategy()]), hook)(*arguments)
    assert str(caught.value).startswith(told)
