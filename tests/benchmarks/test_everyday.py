"""Everyday questions and plain English: what a pretrained model knew before."""

from __future__ import annotations

import sys

import pytest

from benchmarks.everyday import Contains, questions, text
from benchmarks.everyday.probes import reference_paragraphs


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        (" The capital of Japan is Tokyo.", " Tokyo", 1.0),
        ("tokyo", " Tokyo", 1.0),
        (" Tokyoites", " Tokyo", 0.0),
        (" H2O", " H2O", 1.0),
        (" 100 degrees", " 100", 1.0),
        (" 1000", " 100", 0.0),
        (" in South America", " South America", 1.0),
        ("", " cat", 0.0),
    ],
)
def test_contains_looks_for_whole_words(prediction: str, answer: str, score: float) -> None:
    assert Contains().score("", prediction, answer) == score


def test_the_questions_are_a_probe_with_different_prompts() -> None:
    task = questions()
    assert len(task.train) == len(task.validation) == 0
    assert len(set(task.test["prompt"])) == len(task.test) == 56
    first = task.test[0]
    assert first["prompt"].endswith("\n\nQ: What is the capital of Japan?\nA:")
    assert first["answer"] == " Tokyo"
    scorer = task.scorers[task.primary]
    scorer.update(task.test["prompt"][:], task.test["answer"][:], task.test["answer"][:])
    assert float(scorer.compute()) == 1.0


def test_no_question_gives_its_own_answer_away() -> None:
    asked = questions().test
    assert not [row for row in asked if Contains().score("", row["prompt"], row["answer"])]


def test_what_is_tested_is_never_trained() -> None:
    corpus = text()
    assert len(corpus.test) == 24
    assert not set(corpus.test["text"]) & set(corpus.train["text"])
    assert all(1000 > len(row) > 300 for row in corpus.test["text"])


def test_the_recovery_text_is_the_reference_of_this_python() -> None:
    paragraphs = reference_paragraphs()
    assert len(paragraphs) > 300
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(len(paragraph) >= 200 and "\n" not in paragraph for paragraph in paragraphs)
    assert any("garbage" in paragraph for paragraph in paragraphs)


def test_a_python_without_its_reference_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"without its language reference.*Install"):
        text()
