"""Scorers of answers: functions that score one row, and torchmetrics metrics that average them over rows.

All scores are in [0, 1], higher is better. A row with an empty prediction or answer scores 0 and is counted, as in
TRACE; SARI scores it like any other. If both are empty, `ExactMatch`, `FirstLabel` and `RougeL` score 1, unless
`empty=False` is given, as in TRACE.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, get_args

import torch
from rapidfuzz.distance import Indel
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from torch import Tensor
from torchmetrics import Metric

from workbench.errors import refuse_bare_strings

EditVariant = Literal["levenshtein", "difflib"]
Words = Literal["spaces", "scripts"]
NGram = tuple[str, ...]

_tokenize_13a = Tokenizer13a()  # type: ignore[no-untyped-call]
_BARE_LITERALS = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
_MARKS = (  # combine with the character before: vowels and tones, voicing marks, variation selectors
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f18\u0f19\u0f35\u0f37\u0f39\u0f71-\u0f84\u0f86\u0f87"
    "\u0f90-\u0fbc\u102b-\u103e\u1056-\u1059\u17b4-\u17d3\u17dd\u3099\u309a\ufe00-\ufe0f"
)
_UNSPACED = (  # Thai and Lao, Tibetan, Burmese, Khmer, Han with kana and bopomofo, halfwidth kana, rarer Han
    "\u0e01-\u0edf\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u303c\u3041-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_CHARACTER = re.compile(f"[{_UNSPACED}][{_MARKS}]*")
_FULL_STOPS = str.maketrans("。．｡", "...")
_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


def apart(text: str) -> str:
    """Return a text with spaces around each character of a script without spaces, and its full stops as ".".

    >>> apart("我爱cats。"), apart("a cat.")
    (' 我  爱 cats.', 'a cat.')
    """
    return _CHARACTER.sub(r" \g<0> ", text.translate(_FULL_STOPS) if _CHARACTER.search(text) else text)


def rouge_l(prediction: str, answer: str, words: Words = "spaces") -> float:
    """Return the summary-level ROUGE-L of distinct words: F = 2PR / (P + R + 1e-8)   (Lin, 2004, section 3).

    P = |U| / |words of the prediction| and R = |U| / |words of the answer|, where U is the union, over all pairs of
    sentences, of the words in their longest common subsequence. As in the package `rouge` 1.0.1: sentences end at each
    full stop, and ties between several longest subsequences are broken with the prediction as its reference. With
    words="scripts" each character of a script without spaces, such as Chinese, is a word.

    >>> round(rouge_l("the cat sat. it slept", "the cat lay. it slept"), 6)
    0.8
    >>> round(rouge_l("我爱猫。", "我爱狗。"), 6), round(rouge_l("我爱猫。", "我爱狗。", "scripts"), 6)
    (0.0, 0.666667)
    """
    if words == "scripts":
        prediction, answer = apart(prediction), apart(answer)
    ours, theirs = _sentences(prediction), _sentences(answer)
    if not ours or not theirs:
        return 0.0
    common = {word for x in ours for y in theirs for word in _common_words(x, y)}
    precision = len(common) / len({word for sentence in ours for word in sentence})
    recall = len(common) / len({word for sentence in theirs for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence; a sentence of only white space is one empty word, as in `rouge` 1.0.1."""
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _common_words(x: list[str], y: list[str]) -> set[str]:
    """Return the words of one longest common subsequence, by the bit-parallel algorithm of Hyyrö (2004).

    Bit j of rows[i] is set if the subsequence of x[:i] and y grows at y[j], so that the number of bits below j is the
    length for x[:i] and y[:j]. In the backward pass, a tie between the two directions drops y's word.
    """
    if not set(x) & set(y):
        return set()
    full = (1 << len(y)) - 1
    positions = {word: sum(1 << j for j, other in enumerate(y) if other == word) for word in set(x)}
    free, rows = full, [0]
    for word in x:
        hits = free & positions[word]
        free = ((free + hits) | (free - hits)) & full
        rows.append(full & ~free)

    def length(i: int, j: int) -> int:
        return (rows[i] & ((1 << j) - 1)).bit_count()

    words, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif length(i - 1, j) > length(i, j - 1):
            i -= 1
        else:
            j -= 1
    return words


def bleu(prediction: str, answer: str, max_order: int = 4, words: Words = "spaces") -> float:
    """Return sentence BLEU without smoothing: min(1, e^(1 - r/c)) · (Π p_n)^(1/N)   (Papineni et al., 2002).

    c and r are the numbers of words of prediction and answer, N is `max_order`. Words are separated by white space and
    full stops, `words` as in `rouge_l`. If an order has no match, the score is 0, as for most short answers with N = 4.

    >>> bleu("a b c d", "a b c d"), round(bleu("a b", "a b c", 1), 6), bleu("a b", "a b")
    (1.0, 0.606531, 0.0)
    """
    if words == "scripts":
        prediction, answer = apart(prediction), apart(answer)
    ours, theirs = (re.findall(r"[^\s.]+", text) for text in (prediction, answer))
    logs = 0.0
    for order in range(1, max_order + 1):
        mine = Counter(_ngrams(ours, order))
        matches = (mine & Counter(_ngrams(theirs, order))).total()
        if not matches:
            return 0.0
        logs += math.log(matches / mine.total())
    return math.exp(min(0.0, 1 - len(theirs) / len(ours)) + logs / max_order)


def _ngrams(words: Sequence[str], order: int) -> list[NGram]:
    return list(zip(*(words[start:] for start in range(order)), strict=False))


def edit_similarity(prediction: str, answer: str, variant: EditVariant = "levenshtein") -> float:
    """Return the similarity of two lines of code after masked literals are replaced, rounded to 0.01.

    2M / (|prediction| + |answer|), with M the number of matching characters: by `variant` those of a longest common
    subsequence ("levenshtein") or of `difflib`'s matching blocks ("difflib"). TRACE's `fuzzywuzzy` uses the first if
    python-Levenshtein is installed, otherwise the second; they can differ by several hundredths.

    >>> edit_similarity("x = <NUM_LIT:12>", "x = 12"), edit_similarity("abcd", "abxx", "difflib")
    (1.0, 0.5)
    """
    a, b = _unmask(prediction), _unmask(answer)
    if not a or not b:
        return 0.0
    ratio = SequenceMatcher(None, a, b).ratio() if variant == "difflib" else Indel.normalized_similarity(a, b)
    return round(100 * ratio) / 100


def _unmask(code: str) -> str:
    for mask, value in _BARE_LITERALS.items():
        code = code.replace(mask, value)
    return _LITERAL.sub(lambda match: match.group(1), code)


def sari(prompt: str, prediction: str, answer: str, words: Words = "spaces") -> float:
    """Return SARI, which scores the n-grams kept, deleted and added relative to the prompt   (Xu et al., 2016).

    The mean over n = 1 … 4 of (F_keep + P_delete + F_add) / 3, with 0/0 = 1. Texts are lower-cased and split into 13a
    tokens, `words` as in `rouge_l`; keep and delete count repetitions, add does not.

    >>> sari("the big cat sat down", "the cat sat", "the cat sat")
    1.0
    >>> round(sari("the big cat sat down", "the big cat sat down", "the cat sat"), 4)
    0.5958
    """
    texts = [text.lower() for text in (prompt, prediction, answer)]
    if words == "scripts":
        texts = list(map(apart, texts))
    parts = [_tokenize_13a(text).split(" ") for text in texts]
    counts = [[Counter(_ngrams(text, order)) for text in parts] for order in range(1, 5)]
    scores = [(_keep(*three) + _delete(*three) + _add(*three)) / 3 for three in counts]
    return sum(scores) / len(scores)


def _keep(source: Counter[NGram], ours: Counter[NGram], theirs: Counter[NGram]) -> float:
    kept, to_keep = source & ours, source & theirs
    good = kept & theirs
    precision = _ratio(sum(good[ngram] / kept[ngram] for ngram in good), len(kept))
    return _f_score(precision, _ratio(good.total(), to_keep.total()))


def _delete(source: Counter[NGram], ours: Counter[NGram], theirs: Counter[NGram]) -> float:
    deleted = source - ours
    good = deleted - theirs
    return _ratio(sum(good[ngram] / deleted[ngram] for ngram in good), len(deleted))


def _add(source: Counter[NGram], ours: Counter[NGram], theirs: Counter[NGram]) -> float:
    added, to_add = set(ours) - set(source), set(theirs) - set(source)
    good = len(added & to_add)
    return _f_score(_ratio(good, len(added)), _ratio(good, len(to_add)))


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else 1.0


def _f_score(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision or recall else 0.0


def exact_match(prediction: str, answer: str, empty: bool = True) -> float:
    """Return 1 if prediction and answer are the same string, otherwise 0; `empty` is the score of two empty strings.

    >>> exact_match("B", "B"), exact_match("B ", "B"), exact_match("", ""), exact_match("", "", empty=False)
    (1.0, 0.0, 1.0, 0.0)
    """
    return float(prediction == answer and (empty or answer != ""))


def first_character(prediction: str, answer: str) -> float:
    """Return 1 if prediction and answer begin with the same character, such as an option letter, otherwise 0.

    >>> first_character("B because", "B"), first_character(" B", "B"), first_character("B", "")
    (1.0, 0.0, 0.0)
    """
    return exact_match(prediction[:1], answer[:1], empty=False)


def first_label(prediction: str, answer: str, pattern: str, empty: bool = True) -> float:
    """Return 1 if the first match of a pattern in the prediction equals the first one in the answer, otherwise 0.

    Matches are compared as text: "8.0" is not "8". If the answer has no match (a word instead of a number), the
    stripped texts are compared by `exact_match` with `empty`; so the score is never below `exact_match`. It can be
    below `first_character`, which accepts "Because it is. A" for "B".

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
    """Return 1 if the prediction (with `strip`, the stripped prediction) fully matches a pattern, otherwise 0.

    >>> valid_label(" C\\n", "[ABC]"), valid_label("C, because", "[ABC]"), valid_label(" C", "[ABC]", strip=False)
    (1.0, 0.0, 0.0)
    """
    return float(re.fullmatch(pattern, prediction.strip() if strip else prediction) is not None)


class RowMean(Metric):  # type: ignore[misc]
    """Base class of metrics that are the mean of `score` over rows, exact for processes with unequal numbers of rows.

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
        """Return the score of one row, in [0, 1].

        Args:
            prompt: The row's prompt.
            prediction: The model's answer.
            answer: The correct answer.

        Raises:
            NotImplementedError: The subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how a row is scored: define `score`.")

    def update(self, prompts: Sequence[str], predictions: Sequence[str], answers: Sequence[str]) -> None:
        """Add rows, each with one of `prompts`, `predictions` and `answers`.

        Raises:
            ValueError: The three differ in length, or one of them is a string.
        """
        refuse_bare_strings(prompts=prompts, predictions=predictions, answers=answers)
        if not len(prompts) == len(predictions) == len(answers):
            counts = f"{len(prompts)} prompts, {len(predictions)} predictions and {len(answers)} answers"
            raise ValueError(f"{counts} were given. Give one of each per row.")
        # double(): a module with this metric may have been cast to bfloat16, which counts up to 256
        scores = list(map(self.score, prompts, predictions, answers))
        self.total = self.total.double() + math.fsum(scores)
        self.squares = self.squares.double() + math.fsum(score * score for score in scores)
        self.count = self.count.double() + len(prompts)

    def __repr__(self) -> str:
        """Return the class with its arguments, which identify the variant."""
        parameters = inspect.signature(type(self)).parameters
        arguments = [f"{name}={getattr(self, name)!r}" for name in parameters if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def compute(self) -> Tensor:
        """Return the mean over all rows, a scalar; NaN if there is none."""
        return self.total / self.count

    def standard_error(self) -> float:
        """Return the standard error of the mean, √((Σ x²/n − x̄²) / n); NaN if there is no row.

        >>> metric = ExactMatch()
        >>> metric.update(prompts=["1+1", "1+2", "1+3", "1+4"], predictions=["2", "4", "4", "5"], answers=list("2345"))
        >>> round(metric.standard_error() ** 2, 6) == round(0.75 * 0.25 / 4, 6)
        True
        """
        mean = self.total / self.count
        return float(((self.squares / self.count - mean**2).clamp(min=0) / self.count).sqrt())

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Suppress torchmetrics' warning about a metric without rows, whose value is NaN."""
        wrapped = super()._wrap_compute(compute)

        def quiet(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
                return wrapped(*args, **kwargs)

        return quiet


class ExactMatch(RowMean):
    """Share of rows whose prediction equals the answer; see `exact_match`.

    Args:
        empty: Whether an empty prediction is correct if the answer is empty.
    """

    def __init__(self, empty: bool = True) -> None:
        super().__init__()
        self.empty = empty

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return exact_match(prediction, answer, self.empty)


class FirstCharacter(RowMean):
    """Share of rows whose prediction begins with the answer's first character; see `first_character`."""

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return first_character(prediction, answer)


class FirstLabel(RowMean):
    """Share of rows whose first label is correct, even if the format was lost; see `first_label`.

    Args:
        pattern: Regular expression of a label. Exclude letters inside words by lookarounds, as in
            `(?<![A-Za-z])[ABC](?![A-Za-z])`; a word boundary would also exclude a letter next to a Chinese character.
        empty: As in `ExactMatch`.
    """

    def __init__(self, pattern: str, empty: bool = True) -> None:
        super().__init__()
        self.pattern, self.empty = _checked(pattern), empty

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return first_label(prediction, answer, self.pattern, self.empty)


class ValidLabel(RowMean):
    """Share of predictions that have the form of an answer, correct or not; see `valid_label`.

    Args:
        pattern: Regular expression that the whole prediction has to match.
        strip: Whether white space at both ends is ignored; False next to `FirstCharacter`, which does not ignore it.
    """

    def __init__(self, pattern: str, strip: bool = True) -> None:
        super().__init__()
        self.pattern, self.strip = _checked(pattern), strip

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return valid_label(prediction, self.pattern, self.strip)


class RougeL(RowMean):
    """Mean ROUGE-L; see `rouge_l`.

    Args:
        skip: Number of leading characters to remove from both texts, such as an option letter and a line end.
        words: "scripts": each character of a script without spaces, such as Chinese, is a word; "spaces": as in the
            package `rouge`, for which a Chinese sentence is one word.
        empty: Whether an empty prediction scores 1 if the answer is empty.

    Raises:
        ValueError: `words` has another value.
    """

    def __init__(self, skip: int = 0, words: Words = "scripts", empty: bool = True) -> None:
        super().__init__()
        self.skip, self.words, self.empty = skip, _known(words), empty

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        if self.empty and prediction == answer == "":
            return 1.0
        return rouge_l(prediction[self.skip :], answer[self.skip :], self.words)


class Bleu(RowMean):
    """Mean sentence BLEU of the rows, not corpus BLEU; see `bleu`.

    Args:
        max_order: Longest n-gram, in words; all orders have the same weight.
        skip: Number of leading characters to remove from both texts.
        words: As in `RougeL`.

    Raises:
        ValueError: `max_order` is below 1, or `words` has another value.
    """

    def __init__(self, max_order: int = 4, skip: int = 0, words: Words = "scripts") -> None:
        super().__init__()
        if max_order < 1:
            raise ValueError(f"max_order={max_order} leaves no n-gram to count. Give 1 or more.")
        self.max_order, self.skip, self.words = max_order, skip, _known(words)

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return bleu(prediction[self.skip :], answer[self.skip :], self.max_order, self.words)


class EditSimilarity(RowMean):
    """Mean edit similarity of lines of code; see `edit_similarity`.

    Args:
        variant: "levenshtein" or "difflib"; report it with the score.

    Raises:
        ValueError: `variant` has another value.
    """

    def __init__(self, variant: EditVariant = "levenshtein") -> None:
        super().__init__()
        if variant not in get_args(EditVariant):
            raise ValueError(f"variant={variant!r} is unknown. Choose one of {', '.join(get_args(EditVariant))}.")
        self.variant = variant

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return edit_similarity(prediction, answer, self.variant)


class Sari(RowMean):
    """Mean SARI with the prompt as source; see `sari`.

    Args:
        words: As in `RougeL`.

    Raises:
        ValueError: `words` has another value.
    """

    def __init__(self, words: Words = "scripts") -> None:
        super().__init__()
        self.words = _known(words)

    def score(self, prompt: str, prediction: str, answer: str) -> float:
        return sari(prompt, prediction, answer, self.words)


def described(metric: Metric) -> str:
    """Return a metric's class name, for a `RowMean` with its arguments; recorded next to the metric's values."""
    return repr(metric) if isinstance(metric, RowMean) else type(metric).__name__


def _known(words: Words) -> Words:
    if words not in get_args(Words):
        raise ValueError(f"words={words!r} is unknown. Choose one of {', '.join(get_args(Words))}.")
    return words


def _checked(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}. Fix it.") from error
    return pattern
