"""Loggers of other people, by import path: one axis of steps over the whole sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.studies import column, study

from workbench.config import parse
from workbench.runtime.files import read_csv
from workbench.study import Study


def run_with(logger: Any, model: Path, tasks: Path, output: Path) -> Path:
    """Two tasks of four steps each, every one logged; the run's folder."""
    trainer = {"max_epochs": 2, "accelerator": "cpu", "logger": logger}
    small = Study(parse(study(model, tasks, output, trainer=trainer)))
    small.run()
    return small.results(small.runs[0]).path


def test_tensorboard_has_one_axis_over_both_tasks(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = tmp_path / "board"
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(board)}}
    run = run_with(logger, model_folder, task_folder, tmp_path / "runs")
    events = accumulator.EventAccumulator(str(next(board.rglob("events.*")).parent))
    events.Reload()
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == list(range(8))
    losses = [float(value) for value in column(run / "train.csv", "loss")]
    assert [point.value for point in points] == pytest.approx(losses, rel=1e-6)


def test_csv_logger_has_one_axis_over_both_tasks(model_folder: Path, task_folder: Path, tmp_path: Path) -> None:
    place = {"save_dir": str(tmp_path), "name": "log"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": place}
    run = run_with(logger, model_folder, task_folder, tmp_path / "runs")
    rows = read_csv(tmp_path / "log" / "seqft-default-seed-0" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(8))
    losses = [float(value) for value in column(run / "train.csv", "nats_per_token")]
    assert [float(row["train/nats_per_token"]) for row in rows] == pytest.approx(losses, rel=1e-6)


def test_a_logger_gets_the_loss_of_a_step_and_not_of_its_last_batch(
    model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    place = {"save_dir": str(tmp_path), "name": "log"}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": place}
    monitor = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "logger": logger, "accumulate_grad_batches": 2}
    small = Study(
        parse(study(model_folder, task_folder, tmp_path / "runs", trainer=trainer | {"callbacks": [monitor]}))
    )
    small.run()
    rows = read_csv(tmp_path / "log" / "seqft-default-seed-0" / "metrics.csv")
    logged = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    losses = [float(value) for value in column(small.results(small.runs[0]).path / "train.csv", "loss")]
    assert len(losses) == 4
    assert logged == pytest.approx(losses, rel=1e-6)
