"""The stage before the tasks: where its text comes from, how long it lasts, and that it is never scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from helpers.studies import column, study

from strategies import ContinuedPretraining
from workbench.benchmark import PRETRAINING, Task
from workbench.config import parse
from workbench.errors import ConfigError
from workbench.study import Study
from workbench.testing.tiny import tiny_tasks

ONE, TWO = tiny_tasks()
TEXT = Dataset.from_dict({"text": ["a b c", "d e f"]})
CORPUS = Task(PRETRAINING, test=TEXT, train=TEXT)


def test_the_general_corpus_or_a_file(tmp_path: Path) -> None:
    general = Task("general", test=TEXT.select([0]), train=TEXT)
    item, *rest = ContinuedPretraining(steps=7).curriculum([ONE, TWO], general)
    assert (item.name, item.max_steps, item.packed, item.train["text"][:]) == (PRETRAINING, 7, True, ["a b c", "d e f"])
    assert rest == [ONE, TWO]
    (tmp_path / "corpus.txt").write_text("first line\n\nsecond line\n", encoding="utf-8")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("eins\nzwei", "drei"))
    (tmp_path / "corpus.jsonl").write_text(lines, encoding="utf-8")
    for name, texts in (("corpus.txt", ["first line", "second line"]), ("corpus.jsonl", ["eins\nzwei", "drei"])):
        own = ContinuedPretraining(steps=1, corpus=str(tmp_path / name)).curriculum([ONE], general)[0]
        assert own.train["text"][:] == texts


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps=0 is out of range; it has to be at least 1"):
        ContinuedPretraining(steps=0)
    with pytest.raises(ValueError, match="There is an item 'pretraining' already"):
        ContinuedPretraining(steps=1).curriculum([CORPUS, ONE], CORPUS)
    with pytest.raises(ValueError, match=r"The benchmark has no general corpus to train on\. Give corpus"):
        ContinuedPretraining(steps=1).curriculum([ONE], None)
    with pytest.raises(ValueError, match=r"corpus: .*missing.txt cannot be read \(FileNotFoundError"):
        ContinuedPretraining(steps=1, corpus=str(tmp_path / "missing.txt"))
    for name, content in (("empty.txt", ""), ("none.jsonl", '{"words": "a"}'), ("number.jsonl", '{"text": 1}')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r'Give a .txt with a text a line, or a .jsonl of \{"text"\}'):
            ContinuedPretraining(steps=1, corpus=str(tmp_path / name))


def test_in_a_study_it_lasts_its_steps_at_its_own_rate_and_ends_no_row(
    model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a b c d e f g h\n" * 30, encoding="utf-8")
    component = {
        "class_path": "strategies.ContinuedPretraining",
        "init_args": {"steps": 5, "corpus": str(corpus), "packed": False},
    }
    raw = study(model_folder, task_folder, tmp_path / "runs", strategies={"stages": component})
    raw["per_task"] = {PRETRAINING: {"optimizer": {"init_args": {"lr": 0.0}}}}
    small = Study(parse(raw))
    assert "pretraining" not in small.assembly.tasks
    small.run()
    run = small.results(small.runs[0])
    items = column(run.path / "train.csv", "item")
    assert items[:5] == [PRETRAINING] * 5
    assert PRETRAINING not in items[5:]
    assert column(run.path / "costs.csv", "item") == [PRETRAINING, "alpha", "beta"]
    assert set(column(run.path / "scores.csv", "after")) == {"0", "1", "2"}
    raw["name"], raw["per_task"] = "longer", {PRETRAINING: {"trainer": {"max_steps": 6}}}
    raw["strategies"]["seqft"] = {"class_path": "strategies.SeqFT"}
    longer = Study(parse(raw))
    longer.run()
    steps = [column(longer.results(run).path / "train.csv", "item").count(PRETRAINING) for run in longer.runs]
    assert steps == [6, 0]
    corpus.write_text("i j k l m\n" * 30, encoding="utf-8")
    with pytest.raises(ConfigError, match="stages/default/seed-0 was made with another corpus or model of its"):
        Study(parse(raw)).run()


def test_a_task_that_neither_the_benchmark_nor_the_strategy_has(
    model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    raw = study(model_folder, task_folder, tmp_path / "runs", strategies={"seqft": {"class_path": "strategies.SeqFT"}})
    raw["per_task"] = {PRETRAINING: {"max_epochs": 1}}
    with pytest.raises(ConfigError, match=r"per_task: .* has no task 'pretraining'\. There are alpha, beta\."):
        Study(parse(raw))


def test_a_benchmark_without_a_corpus_is_told_before_anything_runs(
    model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    stage = {"class_path": "strategies.ContinuedPretraining", "init_args": {"steps": 1}}
    raw = study(model_folder, task_folder, tmp_path / "runs", strategies={"stages": stage})
    with pytest.raises(ConfigError, match=r"strategies\.stages: The benchmark has no general corpus to train on"):
        Study(parse(raw))
