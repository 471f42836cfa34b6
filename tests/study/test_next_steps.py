"""The commands that a finished study names: they can be pasted as they are."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study
from omegaconf import OmegaConf

from workbench.cli import app, guarded
from workbench.display import Display
from workbench.study import Study, next_steps

SEQFT, LORA = {"class_path": "strategies.SeqFT"}, {"class_path": "strategies.LoRA"}


@pytest.fixture
def steps(model_folder: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a study with some keys changed; the words of each command that it names, without the program."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, **changes: Any) -> list[list[str]]:
        raw = study(model_folder, task_folder, Path("my runs"), **changes)
        OmegaConf.save(OmegaConf.create(raw), tmp_path / "small study.yaml")
        made = Study("small study.yaml", overrides)
        lines = next_steps.next_steps("small study.yaml", overrides, made, made.execute(Display()))
        assert lines[0] == "Next:"
        return [shlex.split(line, comments=True) for line in lines[1:]]

    return run


def test_the_commands_can_be_pasted(
    steps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    read, report, again = steps("trainer.max_epochs=1", strategies={"seqft": SEQFT, "lora": LORA})
    folder = tmp_path / "my runs" / "small"
    assert read[-1] in (str(folder / "report.html"), (folder / "report.html").as_uri())
    assert (folder / "report.html").is_file()
    assert report[:4] == [*again[:3], "report"] == [sys.executable, "-m", "workbench", "report"]
    assert report[5] in ("baseline=seqft", "baseline=lora")
    assert again[3:] == [
        "run",
        str(tmp_path / "small study.yaml"),
        "trainer.max_epochs=1",
        "name=small",
        f"output={tmp_path / 'my runs'}",
        "seeds=[0, 1, 2]",
    ]
    monkeypatch.chdir(elsewhere)
    assert guarded(lambda: app(report[3:], standalone_mode=False)) == 0
    assert guarded(lambda: app([*again[3:], "strategies.lora=null"], standalone_mode=False)) == 0
    told = capsys.readouterr().out
    assert "seqft, order default, seed 0: finished before, kept." in told
    assert (folder / "seqft" / "default" / "seed-2" / "model").is_dir()
    assert list(elsewhere.iterdir()) == []


def test_with_enough_seeds_a_model_is_exported(steps: Any, tmp_path: Path) -> None:
    *_, export = steps("seeds=[0,1,2]")
    assert export[3] == "export"
    assert guarded(lambda: app(export[3:], standalone_mode=False)) == 0
    assert (tmp_path / "my runs" / "small-seqft-model" / "config.json").is_file()


def test_one_strategy_has_nothing_to_be_compared_with(steps: Any, tmp_path: Path) -> None:
    _, further, _ = steps()
    assert further[3:] == ["report", str(tmp_path / "my runs" / "small"), "relearning=true"]
    assert guarded(lambda: app(further[3:], standalone_mode=False)) == 0


def test_a_program_is_named_as_it_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lightning").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "lightning"), "run"])
    assert next_steps._program() == ["lightning"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/workbench/__main__.py", "run"])
    assert next_steps._program() == [sys.executable, "-m", "workbench"]
    assert next_steps._opening(tmp_path / "report.html")[1:] == [
        "-m", "webbrowser", (tmp_path / "report.html").as_uri(),
    ]  # fmt: skip
    (tmp_path / "xdg-open").touch(mode=0o755)
    assert next_steps._opening(tmp_path / "a b.html") == ["xdg-open", str(tmp_path / "a b.html")]


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([("one", 0.9), ("one", 0.1), ("two", 0.6), ("two", 0.7)], "two"),  # by the mean, not by a single run
        ([("one", math.nan), ("two", 0.2), ("two", 0.3), ("three", 0.4)], "three"),
        ([("one", 0.5), ("one", math.nan), ("two", 0.4)], "one"),
    ],
)
def test_the_best_strategy_has_the_highest_mean(rows: list[tuple[str, float]], best: str) -> None:
    given = [{"strategy": name, "OP": value} for name, value in rows]
    assert next_steps._further(Path("runs"), ["workbench"], given)[1][-1] == f"baseline={best}"


def test_without_a_score_there_is_no_best_strategy() -> None:
    given = [{"strategy": name, "OP": math.nan} for name in ("one", "two")]
    assert next_steps._further(Path("runs"), ["workbench"], given)[1][-1] == "relearning=true"
