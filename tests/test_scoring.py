"""What a cell is made of, and the floor under a domain of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from datasets import Dataset
from torchmetrics import Metric

from workbench import scoring
from workbench.backbone import Backbone
from workbench.benchmark import Task
from workbench.scorers import ExactMatch, FirstCharacter, RougeL, ValidLabel
from workbench.scoring import judge, majority_answer, score_task
from workbench.strategy import ContinualStrategy
from workbench.testing import tiny_backbone, tiny_corpus


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


class Clock:
    """A clock that only an answer moves on."""

    def __init__(self) -> None:
        self.now = 7.0

    def perf_counter(self) -> float:
        return self.now


class Answers(ContinualStrategy):
    """Gives fixed answers, and takes a second and a half for them."""

    def __init__(self, answers: list[str], clock: Clock) -> None:
        super().__init__()
        self.answers, self.clock = answers, clock

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        self.clock.now += 1.5
        return self.answers


def test_decoding_is_counted_in_the_tokens_of_the_answers_and_the_seconds_of_giving_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A space and each digit are a token: 2 and the end, 3 and the end, the end alone, and 4 without an end."""
    clock, backbone = Clock(), tiny_backbone()
    monkeypatch.setattr(scoring, "time", clock)
    splits = {"test": Dataset.from_dict({"prompt": ["a"] * 4, "answer": ["1"] * 4})}
    digits = Task("digits", scorers={"accuracy": ExactMatch()}, max_new_tokens=4, **splits)
    score = score_task(backbone, Answers(["1", "12", "", "123456"], clock), digits)
    assert [row["prediction"] for row in score.predictions] == ["1", "12", "", "123456"]
    assert score.decoded_tokens == 3 + 4 + 1 + 4
    assert score.decode_seconds == 1.5
    corpus = score_task(backbone, Answers([], clock), tiny_corpus())
    assert (corpus.decoded_tokens, corpus.decode_seconds) == (0, 0.0)
