"""The plan that a study prints before it starts: steps counted by hand, memory, and errors before a folder is made."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.studies import ROOT, column, same, weights, write_tasks

from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.errors import ConfigError
from workbench.runtime.environment import PeakMemory
from workbench.strategy import ContinualStrategy
from workbench.study import Study, costs
from workbench.study import plan as plan_module
from workbench.study.dry_run import DryRun
from workbench.study.measure import Memory
from workbench.study.plan import Plan, StrategyEstimate, makespan

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
        "  seqft: trains all; 4 steps; about 1 min 0 s training, 30 s scoring\n"
        "  in all about 1 min 0 s of training and 30 s of scoring"
    )


def planned(*strategies: tuple[int, float, float], cores: int = 2) -> Plan:
    """A plan of strategies, each with its runs and its seconds of training and of scoring; row 0 takes 20 s."""
    costs = {
        f"s{place}": StrategyEstimate("all", 4, train, score, zero_shot_seconds=20.0)
        for place, (_, train, score) in enumerate(strategies)
    }
    return Plan({f"s{place}": runs for place, (runs, *_) in enumerate(strategies)}, 2, 3, costs, cores=cores)


@pytest.mark.parametrize(
    ("strategies", "cores", "workers", "sentence"),
    [
        ([(3, 60.0, 30.0)], 2, 1, "In all about 5 min on 2 cores; done near 14:34."),
        ([(3, 60.0, 30.0)], 1, 2, "In all about 3 min on 2 cores; done near 14:33."),
        ([(1, 10.0, 10.0)], 0, 1, "In all about 40 s; done near 14:30."),
        ([(2, 18_000.0, 0.0)], 2, 1, "In all about 10 h 0 min on 2 cores; done near Tuesday 00:30."),
        ([(20, 36_000.0, 0.0)], 2, 1, "In all about 200 h 0 min on 2 cores; done near 08 December 22:30."),
        ([(1, math.nan, 0.0)], 2, 1, "How long it takes in all is not known."),
    ],
)
def test_when_a_study_is_done(
    strategies: list[tuple[int, float, float]], cores: int, workers: int, sentence: str
) -> None:
    now = datetime(2026, 11, 30, 14, 30)
    assert planned(*strategies, cores=cores).closing(now, workers) == sentence


def test_row_0_is_scored_by_the_smallest_model() -> None:
    """A strategy that adds weights estimates more for it, and one that is not timed nothing."""
    plan = planned((1, 1.0, 2.0), (1, 1.0, 2.0), (1, math.nan, math.nan))
    estimates = {
        name: replace(estimate, zero_shot_seconds=seconds)
        for (name, estimate), seconds in zip(plan.estimates.items(), (30.0, 20.0, 0.0), strict=True)
    }
    plan = replace(plan, estimates=estimates)
    assert plan.zero_shot_seconds == 20.0
    assert replace(plan, estimates={}).zero_shot_seconds == 0.0


def test_the_longest_runs_go_first() -> None:
    plan = planned((1, 3.0, 0.0), (2, 4.0, 3.0))
    assert plan.seconds_on(1) == 20 + 3 + 7 + 7
    assert plan.seconds_on(2) == 20 + 10
    assert plan.seconds_on(9) == 20 + 7
    assert math.isnan(makespan([1.0, math.nan], 2))


class Counted(ContinualStrategy):
    """Fine-tuning that counts the steps of all plans."""

    steps = 0

    def edit_gradients(self, backbone: Backbone) -> None:
        type(self).steps += 1


def test_few_steps_are_timed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 x 2 items one is timed where nothing differs; a strategy with hooks takes one step more for each item."""
    taken: list[str] = []
    step = DryRun.step

    def counted(dry_run: DryRun, batch: Any) -> Any:
        taken.append(dry_run.name)
        return step(dry_run, batch)

    monkeypatch.setattr(DryRun, "step", counted)
    plain = {"class_path": "strategies.SeqFT"}
    one = make(strategies={"first": plain}, first_tasks=1)
    one.plan()
    timed = taken.count("first")
    taken.clear()
    make(strategies={"first": plain, "second": plain, "hooked": {"class_path": "test_plan.Counted"}}).plan()
    assert timed <= 8  # one to warm up, three short ones, three of a batch, and one of the longest rows
    assert taken.count("first") == timed  # the second task's steps cost as much by their tokens
    assert taken.count("second") == 1  # its hooks are tried
    assert taken.count("hooked") == timed + 1
    assert Counted.steps == timed + 1


def test_a_step_that_does_not_fit_is_not_taken(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with 2 MB the batch of the longest rows is estimated from a short one, and the plan warns."""
    sizes: list[int] = []
    step = DryRun.step
    monkeypatch.setattr(
        DryRun, "step", lambda dry_run, batch: (sizes.append(batch.labels.numel()), step(dry_run, batch))[1]
    )
    monkeypatch.setattr(PeakMemory, "bytes", lambda self: 10**7)
    small = make(data={"batch_size": 4, "max_length": 64})
    monkeypatch.setattr(costs, "free_memory", lambda backbone: costs.model_bytes(backbone) + 2 * 10**6)
    monkeypatch.setattr(plan_module, "free_memory", lambda backbone: 2 * 10**6)
    plan = small.plan()
    memory = plan.estimates["seqft"].memory
    assert memory is not None
    assert memory.activations is not None
    assert len(set(sizes)) == 1  # the two shortest rows alone
    assert memory.activations > 9 * 10**6
    assert "more than the 0.0 GB that are free" in str(plan)


@pytest.mark.slow
def test_the_plan_s_total_is_within_a_quarter_of_the_truth(tmp_path: Path) -> None:
    """The quickstart's first three domains, in seconds of the process's own time, for others may use the machine."""
    code = (
        "import sys, time\n"
        "time.monotonic = time.perf_counter = time.process_time\n"
        "from workbench.study import Study\n"
        "study = Study('quickstart', ['first_tasks=3', f'output={sys.argv[1]}'])\n"
        "planned = study.plan().seconds_on(1)\n"
        "study._show_plan = lambda *given: None\n"
        "begun = time.process_time()\n"
        "study.run()\n"
        "print(planned, time.process_time() - begun)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=1800)
    planned_seconds, taken = map(float, done.stdout.split()[-2:])
    assert abs(planned_seconds / taken - 1) < 0.25, (planned_seconds, taken)


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
