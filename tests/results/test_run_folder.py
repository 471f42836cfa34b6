"""One run's folder: what is written comes back to the bit, and the summary is what hand and pencil say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.run_folders import THREE_TASKS, protocol, score, write_three_tasks

from workbench.results import RunFolder
from workbench.runtime import files
from workbench.runtime.files import read_csv


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    run = write_three_tasks(tmp_path)
    for reader in (run, RunFolder(tmp_path)):
        assert reader.matrix().dtype == torch.float64
        assert reader.matrix().tolist() == THREE_TASKS
        assert reader.general(3) == [0.3]
        assert reader.value(1, "b", "valid") == 1.0
        assert reader.has_row(3)
        assert not reader.has_row(4)
    assert list(read_csv(tmp_path / "scores.csv")[0]) == ["after", "on", "metric", "value", "count"]
    assert read_csv(tmp_path / "scores.csv")[0] == {
        "after": "0",
        "on": "a",
        "metric": "accuracy",
        "value": "0.1",
        "count": "3",
    }
    nll = read_csv(tmp_path / "nll.csv")
    assert float(nll[0]["value"]) == 0.1 * math.pi
    assert (nll[0]["metric"], nll[0]["count"]) == ("nats_per_token", "7")


def test_what_was_not_measured_is_nan_and_never_0(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_environment({"protocol": protocol("ab")})
    run.add_score(2, score("b", 0.0))
    matrix = run.matrix()
    assert matrix[2, 1] == 0.0
    assert int(matrix.isnan().sum()) == 5
    assert math.isnan(run.value(2, "b", "rouge-L"))
    assert len(read_csv(tmp_path / "scores.csv")) == 2  # no row is made up
    summary = run.summary()
    assert all(math.isnan(summary[name]) for name in ("OP", "BWT", "FWT", "forgetting", "learning_accuracy"))


def test_scores_in_mid_task_come_back_by_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_environment({"protocol": protocol("ab")})
    for step, value in ((0, 0.25), (40, 0.5)):
        run.add_within(step, "pretraining", score("a", value))
        run.add_within(step, "pretraining", score("probe", 1.0))
    assert RunFolder(tmp_path).within("a") == [(0, 0.25), (40, 0.5)]
    assert run.within("a", "valid") == [(0, 1.0), (40, 1.0)]
    assert run.within("b") == []


def test_answers_are_one_file_a_cell(tmp_path: Path) -> None:
    write_three_tasks(tmp_path)
    names = sorted(file.name for file in (tmp_path / "predictions").iterdir())
    assert names == sorted(f"{after}-{name}.jsonl" for after in range(4) for name in ("a", "b", "c", "probe"))
    lines = (tmp_path / "predictions" / "2-b.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == score("b", 0.8).predictions


def test_the_summary_by_hand(tmp_path: Path) -> None:
    summary = write_three_tasks(tmp_path).summary()
    assert (summary["strategy"], summary["order"], summary["seed"]) == ("lora", "2", 4)
    assert summary["OP"] == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert summary["BWT"] == pytest.approx(((0.5 - 0.9) + (0.6 - 0.8)) / 2)
    assert summary["FWT"] == pytest.approx(((0.3 - 0.2) + (0.2 - 0.1)) / 2)
    assert summary["forgetting"] == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)
    assert summary["learning_accuracy"] == pytest.approx((0.9 + 0.8 + 0.7) / 3)
    assert summary["general_delta"] == pytest.approx(-0.2)
    assert (summary["trainable_parameters"], summary["added_parameters"]) == (15, 10)
    assert (summary["train_seconds"], summary["eval_seconds"]) == (4.5, 1.5)
    assert summary["train_tokens_per_second"] == 3 * 60 / 4.5
    assert summary["decoded_tokens_per_second"] == 30 / 0.25  # of the last row
    assert (summary["steps"], summary["tokens"], summary["replay_rows"]) == (9, 180, 3)
    assert summary["disk_bytes"] == len("{}")


def test_the_error_of_a_score_is_what_its_scorer_knew_or_that_of_a_share(tmp_path: Path) -> None:
    """Of 3 rows, 2/3 can be a share and 0.5 cannot."""
    run = RunFolder(tmp_path)
    run.write_environment({"protocol": protocol("abc")})
    graded = replace(score("a", 0.5), errors={"accuracy": 0.125})
    for cell in (graded, score("b", 2 / 3), score("c", 0.5)):
        run.add_score(3, cell)
    for reader in (run, RunFolder(tmp_path)):
        assert reader.error(3, "a", "accuracy") == 0.125
        assert reader.error(3, "b", "accuracy") == pytest.approx(math.sqrt(2 / 27))
        assert math.isnan(reader.error(3, "c", "accuracy"))
        assert math.isnan(reader.error(1, "a", "accuracy"))
        assert math.isnan(reader.summary()["OP_error"])


def test_a_model_that_was_deleted_takes_no_known_room(tmp_path: Path) -> None:
    run = write_three_tasks(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state").write_bytes(b"1234")
    assert run.disk_bytes() == 6
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model").rmdir()
    assert math.isnan(run.disk_bytes())


def test_what_was_not_timed_has_no_speed(tmp_path: Path) -> None:
    """Such as runs that were made before decoding was timed, or without training."""
    file = write_three_tasks(tmp_path).path / "costs.csv"
    lines = [",".join(line.split(",")[:-4]) for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines).replace(",60,1.5,", ",0,0,") + "\n")
    (tmp_path / "journal.jsonl").unlink()  # which would win
    summary = RunFolder(tmp_path).summary()
    assert (summary["train_seconds"], summary["eval_seconds"]) == (0, 1.5)
    assert math.isnan(summary["train_tokens_per_second"])
    assert math.isnan(summary["decoded_tokens_per_second"])


def test_a_row_is_copied_with_its_answers(tmp_path: Path) -> None:
    source, run = write_three_tasks(tmp_path / "from"), RunFolder(tmp_path / "to")
    run.copy_row(0, source, ["a", "b", "c", "p", "g"])
    run.write_environment({"protocol": protocol("abc")})
    assert run.matrix()[0].tolist() == THREE_TASKS[0]
    assert run.matrix()[1:].isnan().all()
    for folder in ("scores.csv", "nll.csv"):
        first = (tmp_path / "from" / folder).read_text().splitlines()
        copied = (tmp_path / "to" / folder).read_text().splitlines()
        assert copied == first[: len(copied)]
    one, other = (path / "predictions" / "0-a.jsonl" for path in (source.path, run.path))
    assert one.read_bytes() == other.read_bytes()
    assert not (run.path / "predictions" / "1-a.jsonl").exists()


def test_a_write_that_fails_leaves_the_scores_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_three_tasks(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        RunFolder(tmp_path).add_score(4, score("a", 0.0))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_clearing_takes_everything_along(tmp_path: Path) -> None:
    run = write_three_tasks(tmp_path / "run")
    assert run.finished
    run.clear()
    assert not run.path.exists()
    assert not run.finished
    assert not run.has_row(0)
    assert run.environment() == {}


def test_sections_of_the_environment_grow(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_to_environment("cut", {"a": 1})
    run.add_to_environment("cut", {"b": {"prompts": 2}})
    assert run.environment() == {"cut": {"a": 1, "b": {"prompts": 2}}}
