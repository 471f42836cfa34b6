"""What a run states beside its numbers, in folders of this version, of older ones, and in damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.run_folders import protocol

from workbench.results import Layout, Protocol, RunFolder

OLDEST = ("strategy", "order_name", "seed", "backbone", "benchmark", "text", "decoding", "precision")
COLUMNS = ("order", "probes", "general", "primary", "training_rows")


def test_all_that_is_tested_is_the_tasks_the_probes_and_the_corpus() -> None:
    layout = Layout(order=["b", "a"], probes=["p", "q"], general="g", primary={})
    assert layout.tested == ["b", "a", "p", "q", "g"]
    assert Layout(order=["b"], probes=[], general=None, primary={}).tested == ["b"]


def test_every_key_of_the_folder_is_a_field(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    stated = protocol("ab", carry_optimizer=True, bound="OP", majority={"a": ["yes", 0.375]}, unknown="ignored")
    run.write_environment({"protocol": stated})
    read = vars(RunFolder(tmp_path).protocol)
    assert {name: read[name] for name in stated if name != "unknown"} == {
        name: value for name, value in stated.items() if name != "unknown"
    }


def test_an_older_folder_has_the_defaults_of_its_time(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    full = protocol("ab")
    run.write_environment({"protocol": {name: full[name] for name in (*OLDEST, *COLUMNS)}})
    read = run.protocol
    assert (read.tokenization, read.scored_on, read.carry_optimizer, read.task_id_at_test) == (
        "apart",
        "test",
        False,
        False,
    )
    assert (read.dtype, read.end_token, read.bound, read.trial_of) == (None, None, None, None)
    assert (list(read.references), list(read.bibtex), list(read.strategies)) == ([], [], [])
    assert (dict(read.scorers), dict(read.test_rows), dict(read.majority)) == ({}, {}, {})


def test_a_run_of_the_loop_alone_has_columns_and_no_protocol(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(KeyError, match="protocol"):
        _ = run.layout
    full = protocol("ab")
    run.add_to_environment("protocol", {name: full[name] for name in COLUMNS})
    assert run.layout.tested == ["a", "b", "probe"]
    with pytest.raises(KeyError, match="strategy"):
        _ = run.protocol


@pytest.mark.parametrize("missing", [*OLDEST, *COLUMNS])
def test_a_missing_key_is_named(missing: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_environment({"protocol": {name: value for name, value in protocol("ab").items() if name != missing}})
    with pytest.raises(KeyError, match=f"'{missing}'"):
        _ = run.protocol


def test_the_protocol_is_as_comparable_as_its_values() -> None:
    assert Protocol(**protocol("ab")) == Protocol(**protocol("ab"))
    assert Protocol(**protocol("ab")) != Protocol(**protocol("ab", seed=5))
