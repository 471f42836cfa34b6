"""Everyday questions with short answers, and a general corpus of English."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

from datasets import Dataset

from workbench.benchmark import Task, dataset_of_pairs
from workbench.scorers import RowMean

HERE = Path(__file__).parent
QUESTION = "Q: What is a baby sheep called?\nA: A lamb.\n\nQ: {}\nA:"
"""One example shows that an answer is short; without it, SmolLM2-135M answers many questions with nothing."""
LONGEST_ANSWER = 8
"""In tokens."""
REFERENCE = "pydoc_data.topics"
"""Python's own language reference as plain text; it comes with Python."""
SHORTEST_PARAGRAPH = 200
"""In characters; shorter paragraphs of the reference are headings and lines of grammar."""


class Contains(RowMean):
    """Share of predictions that contain the right answer as whole words, in upper or lower case.

    >>> Contains().score("", " The capital is Tokyo.", " Tokyo"), Contains().score("", "Tokyoites", "Tokyo")
    (1.0, 0.0)
    """

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return float(re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", prediction, re.IGNORECASE) is not None)


def questions() -> Task:
    """Return 56 questions of general knowledge as a probe, scored by `Contains`."""
    rows = json.loads((HERE / "questions.json").read_text(encoding="utf-8"))
    pairs = [(QUESTION.format(row["question"]), " " + row["answer"]) for row in rows]
    return Task(
        "questions",
        test=dataset_of_pairs(pairs),
        scorers={"contains": Contains()},
        max_new_tokens=LONGEST_ANSWER,
    )


def text() -> Task:
    """Return a general corpus: 24 paragraphs of plain English to test, Python's language reference to train.

    The training texts serve a recovery stage, such as the one after depth up-scaling. They are the paragraphs of
    `pydoc_data.topics`, and so depend on the version of Python; what is tested does not.

    Raises:
        ValueError: This Python comes without its language reference.
    """
    test = (HERE / "texts.txt").read_text(encoding="utf-8").splitlines()
    return Task("text", test=_texts(test), train=_texts(reference_paragraphs()))


def reference_paragraphs() -> list[str]:
    """Return the longer paragraphs of Python's language reference, each in one line.

    Raises:
        ValueError: This Python comes without it.
    """
    try:
        topics: dict[str, str] = import_module(REFERENCE).topics
    except ImportError as error:
        message = f"this Python comes without its language reference ({REFERENCE})"
        raise ValueError(f"{message}. Install Python's whole standard library.") from error
    paragraphs = [" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n")]
    return [part for part in dict.fromkeys(paragraphs) if len(part) >= SHORTEST_PARAGRAPH]


def _texts(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})
