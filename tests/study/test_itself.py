"""A method against itself: two strategies of one study that differ in their names alone differ in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.studies import study

from workbench.config import parse
from workbench.report import compare
from workbench.report.terminal import comparison_table
from workbench.report.write import find_runs
from workbench.results import RunFolder
from workbench.study import Study

METHODS: dict[str, dict[str, Any]] = {
    "seqft": {"class_path": "strategies.SeqFT"},
    "lora": {"class_path": "strategies.LoRA", "init_args": {"rank": 2, "dropout": 0.3}},
    "replay": {"class_path": "strategies.Replay", "init_args": {"share": 0.5}},
}
TIMED = {"train_seconds", "eval_seconds", "peak_memory_bytes", "train_tokens_per_second", "decoded_tokens_per_second"}
MEASURED = ("scores.csv", "nll.csv", "within.csv", "train.csv", "predictions/*", "model/*", "model/adapters/*/*")


def measured(run: RunFolder) -> dict[str, bytes]:
    """Whatever a run says of its model, and the model."""
    files = [file for pattern in MEASURED for file in run.path.glob(pattern) if file.is_file()]
    return {file.relative_to(run.path).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    "method", ["seqft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "replay"))]
)
def test_a_method_differs_from_itself_in_nothing(
    method: str, model_folder: Path, task_folder: Path, tmp_path: Path
) -> None:
    between = {"class_path": "strategies.BlockExpansion", "init_args": {"groups": 2}}  # leaves nothing behind either
    strategies = {"a": METHODS[method], "between": between, "b": METHODS[method]}
    raw = study(model_folder, task_folder, tmp_path, strategies=strategies, seeds=[0, 1], score_every_n_steps=1)
    rows = Study(parse(raw)).run()
    runs = {(run.protocol.strategy, run.path.name): run for run in find_runs(tmp_path)}
    for seed in ("seed-0", "seed-1"):
        one, other = runs["a", seed], runs["b", seed]
        assert len(measured(one)) > 12
        assert measured(one) == measured(other)
        assert list(one.moments().values()) == list(other.moments().values())
    assert measured(runs["a", "seed-0"])["train.csv"] != measured(runs["a", "seed-1"])["train.csv"]
    assert measured(runs["a", "seed-0"])["nll.csv"] != measured(runs["between", "seed-0"])["nll.csv"]
    same = [{name: str(value) for name, value in row.items() if name not in {"strategy", *TIMED}} for row in rows]
    assert same[:2] == same[4:]  # as text, since nan is not nan
    (comparison,) = compare([tmp_path])
    assert comparison.difference("b", "a", "default", "OP").mean == 0.0
    shown = [list(column.cells) for column in comparison_table(comparison).columns]
    assert [cells[0] for cells in shown[1:-1]] == [cells[2] for cells in shown[1:-1]]
