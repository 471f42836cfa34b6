"""Analyses of finished runs: their settings, which runs are left out, and what is done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.analysis.runner import build_analyses
from workbench.cli import app, guarded
from workbench.errors import ConfigError
from workbench.runtime.files import read_csv

Ask = Callable[..., list[str]]


def test_a_run_whose_model_is_gone_is_left_out_and_the_plain_report_shows_no_section(copied: Path, ask: Ask) -> None:
    shutil.rmtree(copied / "seqft" / "default" / "seed-0" / "model")
    shutil.rmtree(copied / "blocks")
    shutil.rmtree(copied / "lora")
    arguments = ["report", str(copied), "relearning=true", "knock_out=true"]
    assert guarded(lambda: app(arguments, standalone_mode=False)) == 0
    assert not (copied / "relearning.csv").exists()
    assert "Relearning" not in (copied / "report.html").read_text(encoding="utf-8")
    assert any("`model` is not there any more" in line for line in ask(copied, relearning=True))


def test_runs_without_a_journal_are_told_apart(copied: Path, ask: Ask) -> None:
    """Two runs whose models are the same by all that is known of them are both asked."""
    shutil.rmtree(copied / "seqft")
    shutil.rmtree(copied / "blocks")
    second = copied / "lora" / "default" / "seed-1"
    shutil.copytree(copied / "lora" / "default" / "seed-0", second)
    for file in copied.rglob("journal.jsonl"):
        file.unlink()
    surroundings = (second / "environment.json").read_text(encoding="utf-8")
    (second / "environment.json").write_text(surroundings.replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    ask(copied, knock_out=True)
    rows = read_csv(copied / "knock_out.csv")
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert len({row["model"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relearning": {"evry": 3}}, "'evry'. Did you mean 'every'?"),
        ({"relearning": {"every": 300}}, "every=300 is out of range"),
        ({"relearning": {"tolerance": 1.5}}, "tolerance=1.5 is out of range"),
        ({"knock_out": "yes please"}, "knock_out: expected true or false, got 'yes please'."),
    ],
)
def test_a_wrong_setting_raises(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_analyses(settings)
    assert message in str(error.value)
