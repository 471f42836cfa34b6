"""How alike two texts are: ROUGE-L, BLEU, edit similarity and SARI of one row, each as TRACE computes it.

Pure functions of strings with values in [0, 1]; `workbench.scorers` takes their means. Numbers published
under these names depend on details of tokens, ties and smoothing, so each docstring says which are meant.
Where words are compared, `words` says what a word is: "spaces", what stands between spaces, as published; or
"scripts", where also each character is a word in a script that writes no spaces (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, Tibetan). Texts in other scripts have the same value under both.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from rapidfuzz.distance import Indel
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

EditVariant = Literal["levenshtein", "difflib"]
Words = Literal["spaces", "scripts"]
NGram = tuple[str, ...]

_tokenize_13a = Tokenizer13a()  # type: ignore[no-untyped-call]
_BARE_LITERALS = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
_MARKS = (  # written on the character before: vowels and tones, voicing marks, variation selectors
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
    """A text with spaces around each character of a script that writes none; a full stop of theirs becomes a plain one.

    >>> apart("我爱cats。"), apart("a cat.")
    (' 我  爱 cats.', 'a cat.')
    """
    return _CHARACTER.sub(r" \g<0> ", text.translate(_FULL_STOPS) if _CHARACTER.search(text) else text)


def rouge_l(prediction: str, answer: str, words: Words = "spaces") -> float:
    """ROUGE-L at summary level, over distinct words: F = 2PR / (P + R + 1e-8)   (Lin, 2004, sec. 3).

    With U the union, over all pairs of sentences, of the words in their longest common subsequence:
    P = |U| / |words of the prediction| and R = |U| / |words of the answer|, as the package `rouge` 1.0.1 has
    it. Sentences end at every full stop. Which of several longest subsequences is taken changes the value,
    so ties are broken as there, with the prediction in the place of the reference.

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
    """Words of each sentence; a sentence of white space alone is one empty word, as in `rouge` 1.0.1."""
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _common_words(x: list[str], y: list[str]) -> set[str]:
    """The words of one longest common subsequence, found with one machine word per row of the table.

    Bit j of rows[i] says that the subsequence grows at y[j] (Hyyrö, 2004), so the table's cell (i, j) is the
    number of bits set below j. Walking back, a tie between dropping x's word and y's word drops y's.
    """
    if not set(x) & set(y):
        return set()
    full = (1 << len(y)) - 1
    places = {word: sum(1 << j for j, other in enumerate(y) if other == word) for word in set(x)}
    still, rows = full, [0]
    for word in x:
        hits = still & places[word]
        still = ((still + hits) | (still - hits)) & full
        rows.append(full & ~still)
    words, i, j = set(), len(x), len(y)
    while i and j:
        if x[i - 1] == y[j - 1]:
            words.add(x[i - 1])
            i, j = i - 1, j - 1
        elif _bits_below(rows[i - 1], j) > _bits_below(rows[i], j - 1):
            i -= 1
        else:
            j -= 1
    return words


def _bits_below(row: int, end: int) -> int:
    return (row & ((1 << end) - 1)).bit_count()


def bleu(prediction: str, answer: str, max_order: int = 4, words: Words = "spaces") -> float:
    """Sentence BLEU without smoothing: min(1, e^(1 - r/c)) · (Π p_n)^(1/N)   (Papineni et al., 2002).

    Words are what lies between white space and full stops. Where an order has no match the value is 0
    (nltk's is below 1e-70): most short answers have no BLEU-4.

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
    """Similarity of two lines of code, rounded to a hundredth, once masked literals are written out.

    2M / (|a| + |b|), with M the characters that match: those of a longest common subsequence ("levenshtein")
    or of the blocks that `difflib` finds. TRACE's `fuzzywuzzy` takes the first where python-Levenshtein is
    installed, else the second, and on one line the two can differ by several hundredths.

    >>> edit_similarity("x = <NUM_LIT:12>", "x = 12"), edit_similarity("abcd", "abxx", "difflib")
    (1.0, 0.5)
    """
    a, b = _unmask(prediction), _unmask(answer)
    if not a or not b:
        return 0.0
    if variant == "difflib":
        return round(100 * SequenceMatcher(None, a, b).ratio()) / 100
    return round(100 * Indel.normalized_similarity(a, b)) / 100


def _unmask(code: str) -> str:
    for mask, value in _BARE_LITERALS.items():
        code = code.replace(mask, value)
    return _LITERAL.sub(lambda match: match.group(1), code)


def sari(prompt: str, prediction: str, answer: str, words: Words = "spaces") -> float:
    """SARI: are words rightly kept, deleted and added, judged by the source?   (Xu et al., 2016)

    The mean, over n-grams of 1 to 4 words, of (F_keep + P_delete + F_add) / 3, where 0/0 is 1. The source is
    the prompt as it stands. Lower-cased, 13a tokens; keep and delete count repetitions, add does not.
    Empty texts are scored like any other.

    >>> sari("the big cat sat down", "the cat sat", "the cat sat")
    1.0
    >>> round(sari("the big cat sat down", "the big cat sat down", "the cat sat"), 4)
    0.5958
    """
    texts = [text.lower() for text in (prompt, prediction, answer)]
    if words == "scripts":
        texts = list(map(apart, texts))
    parts = [_tokenize_13a(text).split(" ") for text in texts]
    scores = []
    for order in range(1, 5):
        source, ours, theirs = (Counter(_ngrams(text, order)) for text in parts)
        scores.append((_keep(source, ours, theirs) + _delete(source, ours, theirs) + _add(source, ours, theirs)) / 3)
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
