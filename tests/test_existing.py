"""What a study finds in its folder: nothing is mixed in one table that was made in different ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import study, write_tasks

from workbench import existing
from workbench.config import ConfigError, parse
from workbench.study import UNTOUCHED, Study

Make = Callable[..., Study]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Two tasks that a test may change."""
    return write_tasks(tmp_path / "tasks")


@pytest.fixture
def make(model_folder: Path, tasks: Path, tmp_path: Path) -> Make:
    """Makes the small study with some keys changed."""

    def build(**changes: Any) -> Study:
        return Study(parse(study(model_folder, tasks, tmp_path / "runs", **changes)))

    return build


def change_answers(tasks: Path) -> None:
    """Other answers in one task's test file."""
    file = tasks / "alpha" / "test.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps([row | {"answer": "zz"} for row in rows]), encoding="utf-8")


def test_runs_of_another_config_stay_out_of_the_table(make: Make) -> None:
    make().run()
    other = make(seeds=[1], trainer={"max_epochs": 2, "accelerator": "cpu"})
    with pytest.raises(ConfigError, match=r"max_epochs: 1 there, 2 here.*delete the folder"):
        other.run()
    lora = {"class_path": "strategies.LoRA", "init_args": {"rank": 2}}
    assert len(make(strategies={"lora": lora}, seeds=[1]).run()) == 2  # the same way, another method: one table


def test_other_data_under_the_same_config_are_refused(make: Make, tasks: Path) -> None:
    make().run()
    change_answers(tasks)
    with pytest.raises(ConfigError, match="seed-0 was made with another data"):
        make(seeds=[0, 1]).run()


def test_the_untouched_model_is_scored_again_on_other_data(make: Make, tasks: Path) -> None:
    first = make()
    first.run()
    before = (first.folder / UNTOUCHED / "nll.csv").read_text(encoding="utf-8")
    change_answers(tasks)
    second = make(existing="replace")
    second.run()
    after = (second.folder / UNTOUCHED / "nll.csv").read_text(encoding="utf-8")
    assert before != after
    row_0 = (second.results(second.runs[0]).path / "predictions" / "0-alpha.jsonl").read_text(encoding="utf-8")
    assert '"answer": "zz"' in row_0


def test_a_strategy_may_be_called_untouched(make: Make) -> None:
    rows = make(strategies={"untouched": {"class_path": "strategies.SeqFT"}}).run()
    assert [row["strategy"] for row in rows] == ["untouched"]


def test_a_run_that_diverges_does_not_stop_the_others(make: Make) -> None:
    wild = {"class_path": "strategies.SeqFT", "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}}
    small = make(strategies={"wild": wild, "seqft": {"class_path": "strategies.SeqFT"}})
    rows = small.run()
    assert [row["strategy"] for row in rows] == ["seqft"]
    assert len(small.failures) == 1
    assert "wild, order default, seed 0 failed: alpha: the loss is nan at step 2" in small.failures[0]


def test_test_rows_have_no_part_in_a_study_that_is_scored_on_validation_rows(make: Make, tasks: Path) -> None:
    data = {"batch_size": 4, "max_length": 64, "score_on": "validation"}
    first = make(data=data)
    first.run()
    scores = (first.folder / UNTOUCHED / "scores.csv").stat().st_mtime_ns
    change_answers(tasks)
    second = make(data=data, seeds=[0, 1])  # goes on, and scores the untouched model once
    second.run()
    assert (second.folder / UNTOUCHED / "scores.csv").stat().st_mtime_ns == scores


def test_other_versions_and_other_code_are_refused_with_the_difference(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().run()
    with monkeypatch.context() as changed:
        changed.setattr(existing, "describe_environment", lambda: {"versions": {"torch": "9.9"}, "commit": "other"})
        with pytest.raises(ConfigError, match=r"seed-0 was made with other versions \(torch: .* there, 9\.9 here\)"):
            make(seeds=[0, 1]).run()
    with monkeypatch.context() as changed:
        changed.setattr(existing, "fingerprint_code", lambda _: "other")
        with pytest.raises(ConfigError, match="seed-0 was made with another version of its strategy's code"):
            make(seeds=[0, 1]).run()
    assert len(make(seeds=[0, 1]).run()) == 2
