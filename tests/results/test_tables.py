"""The tables of a run: their files, with a journal and without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.run_folders import score, write_three_tasks
from helpers.studies import column

from workbench.errors import ConfigError
from workbench.results import RunFolder
from workbench.results.tables import Records


def test_the_files_alone_hold_the_tables_of_the_journal(tmp_path: Path) -> None:
    run = write_three_tasks(tmp_path)
    run.add_steps([{"step": 1, "item": "a", "loss": 0.1 + 0.2, "nats_per_token": 0.3}])
    run.add_within(1, "a", score("b", 0.25))
    written, read = run.records, Records.from_files(tmp_path)
    for name in ("scores", "nll", "within", "costs", "curve"):
        assert getattr(read, name) == getattr(written, name), name
    assert read.environment == written.environment
    assert read.cells == written.cells
    assert read.names == [name for name in written.names if name != "config.yaml"]
    for name in read.names:
        assert read.text(name) == (tmp_path / name).read_text(encoding="utf-8"), name


def test_a_penalty_that_comes_later_gets_its_column(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_steps([{"step": 1, "item": "a", "loss": 0.1 + 0.2, "nats_per_token": 0.3}])
    later = {"item": "b", "loss": 1.0, "nats_per_token": 0.5}
    run.add_steps([{"step": 2, **later}, {"step": 3, **later, "ewc": 0.5}])
    assert column(tmp_path / "train.csv", "ewc") == ["", "", "0.5"]
    assert float(column(tmp_path / "train.csv", "loss")[0]) == 0.1 + 0.2


def test_the_first_of_two_scores_of_a_cell_is_kept() -> None:
    records = Records()
    for value in ("0.25", "0.75"):
        cell = {"kind": "cell", "after": 1, "on": "a", "metrics": {"accuracy": value}, "count": 4, "tokens": 9}
        records.add({**cell, "nats_per_token": "1.5", "predictions": {}, "spent": {}})
    assert records.cells == {(1, "a", "accuracy"): (0.25, 4)}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("scores.csv", "after,on,metric,value,count\n1.5,a,accuracy,0.5,4\n", "ValueError: invalid literal for int"),
        ("costs.csv", "item,tokens\na,many\n", "KeyError: 'trainable_parameters'"),
        ("environment.json", '{"inputs": []}', "ValueError: expected an object as inputs, got list"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(name: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        Records.from_files(tmp_path)
    (message,) = refused.value.problems
    assert message.startswith(f"{tmp_path / name} cannot be read ({problem}")
    assert message.endswith(f"Delete {tmp_path} to make the run again.")
