"""The study that executors are tried with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.frail import FRAIL
from helpers.studies import study, write_tasks


@pytest.fixture
def raw(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three tasks of four steps, saved after each two, and a method that dies beside it."""
    (tmp_path / "frail.py").write_text(FRAIL, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("frail", None)
    tasks = write_tasks(tmp_path / "tasks", ("alpha", "beta", "gamma"), rows=16)
    return study(model_folder, tasks, tmp_path / "runs", save_every_n_steps=2, seeds=[0, 1])
