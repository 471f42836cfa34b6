"""`bounds: true`: the yardsticks that come into a study, and how tables mark them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from helpers.studies import study
from rich.console import Console

from workbench.config import Component, load, parse
from workbench.report import compare
from workbench.report.terminal import comparison_table
from workbench.study import Study
from workbench.study.study import with_bounds


def classes(strategies: dict[str, Any], **changes: Any) -> dict[str, list[str]]:
    config = with_bounds(parse({**study(Path(), Path(), Path()), "strategies": strategies, **changes}))
    return {name: [part.class_path for part in entry.components] for name, entry in config.strategies.items()}


def test_each_task_alone_and_all_together_are_added() -> None:
    seqft = {"class_path": "strategies.SeqFT"}
    assert list(classes({"seqft": seqft})) == ["seqft"]
    assert classes({"seqft": seqft}, bounds=True) == {
        "seqft": ["strategies.SeqFT"],
        "joint": ["strategies.Joint"],
        "per_task_ft": ["strategies.PerTaskFT"],
    }


def test_one_that_is_there_already_keeps_its_own_rate() -> None:
    own = {"class_path": "strategies.Joint", "optimizer": {"init_args": {"lr": 0.5}}}
    raw = {**study(Path(), Path(), Path()), "strategies": {"together": own}, "bounds": True}
    config = with_bounds(parse(raw))
    assert list(config.strategies) == ["together", "per_task_ft"]
    assert config.settings("together").optimizer.init_args["lr"] == 0.5
    assert config.settings("per_task_ft").optimizer == config.optimizer
    assert config.strategies["per_task_ft"].components == [Component("strategies.PerTaskFT")]
    assert with_bounds(config) == config  # they are in, and the run's config says so


def test_bounds_are_run_and_marked(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    small = Study(parse(study(model_folder, task_folder, tmp_path / "runs", bounds=True)))
    rows = small.run()
    assert [(row["strategy"], row["bound"]) for row in rows] == [
        ("seqft", None),
        ("joint", "OP"),
        ("per_task_ft", "learning_accuracy"),
    ]
    assert load(small.path(small.runs[1]) / "config.yaml").bounds is False
    written = StringIO()
    console = Console(width=200, file=written)
    console.print(comparison_table(*compare([small.folder]), 200))
    text = written.getvalue()
    assert "joint ‡" in text
    assert "per_task_ft ‡" in text
    assert "seqft ‡" not in text
    assert "‡ a bound, not a method of continual learning: joint by OP, per_task_ft by learning accuracy" in text
