"""How an answer is judged: metrics that are the mean, over rows, of one row's score in [0, 1].

Each keeps sums and a count, so that ranks with unequal numbers of rows still give the exact mean. A row
with an empty prediction or answer scores 0 and stays in the count (SARI alone scores it like any other), as
TRACE's helpers do; but where nothing is the right answer, nothing is right, unless `empty=False` is given, as TRACE
has it.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from workbench.annotations import refuse_bare_strings
from workbench.similarity import EditVariant, Words, bleu, edit_similarity, rouge_l, sari


def exact_match(prediction: str, answer: str, empty: bool = True) -> float:
    """1 where the prediction is the answer, character by character.

    >>> exact_match("B", "B"), exact_match("B ", "B"), exact_match("", ""), exact_match("", "", empty=False)
    (1.0, 0.0, 1.0, 0.0)
    """
    return float(prediction == answer and (empty or answer != ""))


def first_character(prediction: str, answer: str) -> float:
    """1 where prediction and answer begin with the same character: the option letter, whatever reasons follow.

    >>> first_character("B because", "B"), first_character(" B", "B"), first_character("B", "")
    (1.0, 0.0, 0.0)
    """
    return exact_match(prediction[:1], answer[:1], empty=False)


def first_label(prediction: str, answer: str, pattern: str, empty: bool = True) -> float:
    """1 where the first match of a pattern in the prediction is the first match in the answer.

    It tells lost format from lost knowledge. The matches are compared as text: "1,680" is not "1680", and
    "8.0" is not "8". An answer without a match (a word where numbers are expected) is compared whole,
    stripped and with `exact_match`'s `empty`, so that this never falls below it. It may fall below
    `first_character`, which takes "Because it is. A" for "B".

    >>> first_label("答案是B。", "B", r"(?<![A-Za-z])[ABC](?![A-Za-z])")
    1.0
    >>> first_label("Both, so C", "B", r"(?<![A-Za-z])[ABC](?![A-Za-z])")
    0.0
    >>> first_label("Friday ", "Friday", r"[0-9]+"), first_label("8.0", "8", r"[0-9.]+")
    (1.0, 0.0)
    """
    expected = re.search(pattern, answer)
    if expected is None:
        return exact_match(prediction.strip(), answer.strip(), empty)
    found = re.search(pattern, prediction)
    return float(found is not None and found.group() == expected.group())


def valid_label(prediction: str, pattern: str, strip: bool = True) -> float:
    """1 where the prediction as a whole matches the pattern, the form of an answer, right or wrong.

    >>> valid_label(" C\\n", "[ABC]"), valid_label("C, because", "[ABC]"), valid_label(" C", "[ABC]", strip=False)
    (1.0, 0.0, 0.0)
    """
    return float(re.fullmatch(pattern, prediction.strip() if strip else prediction) is not None)


class RowMean(Metric):  # type: ignore[misc]
    """The mean of `score` over rows: a subclass says only how one row is scored.

    >>> metric = ExactMatch()
    >>> metric.update(prompts=["1+1", "1+2"], predictions=["2", "4"], answers=["2", "3"])
    >>> float(metric.compute())
    0.5
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "squares", "count"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        """One row's score, in [0, 1].

        Args:
            prompt: What was asked.
            prediction: What the model answered.
            answer: What is right.

        Raises:
            NotImplementedError: The subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how a row is scored: define `score`.")

    def update(self, prompts: Sequence[str], predictions: Sequence[str], answers: Sequence[str]) -> None:
        """Take in some rows.

        Raises:
            ValueError: The three differ in length, or one of them is one string.
        """
        refuse_bare_strings(prompts=prompts, predictions=predictions, answers=answers)
        if not len(prompts) == len(predictions) == len(answers):
            raise ValueError(
                f"{len(prompts)} prompts, {len(predictions)} predictions and {len(answers)} answers were "
                "given. Give one of each per row."
            )
        # double(): a module that holds this metric may have been cast to bfloat16, which counts up to 256
        scores = list(map(self.score, prompts, predictions, answers))
        self.total = self.total.double() + math.fsum(scores)
        self.squares = self.squares.double() + math.fsum(score * score for score in scores)
        self.count = self.count.double() + len(prompts)

    def __repr__(self) -> str:
        """The class and its arguments, which name the variant that is meant."""
        names = inspect.signature(type(self)).parameters
        given = [f"{name}={getattr(self, name)!r}" for name in names if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(given)})"

    def compute(self) -> Tensor:
        """The mean over all rows, a scalar; NaN before there is one."""
        return self.total / self.count

    def standard_error(self) -> float:
        """How far the mean would scatter over other test sets of as many rows, drawn alike; NaN before there is a row.

        √((Σ x²/n − x̄²) / n), which is √(p(1 − p)/n) where each row scores 0 or 1.

        >>> metric = ExactMatch()
        >>> metric.update(prompts=["1+1", "1+2", "1+3", "1+4"], predictions=["2", "4", "4", "5"], answers=list("2345"))
        >>> round(metric.standard_error() ** 2, 6) == round(0.75 * 0.25 / 4, 6)
        True
        """
        mean = self.total / self.count
        return float(((self.squares / self.count - mean**2).clamp(min=0) / self.count).sqrt())

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Keep torchmetrics from warning about a metric without rows: its NaN says so."""
        wrapped = super()._wrap_compute(compute)

        def quiet(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
                return wrapped(*args, **kwargs)

        return quiet


class ExactMatch(RowMean):
    """The share of rows where prediction and answer are the same string.

    Args:
        empty: Whether an empty prediction is right where the answer is empty.
    """

    def __init__(self, empty: bool = True) -> None:
        super().__init__()
        self.empty = empty

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return exact_match(prediction, answer, self.empty)


class FirstCharacter(RowMean):
    """The share of rows where both begin with the same character."""

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return first_character(prediction, answer)


class FirstLabel(RowMean):
    """The share of rows where the first thing that looks like a label is the right one, as text.

    It is the lenient score beside a strict one, never below `ExactMatch` on the same row. Beside
    `FirstCharacter` it may be the lower one: "Because it is. A" begins like "B".

    Args:
        pattern: A regular expression for one label. Use lookarounds, so that a letter inside a word does not
            count, as in `(?<![A-Za-z])[ABC](?![A-Za-z])`: a word boundary would also rule out a letter next
            to a Chinese character.
        empty: As `ExactMatch`'s.
    """

    def __init__(self, pattern: str, empty: bool = True) -> None:
        super().__init__()
        self.pattern, self.empty = _checked(pattern), empty

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return first_label(prediction, answer, self.pattern, self.empty)


class ValidLabel(RowMean):
    """The share of predictions that have the form of an answer, right or wrong.

    Args:
        pattern: A regular expression that the whole prediction has to match.
        strip: Whether white space at both ends is forgiven. Not beside `FirstCharacter`, which forgives none.
    """

    def __init__(self, pattern: str, strip: bool = True) -> None:
        super().__init__()
        self.pattern, self.strip = _checked(pattern), strip

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return valid_label(prediction, self.pattern, self.strip)


class RougeL(RowMean):
    """The mean ROUGE-L.

    Args:
        skip: Characters left off the front of both texts, such as an option letter and the line end after it.
        words: What a word is, see `workbench.similarity`: "scripts" also takes each character for one in a script
            without spaces, such as Chinese; "spaces" is the package `rouge`'s, to which a Chinese sentence is one word.
        empty: Whether an empty prediction scores 1 where the answer is empty.

    Raises:
        ValueError: There are no such words.
    """

    def __init__(self, skip: int = 0, words: Words = "scripts", empty: bool = True) -> None:
        super().__init__()
        self.skip, self.words, self.empty = skip, _known(words), empty

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        if self.empty and prediction == answer == "":
            return 1.0
        return rouge_l(prediction[self.skip :], answer[self.skip :], self.words)


class Bleu(RowMean):
    """The mean of the rows' BLEU (not the corpus's).

    Args:
        max_order: The longest n-gram that counts, in words; all orders weigh the same.
        skip: Characters left off the front of both texts.
        words: As `RougeL`'s.

    Raises:
        ValueError: `max_order` is below 1, or there are no such words.
    """

    def __init__(self, max_order: int = 4, skip: int = 0, words: Words = "scripts") -> None:
        super().__init__()
        if max_order < 1:
            raise ValueError(f"max_order={max_order} leaves no n-gram to count. Give 1 or more.")
        self.max_order, self.skip, self.words = max_order, skip, _known(words)

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return bleu(prediction[self.skip :], answer[self.skip :], self.max_order, self.words)


class EditSimilarity(RowMean):
    """The mean edit similarity of lines of code.

    Args:
        variant: How matching characters are found, see `edit_similarity`. Name it beside the number.

    Raises:
        ValueError: There is no such variant.
    """

    def __init__(self, variant: EditVariant = "levenshtein") -> None:
        super().__init__()
        if variant not in get_args(EditVariant):
            raise ValueError(f"variant={variant!r} is unknown. Choose one of {', '.join(get_args(EditVariant))}.")
        self.variant = variant

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return edit_similarity(prediction, answer, self.variant)


class Sari(RowMean):
    """The mean SARI, with the prompt as source.

    Args:
        words: As `RougeL`'s.

    Raises:
        ValueError: There are no such words.
    """

    def __init__(self, words: Words = "scripts") -> None:
        super().__init__()
        self.words = _known(words)

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return sari(prompt, prediction, answer, self.words)


def described(metric: Metric) -> str:
    """A metric's class, and the arguments of one of ours, as they stand beside its numbers."""
    return repr(metric) if isinstance(metric, RowMean) else type(metric).__name__


def _known(words: Words) -> Words:
    if words not in get_args(Words):
        raise ValueError(f"words={words!r} is unknown. Choose one of {', '.join(get_args(Words))}.")
    return words


def _checked(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}. Mend it.") from error
    return pattern
