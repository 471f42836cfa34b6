"""The plan that a study prints before it starts: steps counted by hand, memory, and errors before a folder is made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.studies import column, same, weights, write_tasks

from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.errors import ConfigError
from workbench.strategy import ContinualStrategy
from workbench.study import Study
from workbench.study.measure import Memory
from workbench.study.plan import Plan, StrategyEstimate

Make = Callable[..., Study]


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_epochs": 1}, 4),  # two tasks of 8 rows in batches of 4
        ({"max_epochs": 3}, 12),
        ({}, 4),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 6),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4),  # a last, smaller step in each epoch
        ({"max_epochs": 3, "max_steps": 5}, 10),
        ({"max_steps": 7}, 14),
        ({"max_epochs": -1, "max_steps": 3}, 6),
        ({"max_epochs": 3, "limit_train_batches": 1}, 6),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": 2, "limit_train_batches": 9}, 8),
    ],
)
def test_the_plan_counts_the_steps_that_are_made(make: Make, trainer: dict[str, Any], steps: int) -> None:
    small = make(trainer={**trainer, "accelerator": "cpu"})
    plan = small.plan()
    assert plan.estimates["seqft"].steps == steps
    assert not small.folder.exists()
    small.run()
    made = column(small.results(small.runs[0]).path / "costs.csv", "steps")
    assert sum(map(int, made)) == steps


def test_a_limit_of_time_is_no_limit_of_epochs(make: Make) -> None:
    small = make(trainer={"max_time": {"seconds": 1}, "accelerator": "cpu"})
    small.plan()
    small.run()
    made = column(small.results(small.runs[0]).path / "costs.csv", "steps")
    assert all(int(steps) > 2 for steps in made)


def test_a_length_that_leaves_a_prompt_two_tokens_is_no_problem(make: Make) -> None:
    """Scoring is timed with answers no longer than the tasks': 3 tokens, of which 5 leave 2 for the prompt."""
    for length in (5, 6, 9, 10):
        small = make(data={"batch_size": 4, "max_length": length})
        assert small.plan().estimates["seqft"].steps == 4
    small.run()
    assert small.results(small.runs[0]).finished


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"max_length": 4}, "data: alpha: a prompt's limit in tokens is 1; the begin token alone takes 1, "),
        ({"template_date": "soon"}, "data.template_date='soon' is no date. Give one such as '2024-07-26'."),
        ({"max_length": 1}, "data.max_length=1 is out of range; it has to be at least 2."),
    ],
)
def test_limits_without_room_for_text_are_told_before_a_folder_is_made(
    make: Make, data: dict[str, Any], problem: str
) -> None:
    small = make(data={"batch_size": 4, **data})
    with pytest.raises(ConfigError) as caught:
        small.run()
    assert caught.value.problems[0].startswith(problem)
    assert not small.folder.exists()


def test_answers_that_cannot_be_given_are_told_before_the_first_step(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tasks(tmp_path / "tasks")
    rows = [{"prompt": f"s{index}", "answer": answer} for index, answer in enumerate(["a", "a </s> b", " a"])]
    (folder / "alpha" / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    benchmark = {"class_path": "benchmarks.trace.Trace", "init_args": {"path": str(folder), "max_new_tokens": 9}}
    small = make(benchmark=benchmark)
    told = (
        "alpha: 1 of 3 test answers cannot be produced (the tokens of 'a </s> b' decode to 'a '); "
        "the best possible accuracy is 0.6667"
    )
    assert str(small.plan()).endswith(f"\n  {told}")
    small.run()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("workbench.")] == [told]
    (stated,) = small.results(small.runs[0]).environment()["answers"].items()
    assert stated[0] == "alpha"
    assert {key: stated[1][key] for key in ("rows", "cannot_be_produced", "compared_as_written")} == {
        "rows": 3, "cannot_be_produced": 1, "compared_as_written": 1,
    }  # fmt: skip
    assert stated[1]["best_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "CosineAnnealingLR"])
def test_a_scheduler_is_tried_and_then_steps_once_a_step(make: Make, name: str) -> None:
    small = make(scheduler={"class_path": f"torch.optim.lr_scheduler.{name}"})
    small.run()
    made = column(small.results(small.runs[0]).path / "costs.csv", "steps")
    assert list(map(int, made)) == [2, 2]


def test_a_plan_changes_nothing(make: Make) -> None:
    small = make(strategies={"lora": {"class_path": "strategies.LoRA"}, "seqft": {"class_path": "strategies.SeqFT"}})
    before = weights(small.assembly.backbone)
    plan = small.plan()
    assert same(weights(small.assembly.backbone), before)
    assert str(plan).startswith("Plan: 2 runs of 2 tasks; 2 score matrices of 3 × 2\n")
    assert plan.runs == {"lora": 1, "seqft": 1}


class Recovers(ContinualStrategy):
    """Begins with a corpus, and reviews the first task at the end under its own name."""

    def curriculum(self, tasks: Sequence[Task], general: Task | None) -> Sequence[Task]:
        text = Dataset.from_list([{"text": "a b c d e f g h " * 12}] * 4)
        return [Task("corpus", test=text, train=text), *tasks, tasks[0]]


def test_a_curriculum_with_a_corpus_and_a_task_twice(make: Make) -> None:
    small = make(strategies={"recovers": {"class_path": "test_plan.Recovers"}})
    estimate = small.plan().estimates["recovers"]
    small.run()
    made = column(small.results(small.runs[0]).path / "costs.csv", "steps")
    assert len(made) == 4
    assert int(made[0]) > 1  # each text is longer than the 64 tokens of a row
    assert estimate.steps == sum(map(int, made))
    assert estimate.train_seconds > 0


def test_each_tasks_optimizer_is_built_before_a_folder_is_made(make: Make) -> None:
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "nesterov": True}}
    small = make(per_task={"beta": {"optimizer": sgd}}, optimizer={"init_args": {"betas": [2.0, 0.9]}})
    with pytest.raises(ConfigError) as caught:
        small.run()
    assert caught.value.problems == [
        "optimizer: torch.optim.AdamW: Invalid beta parameter at index 0: 2.0. Fix its init_args.",
        "optimizer: torch.optim.SGD: Nesterov momentum requires a momentum and zero dampening. Fix its init_args.",
    ]
    assert not small.folder.exists()


class TooLarge(ContinualStrategy):
    """Has no room for a forward, as a model has not that fits on several devices alone."""

    def setup(self, backbone: Backbone) -> None:
        def refuse(*_: object) -> None:
            raise torch.OutOfMemoryError("no room")

        backbone.decoder.register_forward_pre_hook(refuse)


def test_a_model_that_fits_on_several_devices_alone_is_counted_and_not_timed(make: Make) -> None:
    strategies = {"large": {"class_path": "test_plan.TooLarge"}}
    message = r"strategies\.large: a step needs more memory than there is: no room\. Lower data\.batch_size "
    with pytest.raises(ConfigError, match=message):
        make(strategies=strategies).plan()
    trainer = {"max_epochs": 1, "accelerator": "cpu", "strategy": "fsdp"}
    plan = make(strategies=strategies, trainer=trainer).plan()
    assert plan.estimates["large"].steps == 4
    assert "about an unknown time training" in str(plan)
    assert plan.estimates["large"].memory is None


def test_the_plan_says_what_memory_a_step_takes(make: Make) -> None:
    small = make()
    plan = small.plan()
    memory = plan.estimates["seqft"].memory
    assert memory is not None
    assert memory.gradients == sum(value.nbytes for value in small.assembly.backbone.parameters())
    assert f"; memory {memory}\n" in str(plan)
    assert "more than" not in str(plan)


def test_what_a_strategy_merges_after_a_task_counts_as_trainable(make: Make) -> None:
    init_args = {"rank": 2, "policy": "merge"}
    plan = str(make(strategies={"lora": {"class_path": "strategies.LoRA", "init_args": init_args}}).plan())
    continued = {"lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 2}}}
    trained = re.search(r"trains [1-9][\d,]* of", plan)
    assert trained
    assert trained[0] in str(make(strategies=continued).plan())


def test_more_memory_than_is_free_is_a_warning() -> None:
    memory = Memory(2 * 10**9, 10**9, 0, 5 * 10**8)
    estimate = StrategyEstimate("all", 1, 1.0, 1.0, memory, free=3 * 10**9)
    assert str(estimate).endswith(
        f"; memory {memory}. That is more than the 3.0 GB that are free. Lower data.batch_size (or data.batch_tokens) "
        "and raise trainer.accumulate_grad_batches by the same factor."
    )
    assert "more than" not in str(replace(estimate, free=4 * 10**9))
    assert "more than" not in str(replace(estimate, free=None))


def test_one_run_in_words() -> None:
    plan = Plan({"seqft": 1}, 2, 3, {"seqft": StrategyEstimate("all", 4, 60.0, 30.0)})
    assert str(plan) == (
        "Plan: 1 run of 2 tasks; 1 score matrix of 3 × 3\n"
        "  seqft: trains all; 4 steps; about 1 min 0 s training, at most 30 s scoring\n"
        "  in all about 1 min 0 s of training and at most 30 s of scoring"
    )


@pytest.mark.parametrize(("epochs", "room", "times"), [(2, 1.0, 1), (1, 1.0, 0), (2, 0.0, 0), (2, 1e-6, 0)])
def test_the_plan_tells_what_frozen_layers_states_take(make: Make, epochs: int, room: float, times: int) -> None:
    small = make(
        strategies={"blocks": {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2}}},
        data={"batch_size": 4, "max_length": 64, "frozen_states_gb": room},
        trainer={"max_epochs": epochs, "accelerator": "cpu"},
    )
    tasks = small.assembly.tasks.values()
    encoded = [small.assembly.backbone.encode(task.train, task.max_new_tokens)["input_ids"] for task in tasks]
    size = max(sum(map(len, rows)) for rows in encoded) * 32 * 4  # tokens x width x bytes
    plan = small.plan()
    memory = plan.estimates["blocks"].memory
    assert memory is not None
    assert memory.frozen_states == times * size
    assert ("frozen states" in str(plan)) == (times == 1)
    assert ("in each step: " in str(plan)) == (room == 1e-6)
