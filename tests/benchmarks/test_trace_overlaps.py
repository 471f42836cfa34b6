"""What TRACE's files share with one another: counted, stated, and kept out of validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trace_folders import DATA, needs_data, row, rows, write

from benchmarks.trace import Trace
from workbench.testing.conformance import check_benchmark


def test_where_eval_is_test_validation_rows_come_from_train(tmp_path: Path) -> None:
    test = rows("test", 5)
    train = rows("train", 40)
    copies = [row("train 9"), row("train 9", "B"), row("train 20"), test[0]]
    write(tmp_path, "FOMC", train=[test[1], *train, *copies], eval=test[::-1], test=test)
    trace = Trace(tmp_path)
    task = trace[0]
    chosen = ["train 9", "train 19", "train 29", "train 39"]  # every tenth prompt that is not in test
    assert task.validation["prompt"] == [*chosen, "train 9"]
    assert task.validation["answer"] == ["A", "A", "A", "A", "B"]
    assert task.train.to_list() == [test[1], *train, *copies]  # whole, where the test is scored
    asked = task.scored_on_validation()
    assert asked.test.to_list() == task.validation.to_list()
    assert set(asked.train["prompt"]).isdisjoint(chosen)
    assert len(asked.train) == 45 - 6
    assert len(task.test) == 5
    assert trace.overlaps[0].carved == 5
    assert "5 rows of train validate in place of eval" in str(trace)
    assert Trace(tmp_path)[0].validation.to_list() == task.validation.to_list()


def test_where_eval_and_test_overlap_the_shared_rows_do_not_validate(tmp_path: Path) -> None:
    test, own = rows("test", 5), rows("eval", 3)
    write(tmp_path, "FOMC", train=rows("train", 40), eval=[test[4], *own, test[0], row("test 1", "B")], test=test)
    trace = Trace(tmp_path)
    task, overlap = trace[0], trace.overlaps[0]
    assert task.validation.to_list() == own
    assert (len(task.train), len(task.test)) == (40, 5)
    assert (overlap.eval_in_test, overlap.dropped, overlap.carved) == (2, 3, 0)
    assert str(trace) == (
        "FOMC: 2 of 6 eval rows are also in test, 3 rows of eval are left out of validation and train stays whole."
    )


def test_where_eval_is_a_part_of_test_rows_come_from_train_too(tmp_path: Path) -> None:
    test = rows("test", 5)
    write(tmp_path, "FOMC", train=rows("train", 40), eval=test[:2], test=test)
    trace = Trace(tmp_path)
    assert trace[0].validation["prompt"][:] == ["train 9", "train 19", "train 29", "train 39"]
    assert (len(trace[0].train), len(trace[0].scored_on_validation().train)) == (40, 36)
    assert (trace.overlaps[0].carved, trace.overlaps[0].dropped) == (4, 0)


@pytest.mark.parametrize(
    ("task", "validation"), [("FOMC", rows("eval", 4)), ("FOMC", []), ("C-STANCE", rows("test", 5))]
)
def test_validation_stays_as_released_otherwise(tmp_path: Path, task: str, validation: list[Any]) -> None:
    write(tmp_path, task, train=rows("train", 40), eval=validation, test=rows("test", 5))
    trace = Trace(tmp_path)
    assert len(trace[0].train) == 40
    assert trace[0].validation.to_list() == validation
    assert trace[0].train_without_validation is None
    assert (trace.overlaps[0].carved, trace.overlaps[0].dropped) == (0, 0)


def test_what_the_files_share_is_counted(tmp_path: Path) -> None:
    a, b, c = row("a"), row("b"), row("c")
    write(tmp_path, "C-STANCE", train=[a, a, b, row("a", "B"), a], eval=[c, a], test=[b, c, b, row("d")])
    write(tmp_path, "FOMC")
    shared, clean = Trace(tmp_path).overlaps
    assert (shared.task, shared.rows) == ("C-STANCE", {"train": 5, "eval": 2, "test": 4})
    assert (shared.repeated_in_train, shared.test_in_train, shared.eval_in_test) == (2, 2, 1)
    assert str(shared) == (
        "C-STANCE: 2 of 5 training rows are repetitions, 2 of 4 test rows are also in train, "
        "1 of 2 eval rows are also in test."
    )
    assert str(clean) == "FOMC: no row is repeated."
    assert str(Trace(tmp_path)) == f"{shared}\n{clean}"


@needs_data
def test_the_released_data_is_a_benchmark_that_states_its_overlaps() -> None:
    trace = Trace(DATA)
    said = [sentence for sentence in check_benchmark(trace) if "except for stated overlaps" in sentence]
    assert len(said) == 1
    for overlap in trace.overlaps:
        assert (f" of {overlap.task}" in said[0]) == (overlap.test_in_train > 0)


@needs_data
def test_no_row_of_the_released_test_validates() -> None:
    task = Trace(DATA, tasks=["FOMC"])[0]
    assert len(task.validation) > 0
    assert set(task.validation["prompt"][:]).isdisjoint(task.test["prompt"][:])
