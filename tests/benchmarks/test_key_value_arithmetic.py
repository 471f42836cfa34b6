"""Key-value arithmetic: keys that stay apart, rows that are right, a tokenizer that loses nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from helpers.studies import ROOT

from benchmarks.key_value_arithmetic import KeyValueArithmetic
from benchmarks.key_value_arithmetic.expressions import Expressions, distinct, evaluate
from benchmarks.key_value_arithmetic.tokens import build_tokenizer
from workbench.benchmark import Task, seeded_random
from workbench.testing.conformance import check_benchmark

SMALL = {"keys": 60, "values": 9, "operands": [2, 3], "operators": "+-*"}


def small(**arguments: Any) -> KeyValueArithmetic:
    return KeyValueArithmetic(**{"train_rows": 40, "test_rows": 30, "expressions": SMALL, **arguments})


def keys_of(prompts: Iterable[str]) -> set[str]:
    return {key for prompt in prompts for key in re.findall("[a-z]+", prompt)}


def rows_of(task: Task, split: str) -> list[tuple[str, str]]:
    rows = getattr(task, split)
    return list(zip(rows["prompt"][:], rows["answer"][:], strict=True))


def test_it_passes_the_suite_that_every_benchmark_passes() -> None:
    assert len(check_benchmark(small())) == 5
    assert len(check_benchmark(small(train_on="subs"))) == 5


@pytest.mark.parametrize("train_on", ["math", "subs"])
def test_no_split_meets_the_keys_of_another(train_on: str) -> None:
    task = small(train_on=train_on)[0]
    train, validation, test = (keys_of(getattr(task, name)["prompt"]) for name in ("train", "validation", "test"))
    assert min(len(train), len(validation), len(test)) > 0
    assert len(train | validation | test) == len(train) + len(validation) + len(test)


@pytest.mark.parametrize(("share", "seen"), [(0.05, 50), (0.2, 200), (0.5, 500)])
def test_the_share_is_that_of_all_keys_and_leaves_the_held_out_ones(share: float, seen: int) -> None:
    made = Expressions()
    assert len(made.seen(share)) == seen
    assert (len(made.held_out["validation"]), len(made.held_out["test"])) == (100, 400)
    assert not set(made.seen(share)) & {key for keys in made.held_out.values() for key in keys}
    assert set(made.seen(share)) <= set(made.seen(0.5))


def test_the_test_rows_depend_on_neither_the_share_nor_the_training_rows() -> None:
    kept = rows_of(small()[0], "test")
    for changed in (small(share=0.5), small(train_rows=70), small(train_on="subs")):
        assert rows_of(changed[0], "test") == kept
    assert rows_of(small(seed=1)[0], "test") != kept


def test_every_answer_is_what_python_works_out() -> None:
    benchmark = small()
    numbers = benchmark.expressions.numbers
    spelt: Callable[[str], str] = lambda text: re.sub("[a-z]+", lambda key: str(numbers[key.group()]), text)  # noqa: E731
    worked: Callable[[str], str] = lambda text: str(eval(text, {"__builtins__": {}}))  # noqa: E731, S307
    for split in ("train", "validation", "test"):
        for prompt, answer in rows_of(benchmark[0], split):
            assert prompt.endswith("=")
            assert answer == worked(spelt(prompt[:-1]))
    probes = {probe.name: rows_of(probe, "test") for probe in benchmark.probes}
    assert all(answer == worked(prompt[:-1]) for prompt, answer in probes["num"])
    assert all(prompt.endswith(":") and answer == spelt(prompt[:-1]) for prompt, answer in probes["subs"])
    assert all(answer == worked(spelt(prompt[:-1])) for prompt, answer in probes["math_seen"])


def test_subs_is_learnt_and_math_is_asked_where_the_config_says_so() -> None:
    task = small(train_on="subs")[0]
    assert all(prompt.endswith(":") for prompt in task.train["prompt"])
    assert all(prompt.endswith("=") for split in (task.validation, task.test) for prompt in split["prompt"])


def test_the_probes_ask_for_seen_keys_in_math_and_for_test_keys_in_subs() -> None:
    benchmark = small()
    probes = {probe.name: keys_of(probe.test["prompt"]) for probe in benchmark.probes}
    assert probes["math_seen"] <= set(benchmark.seen)
    assert probes["subs"] <= set(benchmark.expressions.held_out["test"])
    assert probes["num"] == set()


def test_keys_have_two_to_six_letters_and_numbers_from_one_to_values() -> None:
    numbers = Expressions(seed=3, keys=2000, values=7).numbers
    assert {len(key) for key in numbers} == {2, 3, 4, 5, 6}
    assert set(numbers.values()) == set(range(1, 8))
    assert (
        numbers == Expressions(seed=3, keys=2000, values=7).numbers != Expressions(seed=4, keys=2000, values=7).numbers
    )


def test_products_come_before_sums() -> None:
    assert evaluate([2, 3, 4, 5, 6], ["-", "*", "+", "*"]) == 2 - 3 * 4 + 5 * 6


def test_the_tokenizer_gives_one_token_a_word_and_every_answer_back() -> None:
    benchmark = small()
    tokenizer = build_tokenizer(benchmark.expressions)
    for task in (benchmark[0], *benchmark.probes):
        for prompt, answer in rows_of(task, "test"):
            words = len(re.findall("[a-z]+|[0-9]+|.", prompt))
            ids = tokenizer(prompt).input_ids
            assert (len(ids), ids[0]) == (1 + words, tokenizer.bos_token_id)
            written = tokenizer(answer, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in (*ids, *written)
            assert tokenizer.decode(written) == answer
            assert len(written) < task.max_new_tokens


def test_the_largest_number_is_a_token_and_the_next_is_none() -> None:
    made = Expressions(keys=20, values=9, operands=[3], operators="+*")
    tokenizer = build_tokenizer(made)
    assert made.largest == 729
    assert tokenizer.convert_tokens_to_ids(["729", "730"])[1] == tokenizer.unk_token_id
    assert tokenizer.convert_tokens_to_ids("729") != tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"share": 0.6}, "at most 0.5"),
        ({"share": 0.0}, "more than 0"),
        ({"train_on": "num"}, "choose 'math' or 'subs'"),
        ({"test_rows": 0}, "test_rows=0"),
        ({"expressions": {"keys": 3}}, "20 to 100000"),
        ({"expressions": {"values": 1}}, "2 or more"),
        ({"expressions": {"operands": [1]}}, "each of 2 or more"),
        ({"expressions": {"operators": "/"}}, "'+', '-' and '*'"),
        ({"expressions": {"operands": [5], "operators": "*"}}, "each number is a token"),
    ],
)
def test_what_cannot_be_is_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        KeyValueArithmetic(**arguments)


def test_a_small_share_of_the_keys_has_all_its_different_rows() -> None:
    few = small(train_rows=4000, share=0.05, expressions={**SMALL, "operands": [2]})
    assert len(few.seen) == few.expressions.keys // 20
    assert len(few[0].train) == len(few.seen) ** 2 * len(few.expressions.operators) < 4000


def test_too_few_prompts_are_told_with_their_split() -> None:
    with pytest.raises(ValueError, match=r"test: Only .* where 12000 are asked for"):
        small(test_rows=12_000, expressions={**SMALL, "operands": [2]})[0]


def test_distinct_rows_differ_in_their_prompts() -> None:
    made = Expressions(keys=20)
    rows = distinct(made.num, seeded_random("test"), 300)
    assert len({prompt for prompt, _ in rows}) == 300


def test_the_rows_on_its_page_are_true() -> None:
    page = (ROOT / "benchmarks" / "key_value_arithmetic" / "README.md").read_text(encoding="utf-8")
    benchmark = KeyValueArithmetic()
    prompt, answer = rows_of(benchmark[0], "train")[0]
    first, sign, second = re.fullmatch("([a-z]+)(.)([a-z]+)=", prompt).groups()
    one, two = (benchmark.expressions.numbers[key] for key in (first, second))
    told = ((prompt[:-1] + ":", f"{one}{sign}{two}"), (first, one), (f"{one}{sign}{two}=", answer), (prompt, answer))
    for asked, answered in told:
        assert f"| `{asked}` | `{answered}` |" in page
