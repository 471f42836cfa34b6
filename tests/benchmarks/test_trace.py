"""TRACE on small folders made here, and on the real data where it is given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from trace_folders import DATA, needs_data, row, rows, write

from benchmarks.everyday import questions, text
from benchmarks.trace import Trace
from workbench.benchmark import Benchmark

TASKS = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten")
NEEDED = 'Each row needs "prompt" and "answer".'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task in TASKS:
        write(tmp_path, task)
    return tmp_path


def test_all_eight_tasks_in_both_orders(folder: Path) -> None:
    trace = Trace(folder)
    assert isinstance(trace, Benchmark)
    assert [task.name for task in trace] == list(TASKS)
    assert len(trace) == 8
    assert list(trace.orders) == ["1", "2"]
    assert trace.orders["1"] == TASKS
    assert trace.orders["2"][0] == "NumGLUE-cm"
    assert trace.orders["2"][-1] == "ScienceQA"
    assert sorted(trace.orders["2"]) == sorted(TASKS)
    assert trace.probes == ()
    assert trace.general is None


def test_the_protocol(folder: Path) -> None:
    trace = Trace(folder)
    assert [task.max_epochs for task in trace] == [5, 3, 7, 5, 3, 5, 5, 7]
    assert {task.max_prompt_length for task in trace} == {1024}
    assert {task.max_new_tokens for task in trace} == {512}


@pytest.mark.parametrize(
    ("task", "scorers"),
    [
        ("C-STANCE", ["accuracy", "accuracy_lenient", "valid"]),
        ("FOMC", ["accuracy", "accuracy_lenient", "valid"]),
        ("MeetingBank", ["rouge-L", "bleu-1", "bleu-4"]),
        ("Py150", ["similarity", "similarity_levenshtein"]),
        ("ScienceQA", ["accuracy", "accuracy_lenient", "valid", "rouge-L", "bleu-1", "bleu-4"]),
        ("NumGLUE-cm", ["accuracy", "accuracy_lenient"]),
        ("NumGLUE-ds", ["accuracy", "accuracy_lenient"]),
        ("20Minuten", ["sari", "bleu-1", "bleu-4", "rouge-L"]),
    ],
)
def test_scorers_the_primary_one_first(folder: Path, task: str, scorers: list[str]) -> None:
    assert list(Trace(folder, tasks=[task])[0].scorers) == scorers


def test_some_tasks_keep_their_place_in_the_orders(folder: Path) -> None:
    trace = Trace(folder, tasks=["20Minuten", "FOMC", "ScienceQA"])
    assert trace.orders == {
        "1": ("FOMC", "ScienceQA", "20Minuten"),
        "2": ("FOMC", "20Minuten", "ScienceQA"),
    }
    assert [task.name for task in trace] == ["FOMC", "ScienceQA", "20Minuten"]


def test_a_folder_with_some_of_the_tasks(tmp_path: Path) -> None:
    write(write(tmp_path, "Py150"), "C-STANCE")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("hello")
    assert Trace(tmp_path).orders == {"1": ("C-STANCE", "Py150"), "2": ("C-STANCE", "Py150")}


def test_rows_are_kept_as_they_stand(tmp_path: Path) -> None:
    content = [{"prompt": "立场？\n ", "answer": " B\n", "id": 7}, row("", "")]
    write(tmp_path, "C-STANCE", train=content, eval=[], test=content)
    task = Trace(tmp_path)[0]
    expected = [{"prompt": "立场？\n ", "answer": " B\n"}, {"prompt": "", "answer": ""}]
    assert task.train.to_list() == task.test.to_list() == expected
    assert len(task.validation) == 0
    assert task.validation.column_names == ["prompt", "answer"]


def test_other_peoples_tasks(tmp_path: Path) -> None:
    write(write(tmp_path, "proverbs"), "capitals")
    trace = Trace(tmp_path)
    assert trace.orders == {"default": ("capitals", "proverbs")}
    assert [list(task.scorers) for task in trace] == [["accuracy", "rouge-L"]] * 2
    assert {task.max_epochs for task in trace} == {None}


def test_traces_lengths_are_those_of_its_own_tasks(tmp_path: Path) -> None:
    write(write(tmp_path, "proverbs"), "FOMC")
    ours, theirs = Trace(tmp_path, tasks=["FOMC", "proverbs"])
    assert (ours.max_prompt_length, ours.max_new_tokens) == (1024, 512)
    assert (theirs.max_prompt_length, theirs.max_new_tokens) == (None, 64)
    some = Trace(tmp_path, tasks=["FOMC", "proverbs"], max_new_tokens={"FOMC": 4})
    assert [task.max_new_tokens for task in some] == [4, 64]


def test_other_tasks_come_as_they_are_listed(folder: Path) -> None:
    write(write(write(folder, "proverbs"), "capitals"), "rivers")
    assert Trace(folder, tasks=["rivers", "capitals", "proverbs"]).orders == {
        "default": ("rivers", "capitals", "proverbs")
    }
    mixed = Trace(folder, tasks=["rivers", "Py150", "capitals", "FOMC"])
    assert [task.name for task in mixed] == ["FOMC", "Py150", "rivers", "capitals"]
    assert mixed.orders["2"] == ("FOMC", "Py150", "rivers", "capitals")


def test_other_tasks_beside_traces_own_have_to_be_asked_for(folder: Path) -> None:
    write(folder, "capitals")
    assert "capitals" not in Trace(folder).orders["1"]
    asked = Trace(folder, tasks=["capitals", "Py150", "FOMC"])
    assert asked.orders == {"1": ("FOMC", "Py150", "capitals"), "2": ("FOMC", "Py150", "capitals")}


def test_the_longest_answer_can_be_set(folder: Path) -> None:
    assert {task.max_new_tokens for task in Trace(folder, max_new_tokens=32)} == {32}
    some = Trace(folder, tasks=["FOMC", "Py150"], max_new_tokens={"FOMC": 4, "C-STANCE": 4})
    assert [task.max_new_tokens for task in some] == [4, 512]
    with pytest.raises(ValueError, match=r"max_new_tokens: there is no 'FOMCC'. Did you mean 'FOMC'\?"):
        Trace(folder, max_new_tokens={"FOMCC": 4})
    with pytest.raises(ValueError, match=r"max_new_tokens has to be 1 or more \(FOMC: 0\)"):
        Trace(folder, tasks=["FOMC"], max_new_tokens=0)


def test_a_task_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'ScienceQ'. Did you mean 'ScienceQA'\? There are: 20Minuten, C-"):
        Trace(folder, tasks=["FOMC", "ScienceQ"])
    with pytest.raises(ValueError, match=r"tasks='FOMC' is one string. Give a list of names: \['FOMC'\]"):
        Trace(folder, tasks="FOMC")
    for tasks in ([], ["FOMC", "FOMC"]):
        with pytest.raises(ValueError, match=r"is empty or names a task twice. Choose from 20Minuten"):
            Trace(folder, tasks=tasks)


def test_a_folder_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        Trace(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="bare: there is no task in it"):
        Trace(tmp_path / "bare")
    with pytest.raises(ValueError, match=f"It looks like one task; give {re.escape(str(folder))}"):
        Trace(folder / "FOMC")


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        (
            "train",
            None,
            "FOMC/train.json is missing. Each task needs a folder with train.json, eval.json and",
        ),
        ("train", "", f"FOMC/train.json is empty. A JSON list of rows is expected. {NEEDED}"),
        ("eval", " \n", "FOMC/eval.json is empty."),
        ("train", '[{"prompt": "a", "ans', "FOMC/train.json is cut short or is no JSON (Unterminated string"),
        ("train", '[{"prompt": "a",\n', "FOMC/train.json is cut short or is no JSON ("),
        ("train", row("a"), f"FOMC/train.json holds an object, not a list of rows. {NEEDED}"),
        ("train", "3", "FOMC/train.json holds a number, not a list of rows."),
        ("test", [], "FOMC/test.json has no rows, so nothing could be measured."),
        ("train", [row("a"), "b"], f"FOMC/train.json, row 2: this is a string, not an object. {NEEDED}"),
        ("train", [None], "FOMC/train.json, row 1: this is null, not an object."),
        (
            "train",
            [*rows("a", 16), {"prompt": "a"}],
            f'FOMC/train.json, row 17: "answer" is missing. {NEEDED}',
        ),
        ("eval", [{"answer": "a"}], f'FOMC/eval.json, row 1: "prompt" is missing. {NEEDED}'),
        (
            "test",
            [{"prompt": "a", "answer": 5}],
            'FOMC/test.json, row 1: "answer" is a number, not a string.',
        ),
        ("test", [{"prompt": None, "answer": "a"}], '"prompt" is null, not a string.'),
        ("test", [{"prompt": True, "answer": "a"}], '"prompt" is a truth value, not a string.'),
    ],
)
def test_a_file_that_cannot_be_used(folder: Path, split: str, content: Any, message: str) -> None:
    (folder / "FOMC" / f"{split}.json").unlink()
    write(folder, "FOMC", **{split: content})
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Trace(folder)
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding(folder: Path) -> None:
    (folder / "20Minuten" / "train.json").write_bytes('[{"prompt": "für"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"20Minuten/train.json is not UTF-8 text \(byte 14\)"):
        Trace(folder)


def test_a_byte_order_mark_is_no_error(folder: Path) -> None:
    (folder / "FOMC" / "train.json").write_text(json.dumps(rows("a", 3)), encoding="utf-8-sig")
    assert len(Trace(folder, tasks=["FOMC"])[0].train) == 3


def test_everything_that_is_wrong_is_said_at_once(folder: Path) -> None:
    write(folder, "C-STANCE", train=[row("a"), {"prompt": "b"}], test=[])
    write(folder, "Py150", eval=[{}] * 6)
    with pytest.raises(ValueError, match="6 things are wrong") as error:
        Trace(folder)
    assert str(error.value).split("\n- ")[1:] == [
        f'C-STANCE/train.json, row 2: "answer" is missing. {NEEDED}',
        f"C-STANCE/test.json has no rows, so nothing could be measured. {NEEDED}",
        *(f'Py150/eval.json, row {number}: "prompt" is missing. {NEEDED}' for number in (1, 2, 3)),
        "Py150/eval.json: 3 more rows are wrong.",
    ]
    assert [task.name for task in Trace(folder, tasks=["FOMC"])] == ["FOMC"]


@needs_data
def test_the_released_data() -> None:
    """Every answer is right about itself, whatever scores it."""
    trace = Trace(DATA)
    assert [task.name for task in trace] == list(TASKS)
    for task, overlap in zip(trace, trace.overlaps, strict=True):
        assert len(task.train) > 0
        assert len(task.test) == overlap.rows["test"]
        answers = task.test["answer"]
        for name in (task.primary, *(name for name in task.scorers if name.startswith(("acc", "valid")))):
            task.scorers[name].update(task.test["prompt"], answers, answers)
            assert float(task.scorers[name].compute()) > 0.98, (task.name, name)


def test_the_first_rows_of_each_split_and_tasks_beside_them(folder: Path) -> None:
    whole, probe, corpus = Trace(folder), questions(), text()
    some = Trace(folder, train_rows=2, test_rows=1, validation_rows=1, probes=[probe], general=corpus)
    for task, part in zip(whole, some, strict=True):
        assert part.train[:] == task.train[:2]
        assert part.test[:] == task.test[:1]
        assert part.validation[:] == task.validation[:1]
    assert some.probes == (probe,)
    assert some.general is corpus


def test_overlaps_are_those_of_the_rows_that_are_used(tmp_path: Path) -> None:
    shared = [row("p1", "A"), row("p2", "B"), row("p3", "C")]
    write(tmp_path, "ScienceQA", train=shared, test=shared[::-1], eval=[row("p4", "A")])
    assert [Trace(tmp_path).overlaps[0].test_in_train, Trace(tmp_path, train_rows=1).overlaps[0].test_in_train] == [
        3,
        1,
    ]
    used = Trace(tmp_path, train_rows=1, test_rows=2).overlaps[0]
    assert (used.test_in_train, dict(used.rows)) == (0, {"train": 1, "eval": 1, "test": 2})


def test_a_split_has_at_least_one_row(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"validation_rows=0, test_rows=-1: a split needs at least 1 row. Leave it out"
    ):
        Trace(folder, validation_rows=0, test_rows=-1)
