"""What a cell is made of, and the floor under a domain of labels."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from torchmetrics import Metric

from workbench.benchmark import Task
from workbench.scorers import ExactMatch, FirstCharacter, RougeL, ValidLabel
from workbench.scoring import judge, majority_answer


def task(train: list[str], test: list[str], scorers: dict[str, Metric]) -> Task:
    splits: dict[str, Any] = {
        name: Dataset.from_dict({"prompt": [f"{number}?" for number in range(len(answers))], "answer": answers})
        for name, answers in (("train", train), ("test", test))
    }
    return Task("labels", scorers=scorers, **splits)


def test_the_commonest_training_answer_is_scored_on_the_test_rows() -> None:
    labels = task(["B", "A", "B", "C"], ["A", "B", "A", "C"], {"accuracy": ExactMatch(), "valid": ValidLabel("[ABC]")})
    assert majority_answer(labels) == ("B", 0.25)


def test_a_label_before_a_reason_is_found_by_its_first_character() -> None:
    train = ["B: it is a", "A: it is b", "A: it is c", "B: it is d", "A: it is e", "C: it is f", "C: it is f"]
    labels = task(
        train, ["A: x", "A: y", "B: z", "C: w"], {"accuracy": FirstCharacter(), "valid": ValidLabel("[ABC].*")}
    )
    assert majority_answer(labels) == ("A", 0.5)


@pytest.mark.parametrize(
    ("train", "scorers"),
    [
        (["long text"], {"rouge-L": RougeL()}),
        ([], {"accuracy": ExactMatch(), "valid": ValidLabel("[ABC]")}),
    ],
)
def test_texts_and_tasks_that_are_only_tested_have_none(train: list[str], scorers: dict[str, Metric]) -> None:
    assert majority_answer(task(train, ["A"], scorers)) is None


def test_judging_leaves_the_tasks_own_metric_as_it_was() -> None:
    exact = ExactMatch()
    assert judge(exact, ["0?", "1?"], ["A", "A"], ["A", "B"]) == 0.5
    assert judge(exact, ["0?"], ["A"], ["A"]) == 1.0
