"""The lesson: three domains whose right answers follow from their prompts, or from one list of invented facts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.everyday import questions, text
from benchmarks.lesson import Lesson
from benchmarks.lesson.domains import BLAME, ISLANDS, PRAISE
from workbench.study import Study
from workbench.testing.conformance import check_benchmark
from workbench.testing.tiny import tiny_backbone


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return Lesson(probes=[questions()], general=text())


def rows(lesson: Lesson, index: int) -> list[dict[str, str]]:
    task = lesson[index]
    return [row for split in (task.train, task.validation, task.test) for row in split]


def test_it_passes_the_suite_for_benchmarks(lesson: Lesson) -> None:
    check_benchmark(lesson)
    assert [(len(task.train), len(task.validation), len(task.test)) for task in lesson] == [(84, 12, 36)] * 3
    assert [probe.name for probe in lesson.probes] == ["questions"]


def test_a_verdict_follows_from_the_two_remarks(lesson: Lesson) -> None:
    verdicts = set()
    for row in rows(lesson, 0):
        review = row["prompt"].lower()
        praised, blamed = (sum(remark in review for remark in remarks) for remarks in (PRAISE, BLAME))
        assert praised + blamed == 2
        assert row["answer"] == "CBA"[praised]
        verdicts.add(row["answer"])
    assert verdicts == {"A", "B", "C"}


def test_every_fact_is_taught_and_asked_in_other_words(lesson: Lesson) -> None:
    task = lesson[1]
    for row in rows(lesson, 1):
        (name,) = [name for name in ISLANDS if name in row["prompt"]]
        assert row["answer"] == f" {ISLANDS[name]}"
    things = [f" {thing}" for thing in ISLANDS.values()]
    for split, times in ((task.train, 7), (task.validation, 1), (task.test, 3)):
        assert sorted(split["answer"]) == sorted(things * times)
    assert not set(task.train["prompt"]) & set(task.test["prompt"])


def test_a_sum_is_the_sum_of_its_numbers(lesson: Lesson) -> None:
    assert all(int(row["answer"]) == sum(map(int, re.findall(r"\d+", row["prompt"]))) for row in rows(lesson, 2))


def test_the_seed_decides_the_rows() -> None:
    assert Lesson(seed=1)[0].test[:] == Lesson(seed=1)[0].test[:] != Lesson()[0].test[:]


def test_there_are_only_so_many_rows() -> None:
    assert len(set(Lesson(train_rows=144)[1].train["prompt"])) == 144
    with pytest.raises(ValueError, match=r"are 193 rows together. Choose at most 192"):
        Lesson(train_rows=145)
    with pytest.raises(ValueError, match="test_rows=0: every split needs at least 1 row"):
        Lesson(test_rows=0)


def test_its_study_runs_with_a_small_model_in_place_of_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    tiny_backbone().save(tmp_path / "smollm2")
    small = ["benchmark.init_args.train_rows=16", "benchmark.init_args.test_rows=2", "trainer.max_epochs=1"]
    rows = Study("smollm2_lesson", [*small, f"output={tmp_path}"]).run()
    assert [row["strategy"] for row in rows] == ["seqft", "lora", "replay"]
    assert all(row["OP"] == row["OP"] and row["general_delta"] == row["general_delta"] for row in rows)
