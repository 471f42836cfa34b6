"""Scores of one task: majority answers, comparison with producible answers, options, costs of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import normalizers
from torchmetrics import Metric

from workbench.backbone import Backbone
from workbench.backbone.encoding import TextPolicy
from workbench.benchmark import Task
from workbench.scorers import ExactMatch, FirstCharacter, RougeL, ValidLabel
from workbench.strategy import ContinualStrategy
from workbench.testing.tiny import tiny_backbone, tiny_corpus, tiny_tasks
from workbench.train import evaluation, score_task
from workbench.train.evaluation import Reach, judge, majority_answer, reach


def task(train: list[str], test: list[str], scorers: dict[str, Metric]) -> Task:
    splits: dict[str, Any] = {
        name: Dataset.from_dict({"prompt": [f"{number}?" for number in range(len(answers))], "answer": answers})
        for name, answers in (("train", train), ("test", test))
    }
    return Task("labels", scorers=scorers, **splits)


def test_the_most_frequent_training_answer_is_scored_on_the_test_rows() -> None:
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
def test_texts_and_untrained_tasks_have_no_majority_answer(train: list[str], scorers: dict[str, Metric]) -> None:
    assert majority_answer(task(train, ["A"], scorers)) is None


def test_judging_does_not_change_the_tasks_own_metric() -> None:
    exact = ExactMatch()
    assert judge(exact, ["0?", "1?"], ["A", "A"], ["A", "B"]) == 0.5
    assert judge(exact, ["0?"], ["A"], ["A"]) == 1.0


def nfc_backbone() -> Backbone:
    """A tokenizer that composes accents, as Qwen's does."""
    backbone = tiny_backbone(num_hidden_layers=1)
    backbone.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return backbone


class Says(ContinualStrategy):
    """Gives fixed answers."""

    def __init__(self, *answers: object) -> None:
        super().__init__()
        self.answers = list(answers)

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> Any:
        return self.answers


@pytest.mark.parametrize(
    ("answer", "prediction", "right"),
    [
        (" A", "A", 1.0),  # the tokenizer drops a leading space
        (" A", " A", 1.0),  # a strategy's own answer may have it
        (" A", "B", 0.0),
        ("A", " A", 0.0),  # an ordinary answer is compared letter by letter
        ("e\u0301te\u0301", "été", 1.0),
        ("A </s> D", "A ", 0.0),  # what remains of an answer is not the answer
        ("a very long answer", "a ver", 0.0),
        ("", "", 1.0),
    ],
)
def test_an_answer_is_compared_as_its_own_tokens_decode(answer: str, prediction: str, right: float) -> None:
    backbone = nfc_backbone()
    rows = Dataset.from_dict({"prompt": ["?"], "answer": [answer]})
    one = Task("one", test=rows, scorers={"accuracy": ExactMatch()}, max_new_tokens=9, options=("x", "y"))
    score = score_task(backbone, Says(prediction), one)
    assert score.value == right
    (row,) = score.predictions
    assert (row["prediction"], row["answer"]) == (prediction, answer)
    assert right == float(row["prediction"] == row.get("compared_with", answer))


def test_the_likeliest_option_is_compared_as_the_tokenizer_writes_it() -> None:
    rows = Dataset.from_dict({"prompt": ["?", "?"], "answer": [" A", " B"]})
    two = Task("two", test=rows, scorers={"accuracy": ExactMatch()}, max_new_tokens=3, options=("A", "B"))
    assert score_task(tiny_backbone(), Says("A", "A"), two, options=True).metrics["likeliest_option"] == 0.5


def reached(answers: list[str], scorer: Metric, tokens: int = 9) -> Reach | None:
    rows = Dataset.from_dict({"prompt": ["?"] * len(answers), "answer": answers})
    return reach(tiny_backbone(num_hidden_layers=1), Task("t", test=rows, scorers={"m": scorer}, max_new_tokens=tokens))


def test_right_answers_that_cannot_be_produced_are_counted() -> None:
    assert reached(["A", "B", ""], ExactMatch()) is None
    told = reached(["A", "B </s> D", "A", "C </s> D"], ExactMatch())
    assert (
        str(told) == "t: 2 of 4 test answers cannot be produced (the tokens of 'B </s> D' decode to 'B '); "
        "the best possible m is 0.5"
    )
    assert told
    assert told.stated == {
        "rows": 4, "cannot_be_produced": 2, "longer_than_the_limit": 0, "compared_as_written": 0,
        "best_m": 0.5, "example": ["B </s> D", "B "],
    }  # fmt: skip
    assert str(reached(["A", " B"], ExactMatch())) == (
        "t: 1 of 2 test answers are compared as the tokenizer writes them (the tokens of ' B' decode to 'B')"
    )
    assert str(reached(["A", "", ""], ExactMatch(empty=False))) == (
        "t: 2 of 3 test answers cannot be produced (the tokens of '' decode to ''); the best possible m is 0.3333"
    )
    long = reached(["A", "AB"], FirstCharacter(), tokens=2)
    assert long
    assert str(long) == "t: 1 of 2 test answers cannot be produced (1 longer than the limit); the best possible m is 1"
    assert str(reached(["a long answer", "B </s>"], ExactMatch(), tokens=5)) == (
        "t: 2 of 2 test answers cannot be produced (1 longer than the limit; the tokens of 'B </s>' decode to 'B '); "
        "the best possible m is 0"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["ab"],
            r"^Says\.answer\('one'\) returned 1 answers for 2 prompts\. Give one text for each, in their order\.$",
        ),
        (
            ["a", None],
            r"^Says\.answer\('one'\) returned .*NoneType; expected a list of texts for 2 prompts\. Give one text",
        ),
    ],
)
def test_answers_other_than_a_list_of_texts_are_refused(given: list[Any], told: str) -> None:
    rows = Dataset.from_dict({"prompt": ["?", "?"], "answer": ["a", "b"]})
    one = Task("one", test=rows, scorers={"accuracy": ExactMatch()})
    with pytest.raises(ValueError, match=told):
        score_task(tiny_backbone(num_hidden_layers=1), Says(*given), one)


def test_too_few_answers_are_refused() -> None:
    rows = Dataset.from_dict({"prompt": ["?", "?"], "answer": ["a", "b"]})
    strategy = Says()
    strategy.answers = "ab"  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=r"^Says\.answer\('one'\) returned an object of type str; expected a list of texts"
    ):
        score_task(
            tiny_backbone(num_hidden_layers=1), strategy, Task("one", test=rows, scorers={"accuracy": ExactMatch()})
        )


class Clock:
    """A clock that advances only when an answer is given."""

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


def test_decoded_tokens_and_seconds_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A space and each digit are a token: 2 and the end, 3 and the end, the end alone, and 4 without an end."""
    clock, backbone = Clock(), tiny_backbone()
    monkeypatch.setattr(evaluation, "time", clock)
    splits = {"test": Dataset.from_dict({"prompt": ["a"] * 4, "answer": ["1"] * 4})}
    digits = Task("digits", scorers={"accuracy": ExactMatch()}, max_new_tokens=4, **splits)
    score = score_task(backbone, Answers(["1", "12", "", "123456"], clock), digits)
    assert [row["prediction"] for row in score.predictions] == ["1", "12", "", "123456"]
    assert score.decoded_tokens == 3 + 4 + 1 + 4
    assert score.decode_seconds == 1.5
    corpus = score_task(backbone, Answers([], clock), tiny_corpus())
    assert (corpus.decoded_tokens, corpus.decode_seconds) == (0, 0.0)


class AnswersAlike(ContinualStrategy):
    """Overrides `answer` with what the base class does."""

    def answer(self, backbone: Backbone, task: Task, prompts: Sequence[str]) -> list[str]:
        return super().answer(backbone, task, prompts)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [({}, 1), ({"family": "mistral", "sliding_window": 5}, 2), ({"text": TextPolicy(tokenization="joint")}, 1)],
)
def test_a_prompt_is_read_once_for_its_answer_and_its_likelihood(changes: dict[str, Any], passes: int) -> None:
    """Unless the strategy answers itself or the model has no plain cache; the scores are the same."""
    backbone, task, read = tiny_backbone(**changes), tiny_tasks()[0], []
    embeddings = backbone.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, given, __: read.append(min(given[0].shape)))
    scores = []
    for strategy, expected in ((ContinualStrategy(), passes), (AnswersAlike(), 2)):
        read.clear()
        scores.append(score_task(backbone, strategy, task))
        assert sum(least > 1 for least in read) == expected
    once, twice = scores
    assert once.nats_per_token == pytest.approx(twice.nats_per_token, rel=1e-6)
    assert once.tokens == twice.tokens == sum(backbone.nats(backbone.encode(task.test, task.max_new_tokens))[1])
    assert (once.predictions, once.metrics, once.cut) == (twice.predictions, twice.metrics, twice.cut)


def test_prompts_that_generation_reads_differently_are_read_twice() -> None:
    """Of a joint text of prompt and answer, the tokens at the border may differ from those of the prompt alone."""
    backbone = tiny_backbone(text=TextPolicy(tokenization="joint", max_length=8))
    rows = Dataset.from_dict({"prompt": ["a long prompt", "b"], "answer": ["x", "y"]})
    encoded = backbone.encode(rows, 3)
    assert not backbone.reads_once(encoded, rows["prompt"][:], 3)
    assert not backbone.reads_once(encoded.select([]), [], 3)


def test_the_likeliest_option_is_a_separate_metric() -> None:
    task = replace(tiny_tasks()[0], options=tuple("abcdefgh"))
    backbone = tiny_backbone()
    plain = score_task(backbone, ContinualStrategy(), task)
    scored = score_task(backbone, ContinualStrategy(), task, options=True)
    chosen = backbone.likeliest(task.test["prompt"], task.options, task.max_new_tokens)
    right = sum(one == other for one, other in zip(chosen, task.test["answer"], strict=True))
    assert scored.metrics == plain.metrics | {"likeliest_option": right / len(chosen)}
    assert (scored.primary, scored.predictions) == (plain.primary, plain.predictions)
