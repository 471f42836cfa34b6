"""A few of a benchmark's tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.mini_trace import MiniTrace
from workbench.benchmark import Benchmark, Subset
from workbench.results import RunFolder
from workbench.strategy import ContinualStrategy
from workbench.testing.conformance import check_benchmark
from workbench.testing.tiny import tiny_backbone, tiny_tasks
from workbench.train import score_task

WHOLE = MiniTrace(train_rows=8, test_rows=8, validation_rows=0)


def test_a_subset_keeps_its_tasks_in_each_orders_sequence() -> None:
    few = Subset(WHOLE, ["number_cm", "policy_stance"])
    assert isinstance(few, Benchmark)
    assert [few[index].name for index in range(len(few))] == ["policy_stance", "number_cm"]
    assert dict(few.orders) == {
        "default": ["policy_stance", "number_cm"],
        "second": ["number_cm", "policy_stance"],
        "reversed": ["number_cm", "policy_stance"],
    }
    assert few[1] is WHOLE[5]
    assert few.probes is WHOLE.probes
    assert few.general is WHOLE.general
    assert "Every order is a permutation of the tasks." in check_benchmark(few)


def test_tasks_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"tasks: there is no 'number'\. Choose from topic_stance, policy_stance"):
        Subset(WHOLE, ["number"])
    with pytest.raises(ValueError, match=r"tasks: empty\. Name one or more of topic_stance"):
        Subset(WHOLE, [])
    with pytest.raises(ValueError, match=r"tasks='number_cm' is one string\. Give a list of texts\."):
        Subset(WHOLE, "number_cm")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "it has to be usable as a file's name."),
        (".hidden", "it has to be usable as a file's name."),
        ("a\0b", "it has to be usable as a file's name."),
        ("half \ud800", "it has to be usable as a file's name."),
        ("n" * 260, "it has 260 bytes in UTF-8, and a file's name leaves room for 230; choose a shorter one."),
        ("名" * 77, "it has 231 bytes in UTF-8, and a file's name leaves room for 230; choose a shorter one."),
    ],
)
def test_a_name_that_no_file_can_have(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match="is no name for a task: ") as caught:
        replace(tiny_tasks()[0], name=name)
    assert str(caught.value).endswith(f"is no name for a task: {problem}")
    assert len(str(caught.value)) < 200


def test_the_longest_name_is_that_of_a_file(tmp_path: Path) -> None:
    task = replace(tiny_tasks()[0], name="n" * 230)
    results = RunFolder(tmp_path / "run")
    results.add_score(9999, score_task(tiny_backbone(num_hidden_layers=1), ContinualStrategy(), task))
    assert [file.name for file in (tmp_path / "run" / "predictions").iterdir()] == [f"9999-{task.name}.jsonl"]
