"""The mini benchmark: the same rows everywhere, splits apart, answers that fit, knobs that turn."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.mini_trace import HARDER, MiniTrace
from benchmarks.mini_trace.domains import DOMAINS
from benchmarks.mini_trace.sampling import distinct_rows
from benchmarks.mini_trace.style import Conflict, Style
from workbench.benchmark import Benchmark, Task, seeded_random
from workbench.config import load
from workbench.model_folder import SHIPPED

ROOT = Path(__file__).parents[2]
MINI = SHIPPED["mini"]


@pytest.fixture(scope="module")
def benchmark_tasks() -> list[Task]:
    benchmark = MiniTrace()
    return [benchmark[index] for index in range(len(benchmark))]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MINI)


def prompts(task: Task, split: str) -> list[str]:
    return list(getattr(task, split)["prompt"])


def fingerprint(benchmark: Benchmark) -> str:
    """One number for every row of every split, probe and corpus."""
    tasks = [benchmark[index] for index in range(len(benchmark))] + list(benchmark.probes)
    rows = [list(split) for task in tasks for split in (task.train, task.validation, task.test)]
    rows += [list(benchmark.general.train), list(benchmark.general.test)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_it_is_a_benchmark_in_the_order_of_traces_first() -> None:
    benchmark = MiniTrace()
    assert isinstance(benchmark, Benchmark)
    names = [benchmark[index].name for index in range(len(benchmark))]
    assert names == [
        "topic_stance", "policy_stance", "meeting_summary", "code_line",
        "choice", "number_cm", "number_ds", "simplify",
    ]  # fmt: skip
    primaries = [benchmark[index].primary for index in range(len(benchmark))]
    expected = ["accuracy", "accuracy", "rouge-L", "similarity", "accuracy", "accuracy", "accuracy", "sari"]
    assert primaries == expected


def test_rows_follow_from_the_seed_in_a_process_that_hashes_otherwise() -> None:
    program = "\n".join(
        (
            "from __future__ import annotations",
            "import hashlib, json",
            "from benchmarks.mini_trace import MiniTrace",
            inspect.getsource(fingerprint),
            "print(fingerprint(MiniTrace(seed=3)))",
        )
    )
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": other},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == fingerprint(MiniTrace(seed=3))


def test_another_seed_draws_other_rows() -> None:
    assert fingerprint(MiniTrace(seed=0)) != fingerprint(MiniTrace(seed=1))


def test_the_test_rows_do_not_depend_on_the_number_of_training_rows() -> None:
    few, many = MiniTrace(train_rows=10), MiniTrace(train_rows=700)
    assert list(few[2].test) == list(many[2].test)
    assert list(few[2].train) == list(many[2].train)[:10]


def test_splits_share_no_prompt(benchmark_tasks: list[Task]) -> None:
    for task in benchmark_tasks:
        every = [prompt for split in ("train", "validation", "test") for prompt in prompts(task, split)]
        assert len(every) == len(set(every)) == 512 + 128 + 128


@pytest.mark.parametrize(
    ("argument", "value"),
    [("train_rows", 0), ("test_rows", 0), ("validation_rows", -1), ("train_rows", 5000)],
)
def test_rows_out_of_range_are_refused(argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{argument}={value} is out of range. Choose [01] to 4096"):
        MiniTrace(**{argument: value})


@pytest.mark.parametrize("style", [Style(), Style("full", "high")])
def test_the_largest_number_of_rows_can_be_drawn(style: Style) -> None:
    for name, domain in DOMAINS.items():
        assert len(distinct_rows(partial(domain.make, style=style), seeded_random(name), 3 * 4096)) == 3 * 4096


def test_validation_may_be_empty() -> None:
    assert len(MiniTrace(validation_rows=0)[0].validation) == 0


def test_orders_are_permutations_of_the_names() -> None:
    benchmark = MiniTrace()
    names = [benchmark[index].name for index in range(len(benchmark))]
    assert next(iter(benchmark.orders)) == "default"
    assert list(benchmark.orders["default"]) == names
    assert len(benchmark.orders) >= 3
    assert all(sorted(order) == sorted(names) for order in benchmark.orders.values())
    assert len({tuple(order) for order in benchmark.orders.values()}) == len(benchmark.orders)


def test_probes_are_only_ever_tested() -> None:
    benchmark = MiniTrace()
    trained = {benchmark[index].name for index in range(len(benchmark))}
    assert not trained & {probe.name for probe in benchmark.probes}
    assert [(len(probe.train), len(probe.test)) for probe in benchmark.probes] == [(0, 64)] * 4


def test_general_text_is_a_corpus_with_splits_apart() -> None:
    general = MiniTrace().general
    assert general.is_corpus
    assert len(general.test) == 64
    assert 8100 < len(general.train) < 8192
    asked = [prompt for probe in MiniTrace().probes for prompt in probe.test["prompt"]]
    assert not [text for text in general.train["text"] if any(prompt in text for prompt in asked)]
    assert not set(general.train["text"]) & set(general.test["text"])


def test_answers_fit_and_come_back_from_the_tokenizer(
    benchmark_tasks: list[Task], tokenizer: PreTrainedTokenizerBase
) -> None:
    for task in [*benchmark_tasks, *MiniTrace().probes]:
        answers = [row["answer"] for split in (task.train, task.validation, task.test) for row in split]
        encoded = tokenizer(answers, add_special_tokens=False)["input_ids"]
        assert tokenizer.batch_decode(encoded) == answers
        assert 0 <= task.max_new_tokens - (max(map(len, encoded)) + 1) <= 2, task.name


def test_prompts_come_back_from_the_tokenizer_with_one_bos(
    benchmark_tasks: list[Task], tokenizer: PreTrainedTokenizerBase
) -> None:
    for task in benchmark_tasks:
        encoded = tokenizer(prompts(task, "test"))["input_ids"]
        assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == prompts(task, "test")
        assert {ids.count(tokenizer.bos_token_id) for ids in encoded} == {1}
        assert max(map(len, encoded)) <= 45


def test_a_gold_answer_scores_full_marks(benchmark_tasks: list[Task]) -> None:
    for task in benchmark_tasks:
        rows = list(task.test)
        texts = [row["prompt"] for row in rows], [row["answer"] for row in rows]
        for name, scorer in task.scorers.items():
            scorer.reset()
            scorer.update(prompts=texts[0], predictions=texts[1], answers=texts[1])
            slack = 0.03 if name == "sari" else 1e-6  # SARI blames a word dropped once and kept once
            assert float(scorer.compute()) == pytest.approx(1.0, abs=slack), (task.name, name)


def score_of(task: Task, name: str, prediction: str, answer: str) -> float:
    scorer = task.scorers[name].clone()
    scorer.reset()
    scorer.update([""], [prediction], [answer])
    return float(scorer.compute())


def test_code_is_scored_as_traces_is(benchmark_tasks: list[Task]) -> None:
    """In common, of 20 characters: the block abc for difflib, 1 2 3 4 5 for Levenshtein."""
    code = benchmark_tasks[3]
    assert list(code.scorers) == ["similarity", "similarity_levenshtein"]
    assert score_of(code, "similarity", "12345abc", "abc1x2x3x4x5") == pytest.approx(0.30)
    assert score_of(code, "similarity_levenshtein", "12345abc", "abc1x2x3x4x5") == pytest.approx(0.50)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("B: cup is a tool", 1.0), ("B", 1.0), ("C\ncup", 1.0), ("Because: x", 0.0), (" B: cup", 0.0), ("D: cup", 0.0)],
)
def test_the_form_of_a_choice(benchmark_tasks: list[Task], prediction: str, expected: float) -> None:
    assert score_of(benchmark_tasks[4], "valid", prediction, "B: cup is a tool") == expected


def test_the_preset_is_the_shipped_config_of_that_name() -> None:
    assert load("mini_trace_harder").benchmark.init_args == dict(HARDER)
    assert MiniTrace(**HARDER).style == Style("full", "high")


def test_the_page_shows_the_first_three_test_rows_of_each_domain(benchmark_tasks: list[Task]) -> None:
    page = (ROOT / "benchmarks" / "mini_trace" / "README.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith("| ")]
    for task in benchmark_tasks:
        for row in task.test.select(range(3)):
            assert f"| {row['prompt']} | {row['answer']} |" in shown, task.name


def letters(task: Task, told: str) -> set[str]:
    """The answers to the prompts in which something stands."""
    rows = zip(task.train["prompt"], task.train["answer"], strict=True)
    return {answer for prompt, answer in rows if told in prompt}


@pytest.mark.parametrize(
    ("label_conflict", "liked", "hated", "neither"),
    [("none", "A", "B", "C"), ("half", "B", "A", "C"), ("full", "B", "C", "A")],
)
def test_conflict_is_how_many_letters_change_their_meaning(
    label_conflict: Conflict, liked: str, hated: str, neither: str
) -> None:
    benchmark = MiniTrace(label_conflict=label_conflict)
    told = [letters(benchmark[1], f"{verb} the high rate") for verb in ("likes", "hates", "knows")]
    assert told == [{liked}, {hated}, {neither}]
    moved = [letters(benchmark[1], f"The rate {verb}") for verb in ("rises", "falls", "stays")]
    assert moved == told
    for prompt, answer in zip(benchmark[0].train["prompt"], benchmark[0].train["answer"], strict=True):
        topic = prompt.split("对")[-1].split("的立场")[0]
        told_of = prompt.split("。")[1:3]
        sentence = next(text for text in told_of if text.endswith(topic))
        assert answer == {"喜": "A", "爱": "A", "想": "A", "讨": "B", "怕": "B", "恨": "B"}.get(sentence[2], "C")


def test_alike_domains_all_end_in_the_backbones_own_words() -> None:
    low, high = MiniTrace(), MiniTrace(similarity="high")
    endings = {low[index].test[0]["prompt"].split()[-1] for index in range(8) if low[index].name != "code_line"}
    assert len(endings) == 7
    for index in range(8):
        if high[index].name != "code_line":
            assert all(prompt.endswith(" Answer:") for prompt in high[index].train["prompt"])
    assert high[0].test[0]["prompt"].startswith("A for, B against, C neither. ")


@pytest.mark.parametrize("knob", ["label_conflict", "similarity"])
def test_an_unknown_value_of_a_knob_is_refused(knob: str) -> None:
    with pytest.raises(ValueError, match=f"{knob}='much': choose one of '(none|low)', '(half|high)'"):
        MiniTrace(**{knob: "much"})


def test_the_tasks_whose_answers_begin_with_a_letter_have_options(benchmark_tasks: list[Task]) -> None:
    with_options = {task.name: task for task in benchmark_tasks if task.options}
    assert with_options.keys() == {"topic_stance", "policy_stance", "choice"}
    assert {letter for task in with_options.values() for letter in task.options} == {
        answer[0] for task in with_options.values() for answer in task.train["answer"]
    }
