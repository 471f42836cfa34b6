"""Finished folders to tables: found, averaged and written from the folders alone."""

from __future__ import annotations

import math
import re
from io import StringIO
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console
from test_results import fill

from workbench.cli import app, guarded
from workbench.components import ConfigError
from workbench.display import score_table
from workbench.files import read_csv
from workbench.report import (
    SUMMARY,
    comparison_table,
    cost_table,
    domain_table,
    find_runs,
    matrix_table,
    write_summary,
)
from workbench.results import RunFolder

HEADER = (
    "strategy,order,seed,OP,BWT,FWT,forgetting,learning_accuracy,general_delta,trainable_parameters,"
    "added_parameters,train_seconds,eval_seconds,peak_memory_bytes,train_tokens_per_second,decoded_tokens_per_second"
)


def printed(table: object) -> list[list[str]]:
    """A table's rows as cells, the header's left out."""
    console = Console(width=240)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_finished_runs_are_found_by_path(tmp_path: Path) -> None:
    for place in ("seqft/1/seed-0", "lora/1/seed-1", "lora/1/seed-0"):
        fill(tmp_path / place)
    fill(tmp_path / "lora/1/seed-2", ended=False)
    (tmp_path / "untouched").mkdir()
    found = [run.path.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert found == ["lora/1/seed-0", "lora/1/seed-1", "seqft/1/seed-0"]
    assert [run.path for run in find_runs(tmp_path / "lora/1/seed-1")] == [tmp_path / "lora/1/seed-1"]


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run\\. Give a study"):
        find_runs(tmp_path)
    with pytest.raises(ConfigError, match="absent: there is no run"):
        find_runs(tmp_path / "absent")
    fill(tmp_path / "run", ended=False)
    with pytest.raises(ConfigError, match="there is 1 run, and it is not finished"):
        find_runs(tmp_path)
    fill(tmp_path / "other", ended=False)
    with pytest.raises(ConfigError, match="there are 2 runs, none of them finished"):
        find_runs(tmp_path)


def test_the_summary_has_the_columns_that_others_rely_on(tmp_path: Path) -> None:
    fill(tmp_path / "one", seed=0)
    fill(tmp_path / "two", seed=1)
    rows = write_summary(tmp_path)
    file = tmp_path / "summary.csv"
    assert file.read_text().splitlines()[0] == HEADER == ",".join(SUMMARY)
    back = read_csv(file)
    assert [row["seed"] for row in back] == ["0", "1"]
    for row, read in zip(rows, back, strict=True):
        assert float(read["OP"]) == row["OP"] == pytest.approx(0.6)
        assert read["peak_memory_bytes"] == "nan"


def row(strategy: str, op: float, **other: float) -> dict[str, object]:
    known: dict[str, object] = dict.fromkeys(SUMMARY, 0.0)
    return (
        known
        | {
            "strategy": strategy,
            "OP": op,
            "added_parameters": 1000,
            "trainable_parameters": 7,
            "task_id_at_test": False,
        }
        | other
    )


def test_a_strategy_is_averaged_over_its_runs() -> None:
    rows = [row("lora", 0.5, train_seconds=60), row("seqft", 0.25), row("lora", 1.0, train_seconds=30, eval_seconds=30)]
    lora, seqft = printed(comparison_table(rows, "small", "note"))
    assert lora[:2] == ["lora (mean of 2)", "0.750"]
    assert lora[-3:] == ["7", "1,000", "1 min 0 s"]
    assert seqft[:2] == ["seqft", "0.250"]


def test_what_each_strategy_costs_is_averaged_over_its_runs() -> None:
    one = {"train_seconds": 60, "eval_seconds": 1, "peak_memory_bytes": 2e9, "train_tokens_per_second": 1000}
    two = {"train_seconds": 20, "eval_seconds": 1, "peak_memory_bytes": 1e9, "train_tokens_per_second": 2001}
    unknown = row("seqft", 0.2, peak_memory_bytes=math.nan, decoded_tokens_per_second=math.nan)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(cost_table([row("lora", 0.5, **one), unknown, row("lora", 0.5, **two)]))
    lora, seqft = (line.split() for line in capture.get().splitlines() if line.startswith(("lora", "seqft")))
    assert lora == ["lora", "7", "1K", "1500", "0", "1500", "41"]
    assert seqft == ["seqft", "7", "1K", "0", "–", "–", "0"]


def test_a_method_that_is_told_the_task_is_marked() -> None:
    table = comparison_table([row("oracle", 0.5) | {"task_id_at_test": True}, row("lora", 0.5)], "small", "note")
    assert [cells[0] for cells in printed(table)] == ["oracle †", "lora"]
    assert str(table.caption).startswith("note\n† is told which task")


def test_one_unmeasured_value_makes_the_mean_unmeasured() -> None:
    cells = printed(comparison_table([row("lora", 0.5), row("lora", math.nan)], "small", "note"))
    assert cells[0][1] == "–"


def test_a_matrix_as_it_is_printed(tmp_path: Path) -> None:
    cells = printed(matrix_table(fill(tmp_path), 120))
    assert cells[0] == ["0", "0.10", "0.20", "0.10", "0.50"]
    assert cells[3] == ["3", "0.50", "0.60", "0.70", "0.30"]


def test_the_commonest_answer_stands_above_a_matrix(tmp_path: Path) -> None:
    run = fill(tmp_path)
    first = run.environment()["protocol"]["order"][0]
    run.add_to_environment("protocol", {"majority": {first: ["A", 0.375]}})
    table = matrix_table(run, 120)
    assert printed(table)[0] == ["majority", "0.38", "–", "–", "–"]
    assert "commonest answer" in str(table.caption)


def altered(run: RunFolder, cell: str, value: str) -> RunFolder:
    """The run with another value in one cell of its scores, given as "after,on,metric,"."""
    file = run.path / "scores.csv"
    text, count = re.subn(rf"(?m)^{cell}[^,]+", f"{cell}{value}", file.read_text(encoding="utf-8"))
    assert count == 1
    file.write_text(text, encoding="utf-8")
    (run.path / "journal.jsonl").unlink()  # which would win
    return RunFolder(run.path)


def test_domain_by_domain(tmp_path: Path) -> None:
    """Learnt is the diagonal and the end the last row, averaged over two seeds that differ in one cell."""
    runs = [fill(tmp_path / "one", seed=0), fill(tmp_path / "two", seed=1)]
    runs[1] = altered(runs[1], "3,a,accuracy,", "0.1")  # 0.5 in the other
    learnt = [f"{value:.2f}" for value in runs[0].matrix()[1:].diagonal()]
    rows = {cells[0]: cells[1:] for cells in printed(domain_table(runs, 120))}
    assert list(rows) == ["untouched", "lora, learnt", "lora, end"]
    assert rows["untouched"] == ["0.10", "0.20", "0.10", "0.50"]
    assert rows["lora, learnt"] == [*learnt, "–"]
    assert rows["lora, end"] == ["0.30", "0.60", "0.70", "0.30"]


def test_what_is_learnt_together_has_no_turn_and_labels_have_a_floor(tmp_path: Path) -> None:
    run = fill(tmp_path)
    run = altered(run, "1,a,accuracy,", "nan")
    run.add_to_environment("protocol", {"majority": {"b": ["A", 0.375]}, "scored_on": "validation"})
    table = domain_table([run], 120)
    assert [cells[0] for cells in printed(table)] == ["untouched", "lora, end", "majority"]
    assert printed(table)[-1] == ["majority", "–", "0.38", "–", "–"]
    assert str(table.caption).startswith("scored on validation rows; learnt: ")


def test_the_command_rebuilds_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "one", seed=0)
    fill(tmp_path / "two", seed=1)
    assert guarded(lambda: app(["report", str(tmp_path)], standalone_mode=False)) == 0
    text = capsys.readouterr().out
    assert "lora (mean of 2)" in text
    assert "lora, order 2, seed 0" in text
    assert re.search(r"lora +15 +10 +40 +120 +– +6\n", text)
    assert "mini; b.B, 3 tasks of 8 training rows; long prompts cut: left; template none; decoding greedy" in text
    assert (tmp_path / "summary.csv").is_file()


def test_the_command_refuses_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: app(["report", str(tmp_path)], standalone_mode=False)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path}: there is no run.")
    assert list(tmp_path.iterdir()) == []


def test_tables_fit_a_terminal_of_eighty_characters(tmp_path: Path) -> None:
    rows = [row(name, -0.5) | {"trainable_parameters": 6_738_415_616} for name in ("block_expansion", "lora")]
    names = [f"some_long_task_{index}" for index in range(13)]
    matrix = score_table("title", names, 80)
    matrix.add_row("8", *["0.12"] * 13)
    console = Console(width=80, file=StringIO())
    for table in (comparison_table(rows, "small", "note", 80), matrix, matrix_table(fill(tmp_path), 80)):
        console.print(table)
    text = cast(StringIO, console.file).getvalue()
    assert "…" not in text
    assert "6.74B" in text
    assert " ".join(["8", *["0.12"] * 13]) in text
