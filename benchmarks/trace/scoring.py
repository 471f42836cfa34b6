"""Scorers of TRACE's tasks, and `score`, which returns the values of TRACE's own evaluation.

As in TRACE's evaluation, words are separated by spaces and an empty answer is never correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchmetrics import Metric

from benchmarks.trace.names import check_names
from workbench.scorers import Bleu, EditSimilarity, ExactMatch, FirstCharacter, FirstLabel, RougeL, Sari, ValidLabel

STANCE = r"(?<![A-Za-z0-9_])[ABC](?![A-Za-z0-9_])"
OPTION = r"(?<![A-Za-z0-9_])[A-E](?![A-Za-z0-9_])"
NUMBER = r"(?<![A-Za-z0-9_.])-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"
BEGINS_WITH_OPTION = r"(?s:[A-E](?!\w).*)"
LETTER_AND_LINE_END = 2  # characters before the reasons in a ScienceQA answer


def _stance() -> dict[str, Metric]:
    return {**_matched(STANCE), "valid": ValidLabel("[ABC]")}


def _number() -> dict[str, Metric]:
    """Return exact match and its lenient form, which compares the first number as text: "8.0" is not "8"."""
    return _matched(NUMBER)


def _matched(pattern: str) -> dict[str, Metric]:
    return {"accuracy": ExactMatch(empty=False), "accuracy_lenient": FirstLabel(pattern, empty=False)}


def _summary() -> dict[str, Metric]:
    return {"rouge-L": _rouge_l(), "bleu-1": _bleu(1), "bleu-4": _bleu(4)}


def _rouge_l(skip: int = 0) -> RougeL:
    return RougeL(skip, words="spaces", empty=False)


def _bleu(max_order: int, skip: int = 0) -> Bleu:
    return Bleu(max_order, skip, words="spaces")


def _code() -> dict[str, Metric]:
    """Return both edit similarities; difflib's is primary, as TRACE installs fuzzywuzzy without python-Levenshtein."""
    return {"similarity": EditSimilarity("difflib"), "similarity_levenshtein": EditSimilarity("levenshtein")}


def _science() -> dict[str, Metric]:
    """Return the accuracy of the first character, and ROUGE-L and BLEU of the reasons.

    "accuracy" is TRACE's and compares only the first character: an option letter after white space is wrong, and
    "Because it is. A" is correct for "B". "accuracy_lenient" rejects the latter, so it may be the lower of the two.
    "valid" requires an option letter that is not followed by a letter, digit or underscore.
    """
    reasons = LETTER_AND_LINE_END
    return {
        "accuracy": FirstCharacter(),
        "accuracy_lenient": FirstLabel(OPTION, empty=False),
        "valid": ValidLabel(BEGINS_WITH_OPTION, strip=False),
        "rouge-L": _rouge_l(reasons),
        "bleu-1": _bleu(1, reasons),
        "bleu-4": _bleu(4, reasons),
    }


def _simplification() -> dict[str, Metric]:
    return {"sari": Sari(words="spaces"), "bleu-1": _bleu(1), "bleu-4": _bleu(4), "rouge-L": _rouge_l()}


SCORERS: dict[str, Callable[[], dict[str, Metric]]] = {
    "C-STANCE": _stance,
    "FOMC": _stance,
    "MeetingBank": _summary,
    "Py150": _code,
    "ScienceQA": _science,
    "NumGLUE-cm": _number,
    "NumGLUE-ds": _number,
    "20Minuten": _simplification,
}
OURS_ALONE = ("accuracy_lenient", "valid")
SCALES = {"similarity": 100, "similarity_levenshtein": 100, "sari": 100}


def score(
    task_name: str, prompts: Sequence[str], predictions: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """Return the scores that TRACE's own evaluation prints for one task, with its names and scales.

    Similarity (Py150) and SARI are in [0, 100], all others in [0, 1]; higher is better. "similarity" is `difflib`'s,
    as with TRACE's requirements; both variants are also returned as "similarity_difflib" and
    "similarity_levenshtein".

    Args:
        task_name: TRACE's name of the task.
        prompts: One for each row.
        predictions: The model's answers.
        answers: The correct answers.

    Raises:
        ValueError: TRACE has no such task, or the three lists differ in length.

    >>> score("FOMC", ["Stance:"] * 2, ["A", "B because"], ["A", "B"])
    {'accuracy': 0.5}
    >>> score("Py150", ["def f ( ) :"], ["return a"], ["return b"])["similarity"]
    88.0
    """
    check_names("task_name", [task_name], SCORERS)
    scores = {}
    for name, scorer in SCORERS[task_name]().items():
        if name not in OURS_ALONE:
            scorer.update(prompts, predictions, answers)
            scores[name] = float(scorer.compute()) * SCALES.get(name, 1)
    if "similarity" in scores:
        scores["similarity_difflib"] = scores["similarity"]
    return scores


def scorers_for(task_name: str) -> dict[str, Metric]:
    """Return new scorers of a task, the primary one first; exact match and ROUGE-L if it is not one of TRACE's.

    In that ROUGE-L each character of a script without spaces, such as Chinese, is a word.

    Args:
        task_name: Name of the task.
    """
    if task_name in SCORERS:
        return SCORERS[task_name]()
    return {"accuracy": ExactMatch(), "rouge-L": RougeL()}
