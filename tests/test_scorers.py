"""Scorers against values worked out by hand, and the sums and counts behind them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from workbench.scorers import (
    Bleu,
    EditSimilarity,
    EditVariant,
    ExactMatch,
    FirstCharacter,
    FirstLabel,
    RougeL,
    RowMean,
    Sari,
    ValidLabel,
    bleu,
    described,
    edit_similarity,
    first_label,
    rouge_l,
    sari,
)

LETTER = r"(?<![A-Za-z])[ABC](?![A-Za-z])"

ALL = [
    ExactMatch(),
    FirstCharacter(),
    FirstLabel(LETTER),
    ValidLabel("[ABC]"),
    RougeL(),
    Bleu(1),
    Bleu(4),
    EditSimilarity(),
    EditSimilarity("difflib"),
    Sari(),
]


def mean(metric: RowMean, rows: list[tuple[str, str]], prompt: str = "") -> float:
    """The metric of (prediction, answer) rows."""
    metric = copy.deepcopy(metric)
    metric.update([prompt] * len(rows), [row[0] for row in rows], [row[1] for row in rows])
    return float(metric.compute())


def test_exact_match_forgives_nothing() -> None:
    rows = [("B", "B"), ("B ", "B"), ("\nB", "B"), ("b", "B"), ("", "B")]
    assert mean(ExactMatch(), rows) == pytest.approx(1 / 5)


def test_first_character() -> None:
    rows = [("B\nbecause", "B\nas"), ("Bread", "B"), (" B", "B"), ("", "B"), ("B", "")]
    assert mean(FirstCharacter(), rows) == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("B", 1.0),
        ("The stance is B.", 1.0),
        ("选择B，反对", 1.0),  # a letter between Chinese characters stands alone
        ("(B)", 1.0),
        ("B or C", 1.0),
        ("C or B", 0.0),
        ("Because", 0.0),  # inside a word
        ("ABC", 0.0),
        ("b", 0.0),
        ("", 0.0),
    ],
)
def test_first_label(prediction: str, expected: float) -> None:
    assert first_label(prediction, "B", LETTER) == expected


def test_first_label_is_never_below_exact_match() -> None:
    number = r"[0-9]+"
    rows = [("Friday", "Friday"), ("12", "12"), ("so 12 eggs", "12"), ("Monday", "Friday"), ("", "")]
    assert mean(FirstLabel(number), rows) == pytest.approx(4 / 5)
    assert mean(ExactMatch(), rows) == pytest.approx(3 / 5)
    assert mean(FirstLabel(number, empty=False), rows) == pytest.approx(3 / 5)
    assert mean(ExactMatch(empty=False), rows) == pytest.approx(2 / 5)


def test_nothing_is_right_where_nothing_is_the_answer() -> None:
    rows = [("", ""), ("a", ""), ("", "a")]
    assert mean(ExactMatch(), rows) == pytest.approx(1 / 3)
    assert mean(RougeL(), rows) == pytest.approx(1 / 3)
    assert mean(ExactMatch(empty=False), rows) == mean(RougeL(empty=False), rows) == 0.0
    assert mean(FirstCharacter(), rows) == 0.0  # there is no character


def test_valid_label_asks_for_the_form_alone() -> None:
    rows = [("A", "B"), (" C\n", "B"), ("B.", "B"), ("D", "B"), ("", "B")]
    assert mean(ValidLabel("[ABC]"), rows) == pytest.approx(2 / 5)
    assert mean(ValidLabel("[ABC]", strip=False), rows) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("prediction", "answer", "precision", "recall"),
    [
        ("a b c d", "a b c d", 4 / 4, 4 / 4),
        ("a b c d", "b d", 2 / 4, 2 / 2),
        ("a b c", "x y", 0.0, 0.0),
        ("a b a b", "a b", 2 / 2, 2 / 2),  # distinct words
        ("the cat sat. it slept", "the cat lay. it slept", 4 / 5, 4 / 5),  # sentence by sentence
        ("x y. y z", "x z y", 3 / 3, 3 / 3),  # a union over pairs of sentences
        ("a. ", "a.", 1 / 2, 1 / 1),  # what follows the last full stop is a sentence with one empty word
        ("a a b", "a b a", 2 / 2, 2 / 2),  # "a b" and not "a a" is the subsequence that counts here
        ("a b a", "a a b", 1 / 2, 1 / 2),  # and "a a" here
        ("...", "a", 0.0, 0.0),
    ],
)
def test_rouge_l(prediction: str, answer: str, precision: float, recall: float) -> None:
    expected = 2 * precision * recall / (precision + recall + 1e-8)
    assert rouge_l(prediction, answer) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "precision", "recall"),
    [
        ("我爱猫", "我爱狗", 2 / 3, 2 / 3),
        ("我爱cats", "我爱 dogs", 2 / 3, 2 / 3),  # a Latin word beside Chinese characters is one word
        ("猫睡了。狗跑。", "狗跑。猫睡了。", 5 / 5, 5 / 5),  # their full stop ends a sentence
        ("東京タワー", "東京タワーへ", 5 / 5, 5 / 6),
        ("วันนี้ร้อน", "วันนี้หนาว", 3 / 5, 3 / 6),  # a vowel or tone mark belongs to its consonant
        ("고양이가 잔다", "고양이가 뛴다", 1 / 2, 1 / 2),  # Korean writes spaces
        ("the cat sat. it slept", "the cat lay. it slept", 4 / 5, 4 / 5),
    ],
)
def test_rouge_l_of_scripts_without_spaces(prediction: str, answer: str, precision: float, recall: float) -> None:
    expected = 2 * precision * recall / (precision + recall + 1e-8)
    assert mean(RougeL(), [(prediction, answer)]) == pytest.approx(expected, abs=1e-12)


def test_what_a_word_is_can_be_chosen() -> None:
    """To the package `rouge`, and to TRACE, a Chinese sentence is one word."""
    row = [("我爱猫", "我爱狗")]
    assert mean(RougeL(words="spaces"), row) == mean(Bleu(1, words="spaces"), row) == 0.0
    assert mean(Bleu(1), row) == pytest.approx(2 / 3)
    assert mean(Bleu(2), row) == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
    spaced = sari("我 很 爱 猫", "我 爱 狗", "我 爱 猫")
    assert mean(Sari(), [("我爱狗", "我爱猫")], prompt="我很爱猫") == pytest.approx(spaced)
    assert mean(Sari(words="spaces"), [("我爱狗", "我爱猫")], prompt="我很爱猫") != pytest.approx(spaced)


def test_a_metric_tells_its_variant() -> None:
    assert described(RougeL(2)) == "RougeL(skip=2, words='scripts', empty=True)"
    assert described(EditSimilarity("difflib")) == "EditSimilarity(variant='difflib')"
    assert described(Sari(words="spaces")) == "Sari(words='spaces')"


@pytest.mark.parametrize("name", ["prompts", "predictions", "answers"])
def test_a_single_string_is_no_list_of_texts(name: str) -> None:
    given = {"prompts": ["a", "b"], "predictions": ["a", "b"], "answers": ["a", "b"], name: "ab"}
    with pytest.raises(ValueError, match=rf"^{name}='ab' is one string\. Give a list of texts\.$"):
        ExactMatch().update(**given)


def test_rouge_l_of_long_texts_needs_no_recursion() -> None:
    words = [f"w{index}" for index in range(3000)]
    assert rouge_l(" ".join(words), " ".join(reversed(words))) == pytest.approx(1 / 3000, abs=1e-8)
    assert rouge_l(" ".join(words), " ".join(words[1000:])) == pytest.approx(2 * 2000 / 5000)


@pytest.mark.parametrize(
    ("prediction", "answer", "order", "expected"),
    [
        ("a b c x", "a b c d", 1, 3 / 4),
        ("a b c x", "a b c d", 2, math.sqrt(3 / 4 * 2 / 3)),
        ("a b c x", "a b c d", 4, 0.0),  # no four words in common: no smoothing
        ("a b c d e", "a b c d x", 4, (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        ("a a a", "a b", 1, 1 / 3),  # counts are clipped
        ("a b", "a b c d", 1, math.exp(1 - 4 / 2)),  # too short
        ("a.b", "a b", 1, 1.0),  # a full stop parts words
        ("A", "a", 1, 0.0),
        ("..", "a", 1, 0.0),
    ],
)
def test_bleu(prediction: str, answer: str, order: int, expected: float) -> None:
    assert bleu(prediction, answer, order) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "variant", "expected"),
    [
        ("abcd", "abcx", "levenshtein", 0.75),
        ("abcd", "abcx", "difflib", 0.75),
        ("12345abc", "abc1x2x3x4x5", "levenshtein", 0.50),  # 1 2 3 4 5 in common: 2·5 / 20
        ("12345abc", "abc1x2x3x4x5", "difflib", 0.30),  # abc is the longest block: 2·3 / 20
        ("abc", "abd", "levenshtein", 0.67),  # a whole hundredth
        ("x = <NUM_LIT>", "x = 0", "levenshtein", 1.0),
        ("f ( <STR_LIT:a b> , '<CHAR_LIT>' )", "f ( a b , '' )", "difflib", 1.0),
        ("<STR_LIT>", "<STR_LIT>", "levenshtein", 0.0),  # nothing is left of it
    ],
)
def test_edit_similarity(prediction: str, answer: str, variant: EditVariant, expected: float) -> None:
    assert edit_similarity(prediction, answer, variant) == pytest.approx(expected)


def test_sari_of_a_copy_by_hand() -> None:
    """A copied source deletes nothing (1) and adds nothing; by order of n-gram:

    keep    F(3/5, 1)   F(1/4, 1)   F(0, 0/0)   F(0, 0/0)
    add     F(1, 1)     F(0/0, 0)   F(0/0, 0)   F(0/0, 0/0)
    """
    order_1 = (0.75 + 1 + 1) / 3
    order_2 = (0.4 + 1 + 0) / 3
    order_3 = (0 + 1 + 0) / 3
    order_4 = (0 + 1 + 1) / 3
    expected = (order_1 + order_2 + order_3 + order_4) / 4
    source = "the big cat sat down"
    assert sari(source, source, "the cat sat") == pytest.approx(expected, abs=1e-12)


def test_sari_weighs_a_wrong_deletion() -> None:
    """Of the source "a b", "b" is deleted and should have stayed, "a" stays rightly.

    Order 1: keep P = 1/1, R = 1/2; delete P = 0; add 1. Order 2: keep P = 0/0, R = 0/1; delete 0; add 1.
    """
    order_1 = (2 / 3 + 0 + 1) / 3
    order_2 = (0 + 0 + 1) / 3
    assert sari("a b", "a", "a b") == pytest.approx((order_1 + order_2 + 1 + 1) / 4, abs=1e-12)


def test_sari_lower_cases_and_parts_punctuation() -> None:
    assert sari("Ein Satz.", "ein satz .", "EIN SATZ.") == 1.0


def test_sari_uses_the_prompt_as_source() -> None:
    assert mean(Sari(), [("b", "b")], prompt="a b") == 1.0
    assert mean(Sari(), [("a b", "b")], prompt="a b") < 1.0


def test_skip_leaves_the_option_letter_out() -> None:
    rows = [("A\nsame words here now", "B\nsame words here now"), ("A", "A\nsame")]
    for metric in (RougeL(skip=2), Bleu(1, skip=2), Bleu(4, skip=2)):
        assert mean(metric, rows) == pytest.approx(1 / 2)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: type(metric).__name__)
def test_an_empty_prediction_scores_0_and_counts(metric: RowMean) -> None:
    good, empty = ("B", "B"), ("", "B")
    if isinstance(metric, Bleu) and metric.max_order == 4:
        good = ("a b c d", "a b c d")
    assert mean(metric, [good], prompt="x") == pytest.approx(1.0)
    if not isinstance(metric, Sari):
        assert mean(metric, [good, empty, empty], prompt="x") == pytest.approx(1 / 3)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: type(metric).__name__)
def test_no_rows_give_nan_in_silence(metric: RowMean) -> None:
    """Warnings are errors here, so torchmetrics' own would fail this."""
    fresh = copy.deepcopy(metric)
    assert math.isnan(fresh.compute())
    fresh.update([], [], [])
    assert math.isnan(fresh.compute())
    assert math.isnan(pickle.loads(pickle.dumps(metric)).compute())  # noqa: S301


def test_batches_of_any_size_give_the_mean_over_rows() -> None:
    metric = ExactMatch()
    metric.update(["", "", ""], ["A", "B", "C"], ["A", "B", "A"])
    metric.update([""], ["A"], ["B"])
    assert float(metric.compute()) == 2 / 4
    metric.reset()
    assert math.isnan(metric.compute())


def test_ranks_with_unequal_rows_give_the_exact_mean() -> None:
    """Three rows here and one there: the mean of the two means would be 5/6."""
    here, there = ExactMatch(), ExactMatch()
    here.update(["", "", ""], ["A", "B", "C"], ["A", "B", "A"])
    there.update([""], ["A"], ["A"])
    theirs = iter((there.total, there.squares, there.count))

    def gather(state: Tensor, group: object) -> list[Tensor]:
        return [state, next(theirs)]

    here.dist_sync_fn = gather
    here.distributed_available_fn = lambda: True
    assert float(here.compute()) == 3 / 4
    assert here.total.dtype == here.count.dtype == torch.float64


def test_the_standard_error_is_that_of_the_rows_scores() -> None:
    """Two rows of four characters, one and three of them alike: 0.25 and 0.75 scatter by 0.25 around 0.5."""
    metric = EditSimilarity("difflib")
    assert math.isnan(metric.standard_error())
    metric.update(["", ""], ["axyz", "abcx"], ["abcd", "abcd"])
    assert float(metric.compute()) == pytest.approx(0.5)
    assert metric.standard_error() == pytest.approx(0.25 / math.sqrt(2))
    share = ExactMatch()
    for answer in "AAAB":
        share.update([""], ["A"], [answer])
    assert share.standard_error() == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_half_precision_counts_every_row() -> None:
    """A module cast to bfloat16 casts what it holds; 257 is no bfloat16."""
    metric = ExactMatch()
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    for _ in range(257):
        metric.update([""], ["A"], ["A"])
    metric.update([""], ["A"], ["B"])
    assert float(metric.compute()) == 257 / 258


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="2 prompts, 1 predictions and 3 answers"):
        ExactMatch().update(["", ""], ["A"], ["A", "B", "C"])


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"variant='jaro' is unknown. Choose one of levenshtein, difflib"):
        EditSimilarity("jaro")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_order=0"):
        Bleu(0)
    with pytest.raises(ValueError, match=r"pattern='\[' is no regular expression"):
        FirstLabel("[")
    with pytest.raises(ValueError, match=r"pattern='\(' is no regular expression"):
        ValidLabel("(")
