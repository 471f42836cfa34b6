"""How TRACE's tasks are scored, and `score`: what its own evaluation prints.

Words stand between spaces and an empty answer is never right, as in TRACE's evaluation: these values are published.
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
    """The first number is compared as text: "1,680" is not "1680", and "8.0" is not "8"."""
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
    """Difflib's first: TRACE's requirements install `fuzzywuzzy` without python-Levenshtein."""
    return {"similarity": EditSimilarity("difflib"), "similarity_levenshtein": EditSimilarity("levenshtein")}


def _science() -> dict[str, Metric]:
    """By the first character, as it stands: an option letter after white space is neither right nor valid.

    "valid" asks that this character is an option letter with no letter, digit or underscore after it, so
    "Because" is none. "accuracy" is TRACE's and asks no more than its first character, so that for the answer
    "B" it takes "Because it is. A", which "accuracy_lenient" does not: here that may be the lower one.
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
    """What TRACE's own evaluation prints for one task: its names, its scales (Py150 and SARI to 100).

    Py150's "similarity" is `difflib`'s, as TRACE's requirements have it. Both variants also stand there by
    name: "similarity_difflib" and "similarity_levenshtein".

    Args:
        task_name: As TRACE calls it.
        prompts: One for each row.
        predictions: What was answered.
        answers: What is right.

    Raises:
        ValueError: TRACE has no such task, or the three differ in length.

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
    """Fresh scorers for `task_name`, the primary one first; for a task that is not TRACE's, exact match and ROUGE-L.

    There each character of a script without spaces, such as Chinese, is a word of ROUGE-L.
    """
    if task_name in SCORERS:
        return SCORERS[task_name]()
    return {"accuracy": ExactMatch(), "rouge-L": RougeL()}
