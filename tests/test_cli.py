"""Bad input: exit status 2, a message that names the thing, no traceback, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study
from omegaconf import OmegaConf

from workbench.cli import app, guarded

Refuse = Callable[..., list[str]]


@pytest.fixture
def refuse(
    model_folder: Path,
    task_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuse:
    """Runs the small study with something wrong; the lines that a user reads."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, **changes: Any) -> list[str]:
        raw = study(model_folder, task_folder, tmp_path / "runs", **changes)
        OmegaConf.save(OmegaConf.create(raw), tmp_path / "small.yaml")
        status = guarded(lambda: app(["run", "small.yaml", *overrides], standalone_mode=False))
        told = capsys.readouterr()
        assert status == 2, told.out + told.err
        assert "Traceback" not in told.err
        assert all(line.startswith(("error: ", "- ")) for line in told.err.splitlines()), told.err
        assert not (tmp_path / "runs").exists()
        return [line.removeprefix("error: ") for line in told.err.splitlines()]

    return run


def test_data_that_a_benchmark_makes_only_when_a_task_is_asked_for(refuse: Refuse) -> None:
    few = {"test_rows": 400, "expressions": {"keys": 20, "operands": [2]}}
    made = {"class_path": "benchmarks.key_value_arithmetic.KeyValueArithmetic", "init_args": few}
    (line,) = refuse(benchmark=made)
    assert line.startswith("benchmark: test: Only 128 different prompts were found where 400 are asked for.")


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "..", "''", ".hidden"])
def test_a_name_that_leads_out_of_the_folder(refuse: Refuse, name: str) -> None:
    assert "is not a plain folder name" in refuse(f"name={name}")[0]
    component = {"class_path": "strategies.SeqFT"}
    assert "is not a plain folder name" in refuse(strategies={name.strip("'"): component})[0]


def test_a_folder_for_results_below_a_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (line,) = refuse("output=file/runs")
    assert line == f"output: {tmp_path}/file is a file; results need a folder. Choose another."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_for_results_that_cannot_be_written_to(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    (line,) = refuse("output=locked/runs")
    assert line == f"output: {tmp_path}/locked cannot be written to. Choose another."


def test_all_that_is_wrong_is_told_at_once(refuse: Refuse) -> None:
    wrong = ("data.batch_size=many", "trainer.max_epochs=0", "optimizer.init_args.lrr=1", "backbone.path=absent")
    lines = refuse(
        *wrong, "sedes=[1]", "strategies.seqft.class_path=strategies.Seq", "benchmark.init_args.path=nowhere"
    )
    for key in (
        "data.batch_size",
        "trainer.max_epochs",
        "optimizer.init_args.lrr",
        "backbone.path",
        "sedes",
        "benchmark",
    ):
        assert sum(line.startswith(key) for line in lines) == 1, (key, lines)
    assert sum("has no class 'Seq'" in line for line in lines) == 1
    assert len(lines) == 7


def test_an_override_that_is_none(refuse: Refuse) -> None:
    (line,) = refuse("epochs")
    assert line == "'epochs' is not an override. Write key=value, such as trainer.max_epochs=1."
