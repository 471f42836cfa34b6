"""A finished study that analyses are run on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study

from workbench.analysis import analyse
from workbench.analysis.runner import build_analyses
from workbench.config import parse
from workbench.display import Display
from workbench.report import compare
from workbench.study import Study


class Notes(Display):
    """Records the lines that are shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="session")
def finished(model_folder: Path, task_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three strategies over two tasks, finished."""
    strategies = {
        "seqft": {"class_path": "strategies.SeqFT"},
        "blocks": {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2}},
        "lora": {"class_path": "strategies.LoRA", "init_args": {"dropout": 0.0}},
    }
    output = tmp_path_factory.mktemp("analyses")
    Study(parse(study(model_folder, task_folder, output, strategies=strategies))).run()
    return output / "small"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "small"))


@pytest.fixture
def ask() -> Callable[..., list[str]]:
    """Run analyses on the runs of a folder and return the lines of progress."""

    def run(folder: Path, **settings: Any) -> list[str]:
        notes = Notes()
        analyse(folder, compare([folder]), build_analyses(settings), notes)
        return notes.lines

    return run
