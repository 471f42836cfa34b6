"""The cipher language: permutations that keep no word, dialects held apart, a model made once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.cipher_language import CipherLanguage, Pretrain
from benchmarks.cipher_language.cipher import DIALECTS, NOUNS, Cipher
from workbench.backbone import Backbone
from workbench.benchmark import Task, seeded_random
from workbench.testing.conformance import check_benchmark


@pytest.fixture(scope="module")
def benchmark() -> CipherLanguage:
    return CipherLanguage(seed=3, train_rows=300, test_rows=100)


def dialect(prompt: str) -> str:
    return prompt.split(".")[0].removeprefix("In ")


def solved(cipher: Cipher, prompt: str) -> str:
    """The answer, worked out from the text and the dictionary alone."""
    name = prompt.removesuffix("? Answer:").split()[-1]
    told = re.search(rf"{name} \w+ the (\w+)\.", prompt)
    assert told is not None
    meanings = {word: noun for noun, word in cipher.written[dialect(prompt)].items()}
    return meanings[told.group(1)]


def test_it_passes_the_suite_for_benchmarks(benchmark: CipherLanguage) -> None:
    check_benchmark(benchmark)
    assert [len(split) for split in (benchmark[0].train, benchmark[0].validation, benchmark[0].test)] == [300, 100, 100]
    assert [(probe.name, len(probe.test)) for probe in benchmark.probes] == [
        (name, 64) for name in ("seen", "words", "english", "letters", "flip", "sums")
    ]


def test_each_dialect_is_a_permutation_that_keeps_no_noun() -> None:
    cipher = Cipher(seed=1)
    assert sorted(cipher.written) == sorted(DIALECTS)
    for words in cipher.written.values():
        assert sorted(words) == sorted(words.values()) == sorted(NOUNS)
        assert all(word != noun for noun, word in words.items())
    assert len({tuple(words.values()) for words in cipher.written.values()}) == 8
    assert Cipher(seed=2).written != cipher.written == Cipher(seed=1).written


def test_no_dialect_is_in_two_splits(benchmark: CipherLanguage) -> None:
    parts = benchmark.cipher.parts
    assert sorted(sum(parts.values(), ())) == sorted(DIALECTS)
    assert {name: len(dialects) for name, dialects in parts.items()} == {"train": 3, "validation": 2, "test": 3}
    for name, dialects in parts.items():
        assert {dialect(row["prompt"]) for row in getattr(benchmark[0], name)} == set(dialects)


def test_the_answers_follow_from_the_text_and_the_dictionary(benchmark: CipherLanguage) -> None:
    tasks: list[Task] = [benchmark[0], benchmark.probes[0]]
    rows = [row for task in tasks for split in (task.train, task.validation, task.test) for row in split]
    assert len(rows) == 564
    assert all(solved(benchmark.cipher, row["prompt"]) == row["answer"] for row in rows)
    by_name = {probe.name: list(probe.test) for probe in benchmark.probes}
    for row in by_name["words"]:
        word = row["prompt"].split()[-1]
        assert benchmark.cipher.written[dialect(row["prompt"])][row["answer"]] == word
    assert all(f"the {row['answer']}." in row["prompt"] for row in by_name["english"])
    assert all(str(sum(map(int, re.findall(r"\d+", row["prompt"])))) == row["answer"] for row in by_name["sums"])


def test_seen_rows_are_in_dialects_that_were_learnt_and_are_no_training_rows(benchmark: CipherLanguage) -> None:
    prompts = set(benchmark.probes[0].test["prompt"])
    assert {dialect(prompt) for prompt in prompts} == set(benchmark.cipher.parts["train"])
    assert not prompts & set(benchmark[0].train["prompt"])


def test_a_gloss_says_what_the_last_word_means_in_every_dialect() -> None:
    cipher, rng = Cipher(seed=4), seeded_random("glosses")
    rows = [cipher.gloss(rng) for _ in range(4000)]
    assert all(cipher.written[dialect(prompt)][answer] == prompt.split()[-1] for prompt, answer in rows)
    assert len({(dialect(prompt), answer) for prompt, answer in rows}) == 8 * len(NOUNS)
    assert not any("What" in prompt or "Answer" in prompt for prompt, _ in rows)


def test_the_rows_fit_the_shipped_tokenizer_a_word_a_token() -> None:
    tokenizer = Backbone.load("micro").tokenizer
    assert all(len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in (*NOUNS, *DIALECTS))


@pytest.mark.parametrize("given", [{"train_rows": 0}, {"test_rows": 2049}])
def test_rows_out_of_range_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is out of range\. Choose 1 to"):
        CipherLanguage(**given)


def test_the_model_is_made_once_and_the_same_again(tmp_path: Path) -> None:
    Pretrain(tmp_path / "one", seed=1, steps=3)()
    Pretrain(tmp_path / "two", seed=1, steps=3)()
    made = tmp_path / "one" / "m_a" / "model.safetensors"
    assert made.read_bytes() == (tmp_path / "two" / "m_a" / "model.safetensors").read_bytes()
    assert not (tmp_path / "one.partial").exists()
    before, micro = (
        Backbone.load(tmp_path / "one" / "m_a").model.state_dict(),
        Backbone.load("micro").model.state_dict(),
    )
    assert not torch.equal(before["model.embed_tokens.weight"], micro["model.embed_tokens.weight"])
    stamp = made.stat().st_mtime_ns
    Pretrain(tmp_path / "one", seed=1, steps=3)()
    assert made.stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"was made with other arguments .*'seed': 1.* there, .*'seed': 2.* here"):
        Pretrain(tmp_path / "one", seed=2, steps=3)()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds no recipe.json, so it was not made here"):
        Pretrain(tmp_path)()
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    with pytest.raises(ValueError, match="steps=0 is out of range"):
        Pretrain(tmp_path, steps=0)
